"""Measure whether the cost of a message stays the same with more queues, more messages and more processes.

    python -m benchmarks.scale [queues] [distance] [reserve] [soak] [processes]

Run it from the root of the checkout. Without a name, it runs all. All but the last run a real Worker on a transport
that returns the same message endlessly and accepts every delete, so that only smartpipe is measured. The last runs
``smartpipe worker`` on the local broker, with a handler that computes long enough for the broker not to be the limit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import boto3
import psutil
from benchmarks.scale_service import Placed
from benchmarks.scale_service import service as computing_service
from tests.support.processes import Process

from smartpipe import EmbeddedBroker, Publisher, Queue, Service
from smartpipe.envelope import encode, wrap
from smartpipe.message import Attribute, Message
from smartpipe.settings import WorkerSettings
from smartpipe.testing import provision
from smartpipe.worker.tuning import choose_loop_factory, tune_garbage_collector
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.consumer.leases import Lease
    from smartpipe.message import Failure, OutgoingMessage

ROOT = Path(__file__).parents[1]
QUEUES = (1, 5, 20, 50)
MESSAGES = 60_000
ROUNDS = 5
ROUND_TRIP_SECONDS, RESERVE_ROUND_TRIP_SECONDS = 0.015, 0.08
SOAK = (1_000, 10_000, 100_000, 1_000_000)
COMPUTED = 900
"""The number of messages of the last part. At 10 ms each, they keep one core busy for nine seconds."""
LOOK_SECONDS = 0.25

BODY = encode(wrap(Placed(number=1), source="benchmark"))
ATTRIBUTES = {"type": Attribute("String", "bench.placed")}


class EndlessTransport:
    """A transport that returns as many messages as requested, until *messages* have been received.

    Args:
        round_trip_seconds: The duration of each receive and delete call.
        body: That of each message.
    """

    def __init__(self, messages: int, round_trip_seconds: float = 0.0, *, body: str = BODY) -> None:
        self._body = body
        self._round_trip_seconds = round_trip_seconds
        self._left = messages
        self._missing = messages
        self._numbers = 0
        self._warm = messages - messages // 5
        self.warm, self.done = asyncio.Event(), asyncio.Event()

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Return messages, or an empty list after 0.2 s when none are left."""
        count = min(max_messages, self._left)
        if not count:
            await asyncio.sleep(0.2)
            return []
        self._left -= count
        if self._round_trip_seconds:
            await asyncio.sleep(self._round_trip_seconds)
        now = asyncio.get_running_loop().time()
        first, self._numbers = self._numbers, self._numbers + count
        numbers = range(first, self._numbers)
        return [
            Message(f"m{number}", f"r{number}", self._body, 1, ATTRIBUTES, None, 0.0, 0.0, now) for number in numbers
        ]

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Count the deleted messages."""
        if self._round_trip_seconds:
            await asyncio.sleep(self._round_trip_seconds)
        self._missing -= len(receipts)
        if self._missing <= self._warm:
            self.warm.set()
        if not self._missing:
            self.done.set()
        return []

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Do nothing."""
        return []

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Do nothing."""
        return []

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Do nothing."""
        return []

    async def aclose(self) -> None:
        """Do nothing."""


class Drained(NamedTuple):
    """CPU time of each message in µs, and messages per second of wall time."""

    microseconds: float
    per_second: float


async def measure_drain(
    queues: int, messages: int, round_trip_seconds: float = 0.0, *, metrics: bool = True
) -> Drained:
    """Handle *messages* on one worker with several queues and default settings. The first fifth does not count."""
    service = Service("scale")
    for number in range(queues):

        @service.subscribe(Placed, queue=Queue(f"scale-{number}"))
        async def handle(event: Placed) -> None: ...

    transport = EndlessTransport(messages, round_trip_seconds)
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, log_level="warning", metrics=metrics)
    worker = Worker(service, transport, settings)
    running = asyncio.create_task(worker.run())
    await transport.warm.wait()
    started, began = time.process_time(), time.perf_counter()
    await transport.done.wait()
    cpu_seconds, seconds = time.process_time() - started, time.perf_counter() - began
    worker.stop()
    await running
    measured = messages * 4 / 5
    return Drained(cpu_seconds / measured * 1e6, measured / seconds)


def run(queues: int, messages: int, round_trip_seconds: float = 0.0, *, metrics: bool = True) -> Drained:
    tune_garbage_collector()  # as `smartpipe worker` does
    with asyncio.Runner(loop_factory=choose_loop_factory()) as runner:
        return runner.run(measure_drain(queues, messages, round_trip_seconds, metrics=metrics))


def measure_queues() -> None:
    figures: dict[int, list[float]] = {queues: [] for queues in QUEUES}
    run(1, 5_000)
    for _ in range(ROUNDS):
        for queues in QUEUES:
            figures[queues].append(run(queues, MESSAGES).microseconds)
    base = median(figures[1])
    for queues, found in figures.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        ratio = median(found) / base
        print(
            f"{queues:>3} queues: {median(found):5.1f} µs of CPU per message ({spread}), {ratio:.2f} times one queue's"
        )


def measure_distance() -> None:
    figures: dict[tuple[int, float], list[Drained]] = {}
    run(1, 5_000)
    for _ in range(ROUNDS):
        for seconds in (0.0, ROUND_TRIP_SECONDS):
            for queues in (1, QUEUES[-1]):
                figures.setdefault((queues, seconds), []).append(run(queues, MESSAGES, seconds))
    for (queues, seconds), found in figures.items():
        rates, cost = [one.per_second for one in found], median(one.microseconds for one in found)
        print(
            f"{queues:>3} queues, {seconds * 1e3:2.0f} ms: {median(rates):7,.0f} messages/s "
            f"({min(rates):,.0f} to {max(rates):,.0f}), {cost:5.1f} µs of CPU each"
        )


def size_of(lease: Lease) -> int:
    """Return the memory of a lease and its message in bytes, without what the message is made of."""
    return sys.getsizeof(lease) + sys.getsizeof(lease.message) + sum(map(sys.getsizeof, (0.0,) * 4))


async def measure_reserve() -> None:
    """Measure the memory of messages that wait for a slot, which are returned after a second."""
    service, handled, blocked, release = Service("scale"), 0, asyncio.Event(), asyncio.Event()

    @service.subscribe(Placed)
    async def handle(event: Placed) -> None:
        nonlocal handled
        handled += 1
        if handled > MESSAGES // 4:
            blocked.set()
            await release.wait()

    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, log_level="warning")
    worker = Worker(service, EndlessTransport(MESSAGES, RESERVE_ROUND_TRIP_SECONDS), settings)
    running = asyncio.create_task(worker.run())
    await blocked.wait()
    await asyncio.sleep(4 * RESERVE_ROUND_TRIP_SECONDS)  # until the open receive calls have returned
    groups = worker.consumers[0]._ahead.groups  # noqa: SLF001 - nothing outside of the consumer needs it
    each = [sys.getsizeof(group) + sum(map(size_of, group)) for group in groups]
    print(f"{len(each)} messages received ahead: {median(each):,.0f} bytes each beside body, handle and attributes")
    release.set()
    worker.stop()
    await running


def measure_soak() -> None:
    process = psutil.Process()
    run(1, 20_000)
    base = process.memory_info().rss
    for messages in SOAK:
        cost = run(1, messages).microseconds
        grown = (process.memory_info().rss - base) / 1e6
        print(f"{messages:>9,} messages: {cost:5.1f} µs of CPU each, resident set {grown:+.1f} MB")


def measure_processes() -> None:
    with EmbeddedBroker("ministack") as broker:
        os.environ.update(broker.environment)
        asyncio.run(provision(computing_service))
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for processes, found in rates.items():
                asyncio.run(fill_queue())
                found.append(measure_rate(processes))
    for processes, found in rates.items():
        print(f"--processes {processes}: {median(found):.0f} messages/s ({min(found):.0f} to {max(found):.0f})")
    ratios = Counter({number: two / one for number, (one, two) in enumerate(zip(*rates.values(), strict=True))})
    print(f"ratio: {median(ratios.values()):.2f} ({min(ratios.values()):.2f} to {max(ratios.values()):.2f})")


async def fill_queue() -> None:
    async with Publisher("benchmark") as publisher:
        await publisher.publish_many(Placed(number=number) for number in range(COMPUTED))


def measure_rate(processes: int) -> float:
    """Return the messages that are handled in a second, from the first tenth of them to the last one.

    The queue is asked rarely, because asking costs CPU time of the two cores that the processes share.
    """
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName="scale")["QueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    def count_left() -> int:
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]  # type: ignore[arg-type]
        return sum(int(found[name]) for name in names)  # type: ignore[literal-required]

    command = ("worker", "benchmarks.scale_service:service", "--processes", str(processes), "--port", "0")
    worker = Process(*command, directory=str(ROOT), SMARTPIPE_WAIT_SECONDS="1")
    counts: list[tuple[float, int]] = []
    try:
        while worker.running and (not counts or counts[-1][1] > COMPUTED * 0.1):
            time.sleep(LOOK_SECONDS)
            left = count_left()
            if left < COMPUTED * 0.9:
                counts.append((time.perf_counter(), left))
        (began, first), (ended, last) = counts[0], counts[-1]
        return (first - last) / (ended - began)
    finally:
        worker.signal(
            signal.SIGTERM
        )  # a drain, because a message received by an interrupted poll would be hidden until its timeout
        worker.wait()


def main(names: Sequence[str]) -> None:
    parts: dict[str, Callable[[], None]] = {
        "queues": measure_queues,
        "distance": measure_distance,
        "reserve": lambda: asyncio.run(measure_reserve()),
        "soak": measure_soak,
        "processes": measure_processes,
    }
    for name, measure in parts.items():
        if not names or name in names:
            measure()


if __name__ == "__main__":
    main(sys.argv[1:])
