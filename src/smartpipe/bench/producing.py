"""The producer: events in, as fast as they go or each at its time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.bench.counting import CountingTransport
from smartpipe.bench.fanout import SOURCE, TICKS_PER_SECOND, Measured, padding_for
from smartpipe.bench.messages import Published
from smartpipe.errors import PublishError
from smartpipe.publisher.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.bench.load import Load
    from smartpipe.transport import Transport

MAX_WAITING = 2_000
"""Of events whose time has come and that are not published yet: more would only wait in memory."""


class Producer:
    """Publishes its share of the events, and knows what it took.

    Args:
        number: Which of the producers it is, from 0.
    """

    def __init__(self, load: Load, number: int, transport: Transport) -> None:
        self._load = load
        self._number = number
        self._padding = padding_for(load.size_bytes)
        self._transport = CountingTransport(transport, self._taken)
        self._publisher = Publisher(SOURCE, transport=self._transport)
        self._course: Counter[int] = Counter()
        self._ended_at = 0.0
        self._failures: list[str] = []
        self._measuring = False
        self.done = 0

    async def warm_up(self) -> None:
        """Publish what is not measured.

        Raises:
            PublishError: Some of it was not published.
        """
        await self._publisher.publish_many(self._events(self._load.warmup_numbers(self._number)))

    async def produce(self, begin_at: float) -> Published:
        """Publish what is measured, and report. What cannot be published is counted, and nothing is raised.

        Args:
            begin_at: When the run begins, on the machine's monotonic clock.
        """
        await asyncio.sleep(begin_at - time.monotonic())
        self._transport.reset()
        self._measuring = True
        begun_at, cpu = time.monotonic(), time.process_time()
        numbers = self._load.numbers(self._number)
        if self._load.rate_per_second is None:
            await self._publish_all(numbers)
        else:
            begun_at = begin_at
            await self._publish_in_time(numbers, begin_at)
        return Published(
            begun_at=begun_at,
            ended_at=max(self._ended_at, begun_at),
            cpu_seconds=time.process_time() - cpu,
            transport=self._transport.name,
            requests=self._transport.requests,
            course=dict(self._course),
            published=self.done,
            failed=len(self._failures),
            failure=self._failures[0] if self._failures else "",
        )

    async def aclose(self) -> None:
        """Close its publisher."""
        await self._publisher.aclose()

    def _events(self, numbers: Iterable[int]) -> Iterator[Measured]:
        for number in numbers:  # read as requests leave: due is when there was room for it
            yield Measured(number=number, due=time.monotonic(), padding=self._padding)

    async def _publish_all(self, numbers: Iterable[int]) -> None:
        try:
            await self._publisher.publish_many(self._events(numbers))
        except PublishError as error:
            self._failures += [f"{failure.code}: {failure.detail}" for failure in error.failures]

    async def _publish_in_time(self, numbers: Iterable[int], begin_at: float) -> None:
        """Publish each event at its time, whatever became of those before it."""
        room = asyncio.Semaphore(MAX_WAITING)
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                due = self._load.due(number, begin_at)
                assert due is not None  # noqa: S101 - there is a rate
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                await room.acquire()
                event = Measured(number=number, due=due, padding=self._padding)
                group.create_task(self._publish(event)).add_done_callback(lambda _: room.release())

    async def _publish(self, event: Measured) -> None:
        try:
            await self._publisher.publish(event)
        except PublishError as error:
            self._failures += [f"{failure.code}: {failure.detail}" for failure in error.failures]

    def _taken(self, count: int) -> None:
        if not self._measuring:
            return
        self._ended_at = time.monotonic()
        self._course[int(self._ended_at * TICKS_PER_SECOND)] += count
        self.done += count
