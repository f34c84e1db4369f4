"""Fails when smartpipe has become slow, by a ratio to the bare aiobotocore loop and not by seconds.

    python -m benchmarks.guard

From the root of the checkout, on the embedded broker. Both work in turns in this one process, and only its CPU time
counts: a busy machine makes both dearer. The best of each is compared after every turn but the first, which a busy
machine can falsify either way, and there are more turns while the limit is not kept. The limits stand above what is
measured (0.36 and 0.18 on this broker, which is slower than that of RESULTS.md): they catch a blunder, not a breeze.
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
from benchmarks.compare.runs import Place
from benchmarks.compare.venvs import CLIENTS

from smartpipe import EmbeddedBroker
from smartpipe.transports.open import open_transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

sys.path.insert(0, str(CLIENTS))  # they are scripts for other venvs, and know each other by bare names
import by_aiobotocore
import by_smartpipe

WARM = 100
MESSAGES = 1_000
LEAST_TURNS, MOST_TURNS = 2, 5
IN_HAND = "80"
"""Messages that the bare loop has at once: 8 tasks, ten each."""


class Guarded(NamedTuple):
    """What is measured, and the most it may cost of what the bare loop costs."""

    what: str
    body: str
    limit: float


GUARDED = (Guarded("consume", "cloudevent", 0.55), Guarded("publish", "", 0.35))


async def ours(job: Job) -> Meter:
    """Smartpipe with the direct transport, as a worker or by ``publish_many``."""
    transport = open_transport()
    try:
        return await by_smartpipe.WORK[job.what](transport, job)
    finally:
        await transport.aclose()


async def bare(job: Job) -> Meter:
    """The loop that it is held against."""
    async with get_session().create_client("sqs" if job.what == "consume" else "sns") as client:
        return await by_aiobotocore.WORK[job.what](client, job)


async def micros(work: Callable[[Job], Awaitable[Meter]], guarded: Guarded, broker: Broker) -> float:
    """CPU for each message, in µs, on a queue of its own."""
    place = Place(broker)
    os.environ["SMARTPIPE_PREFIX"] = place.prefix
    if guarded.body:
        await asyncio.to_thread(place.fill, guarded.body, MESSAGES + WARM)
    job = Job(guarded.what, MESSAGES + WARM, WARM, place.queue_name, place.queue_url, place.topic_arn)
    meter = await work(job)
    return meter.cpu_seconds / MESSAGES * 1e6


async def kept(guarded: Guarded, broker: Broker) -> bool:
    """Take turns until the limit is kept, or there have been enough."""
    best = {ours: float("inf"), bare: float("inf")}
    for turn in range(1, MOST_TURNS + 1):
        for work, before in list(best.items()):
            best[work] = min(before, await micros(work, guarded, broker))
        ratio = best[ours] / best[bare]
        said = f"{best[ours]:.0f} of {best[bare]:.0f} µs: {ratio:.2f} of the bare loop, {guarded.limit} allowed"
        print(f"{guarded.what:8} turn {turn}: {said}", flush=True)
        if turn >= LEAST_TURNS and ratio <= guarded.limit:
            return True
    return False


async def main() -> int:
    """Return 1 if a limit is not kept."""
    with EmbeddedBroker() as embedded:
        broker = Broker("embedded", {**embedded.environment, "SMARTPIPE_CONCURRENCY": IN_HAND})
        os.environ.update(broker.environment)
        return 0 if all([await kept(guarded, broker) for guarded in GUARDED]) else 1


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
