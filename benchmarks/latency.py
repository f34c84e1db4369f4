"""Throughput over a distance: a worker on topics and queues in memory, each of whose calls takes a round trip.

    python -m benchmarks.latency

Handlers do nothing. Each line is one run in a process of its own: the round trip, the concurrency, whether messages are
received ahead, messages per second of wall time, CPU time for each message, and receive calls for each ten messages.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop

from smartpipe import Event, Publisher, Service, Topic
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.threads import Threads
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import Failure, Message

ROUND_TRIPS_MILLISECONDS = (0, 2, 15, 80)
MESSAGES = 20_000


class Counted(Event, topic=Topic("distance"), type="counted", version="1.0"):
    number: int


class FarTransport(MemoryTransport):
    """A transport whose receive and delete calls take a round trip."""

    def __init__(self, round_trip_seconds: float) -> None:
        super().__init__()
        self.receives = 0
        self._round_trip_seconds = round_trip_seconds

    async def receive(self, queue: str, **options: Any) -> list[Message]:
        """Receive after a round trip."""
        self.receives += 1
        await asyncio.sleep(self._round_trip_seconds)
        return await super().receive(queue, **options)

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete after a round trip."""
        await asyncio.sleep(self._round_trip_seconds)
        return await super().delete(queue, receipts)


async def measure(milliseconds: float, concurrency: int, messages: int, *, prefetch: bool) -> str:
    """Handle *messages*, and return the line of the run."""
    service, handled, done = Service("distance"), 0, asyncio.Event()

    @service.subscribe(Counted)
    async def count(_: Counted) -> None:
        nonlocal handled
        handled += 1
        if handled == messages:
            done.set()

    transport = FarTransport(milliseconds / 1_000)
    transport.apply(derive([service], NAMING))
    async with Publisher("distance", transport=transport) as publisher:
        await publisher.publish_many(Counted(number=number) for number in range(messages))
        resources = Resources(publisher, Threads(concurrency), publisher.payloads)
        consumer = Consumer(
            service, service.queue, transport,
            resources=resources, concurrency=concurrency, poll_seconds=1, prefetch=prefetch,
        )  # fmt: skip
        began, cpu_began = time.perf_counter(), time.process_time()
        consumer.start()
        await done.wait()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        calls = transport.receives
        until = asyncio.get_running_loop().time() + 10
        await consumer.drain(handlers_until=until, flush_until=until, hard=asyncio.Event())
    return (
        f"{milliseconds:5g} ms  concurrency {concurrency:3}  {'ahead' if prefetch else 'not ahead':9}  "
        f"{messages / seconds:8,.0f} messages/s  {cpu_seconds / messages * 1e6:5.0f} µs  "
        f"{calls * 10 / messages:5.2f} calls"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description="Measure over a distance.")
    parser.add_argument(
        "--one", nargs=4, metavar=("MS", "CONCURRENCY", "MESSAGES", "PREFETCH"), help="measure one line"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of runs for each line; default 3")
    options = parser.parse_args()
    if options.one:
        milliseconds, concurrency, messages, prefetch = options.one
        found = measure(float(milliseconds), int(concurrency), int(messages), prefetch=prefetch == "yes")
        print(uvloop.run(found))
        return
    for _ in range(options.rounds):
        for milliseconds in ROUND_TRIPS_MILLISECONDS:
            for concurrency, prefetch in ((10, "no"), (10, "yes"), (80, "yes")):
                # Without messages ahead, a run over a distance takes long enough with fewer of them.
                messages = MESSAGES // 10 if prefetch == "no" and milliseconds else MESSAGES
                one = [str(milliseconds), str(concurrency), str(messages), prefetch]
                subprocess.run([sys.executable, "-m", "benchmarks.latency", "--one", *one], check=True)


if __name__ == "__main__":
    main()
