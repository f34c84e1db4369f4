"""Publish events, as fast as possible or each at its due time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.bench.counting import CountingTransport
from smartpipe.bench.fanout import SOURCE, TICKS_PER_SECOND, Measured, padding_for
from smartpipe.bench.messages import ProducerReport
from smartpipe.errors import PublishError
from smartpipe.publisher.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.bench.load import Load
    from smartpipe.transport import Transport

MAX_PENDING = 2_000
"""The maximum number of events that are due and not yet published. More would only wait in memory."""


class Producer:
    """Publishes its share of the events, and measures its requests and CPU time.

    Args:
        number: The number of the producer, from 0.
        transport_name: The name of the transport in the report.
    """

    def __init__(self, load: Load, number: int, transport: Transport, transport_name: str) -> None:
        self._load = load
        self._number = number
        self._transport_name = transport_name
        self._padding = padding_for(load.size_bytes)
        self._transport = CountingTransport(transport, self._count_published)
        self._publisher = Publisher(SOURCE, transport=self._transport)
        self._timeline: Counter[int] = Counter()
        self._ended_at = 0.0
        self._failures: list[str] = []
        self._measuring = False
        self.done = 0

    async def warm_up(self) -> None:
        """Publish the events of the warm-up.

        Raises:
            PublishError: Some events could not be published.
        """
        await self._publisher.publish_many(self._events(self._load.warmup_event_numbers(self._number)))

    async def publish(self, begin_at: float) -> ProducerReport:
        """Publish the measured events, and return the report. Failures are counted, not raised.

        Args:
            begin_at: When the run begins, on the machine's monotonic clock.
        """
        await asyncio.sleep(begin_at - time.monotonic())
        self._transport.reset()
        self._measuring = True
        begun_at, cpu_seconds = time.monotonic(), time.process_time()
        numbers = self._load.event_numbers(self._number)
        if self._load.rate_per_second is None:
            await self._publish_all(numbers)
        else:
            begun_at = begin_at
            await self._publish_on_schedule(numbers, begin_at)
        return ProducerReport(
            begun_at=begun_at,
            ended_at=max(self._ended_at, begun_at),
            cpu_seconds=time.process_time() - cpu_seconds,
            transport=self._transport_name,
            requests=self._transport.requests,
            timeline=dict(self._timeline),
            published=self.done,
            failed=len(self._failures),
            failure=self._failures[0] if self._failures else "",
        )

    async def aclose(self) -> None:
        """Close the publisher."""
        await self._publisher.aclose()

    def _events(self, numbers: Iterable[int]) -> Iterator[Measured]:
        for number in numbers:  # publish_many reads an event when it has room for it, and that is when it is due
            yield Measured(number=number, due=time.monotonic(), padding=self._padding)

    async def _publish_all(self, numbers: Iterable[int]) -> None:
        try:
            await self._publisher.publish_many(self._events(numbers))
        except PublishError as error:
            self._failures += [f"{failure.code}: {failure.detail}" for failure in error.failures]

    async def _publish_on_schedule(self, numbers: Iterable[int], begin_at: float) -> None:
        """Publish each event at its due time, even if earlier events are late or have failed."""
        pending = asyncio.Semaphore(MAX_PENDING)
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                due = self._load.due_at(number, begin_at)
                assert due is not None  # noqa: S101 - the load has a rate
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                await pending.acquire()
                event = Measured(number=number, due=due, padding=self._padding)
                group.create_task(self._publish(event)).add_done_callback(lambda _: pending.release())

    async def _publish(self, event: Measured) -> None:
        try:
            await self._publisher.publish(event)
        except PublishError as error:
            self._failures += [f"{failure.code}: {failure.detail}" for failure in error.failures]

    def _count_published(self, count: int) -> None:
        if not self._measuring:
            return
        self._ended_at = time.monotonic()
        self._timeline[int(self._ended_at * TICKS_PER_SECOND)] += count
        self.done += count
