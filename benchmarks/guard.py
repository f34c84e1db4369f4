"""Fail if smartpipe has become slow, measured as a ratio to the bare aiobotocore loop and not in seconds.

    python -m benchmarks.guard

Run it from the root of the checkout. It uses the local broker. smartpipe and the loop take turns in one process, and
only CPU time counts, because a busy machine slows both. From the second turn on, the best values of both are compared:
a busy machine can falsify the first turn. While the limit is exceeded, there are more turns. The limits are higher than
the measured values (0.36 to 0.5 and 0.18 to 0.26 on this broker, which is slower than that of RESULTS.md), so that they
detect regressions and not noise.

The last lines compare the messages per second over 15 ms with those over no distance, at default settings, on a
transport that is not limited by a broker. Without messages that are received ahead, the share would be 0.04. Then comes
the CPU time of a worker with its metrics, as a ratio to the same without them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import uvloop
from aiobotocore.session import get_session
from benchmarks.compare.broker import Broker
from benchmarks.compare.clients.meter import Job, Meter
from benchmarks.compare.contenders import FAR_MILLISECONDS
from benchmarks.compare.runs import Resources
from benchmarks.compare.venvs import CLIENTS
from benchmarks.scale import run

from smartpipe import EmbeddedBroker
from smartpipe.transports.open import open_transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

sys.path.insert(0, str(CLIENTS))  # these scripts run in other venvs, and import each other by bare names
import by_aiobotocore
import by_smartpipe

WARM = 100
MESSAGES = 1_000
MIN_TURNS, MAX_TURNS = 2, 12
FAR_MESSAGES = 20_000
MIN_SHARE = 0.4
MAX_METRICS = 1.35


class Guarded(NamedTuple):
    """A measured mode, and the maximum ratio of its CPU time to that of the bare loop.

    Args:
        concurrency: 80 is the number of messages that the bare loop has in flight: 8 tasks with ten messages each.
    """

    name: str
    mode: str
    body: str
    limit: float
    concurrency: int = 10


GUARDED = (
    Guarded("worker, default settings", "consume", "cloudevent", 0.6),
    Guarded("worker, concurrency 80", "consume", "cloudevent", 0.65, 80),
    Guarded("publish_many", "publish", "", 0.35),
)


async def run_smartpipe(job: Job) -> Meter:
    """Run smartpipe on the direct transport, as a worker or with ``publish_many``."""
    transport = open_transport()
    try:
        return await by_smartpipe.WORK[job.mode](transport, job)
    finally:
        await transport.aclose()


async def run_bare_loop(job: Job) -> Meter:
    """Run the loop that smartpipe is compared with."""
    async with get_session().create_client("sqs" if job.mode == "consume" else "sns") as client:
        return await by_aiobotocore.WORK[job.mode](client, job)


async def measure_microseconds(work: Callable[[Job], Awaitable[Meter]], guarded: Guarded, broker: Broker) -> float:
    """Return the CPU time for each message in µs, on a new queue."""
    resources = Resources(broker)
    os.environ |= {"SMARTPIPE_PREFIX": resources.prefix, "SMARTPIPE_CONCURRENCY": str(guarded.concurrency)}
    if guarded.body:
        await asyncio.to_thread(resources.fill, guarded.body, MESSAGES + WARM)
    job = Job(guarded.mode, MESSAGES + WARM, WARM, resources.queue_name, resources.queue_url, resources.topic_arn)
    meter = await work(job)
    return meter.cpu_seconds / MESSAGES * 1e6


async def check(guarded: Guarded, broker: Broker) -> bool:
    """Take turns until the ratio is within the limit, or the maximum number of turns is reached."""
    best = {run_smartpipe: float("inf"), run_bare_loop: float("inf")}
    for turn in range(1, MAX_TURNS + 1):
        for work, before in list(best.items()):
            best[work] = min(before, await measure_microseconds(work, guarded, broker))
        ours, bare = best[run_smartpipe], best[run_bare_loop]
        ratio = ours / bare
        result = f"{ours:.0f} of {bare:.0f} µs: {ratio:.2f} of the bare loop, limit {guarded.limit}"
        print(f"{guarded.name:24} turn {turn}: {result}", flush=True)
        if turn >= MIN_TURNS and ratio <= guarded.limit:
            return True
    return False


def check_distance() -> bool:
    """Compare the best rates over a distance and without it, on a transport that returns endless messages."""
    near = far = 0.0
    for turn in range(1, MAX_TURNS + 1):
        near = max(near, run(1, FAR_MESSAGES).per_second)
        far = max(far, run(1, FAR_MESSAGES, FAR_MILLISECONDS / 1e3).per_second)
        result = f"{far:,.0f} of {near:,.0f} messages/s: {far / near:.2f}, limit {MIN_SHARE}"
        print(f"{'worker over 15 ms':24} turn {turn}: {result}", flush=True)
        if turn >= MIN_TURNS and far / near >= MIN_SHARE:
            return True
    return False


def check_metrics() -> bool:
    """Compare the best CPU times with and without metrics, on a transport that does nothing."""
    on = off = float("inf")
    for turn in range(1, MAX_TURNS + 1):
        on = min(on, run(1, FAR_MESSAGES).microseconds)
        off = min(off, run(1, FAR_MESSAGES, metrics=False).microseconds)
        print(f"{'metrics':24} turn {turn}: {on:.1f} of {off:.1f} µs: {on / off:.2f}, limit {MAX_METRICS}", flush=True)
        if turn >= MIN_TURNS and on / off <= MAX_METRICS:
            return True
    return False


async def main() -> int:
    """Return 1 if a limit is exceeded."""
    with EmbeddedBroker() as local:
        broker = Broker("local", local.environment)
        os.environ.update(broker.environment, SMARTPIPE_QUEUE_METRICS_SECONDS="0")  # these queues have no DLQ to count
        return 0 if all([await check(guarded, broker) for guarded in GUARDED]) else 1


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()) or not all([check_distance(), check_metrics()]))
