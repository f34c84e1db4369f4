"""The measured event, the services that handle it, and the record that each worker keeps."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.events import Event
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.service import Service
from smartpipe.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.bench.load import Load

SOURCE = "smartpipe-bench"
TICKS_PER_SECOND = 100
"""A tick is 1/100 s of the machine's clock. Each process counts its events per tick, for the timeline."""


class Measured(Event, topic=Topic("events"), type="smartpipe.bench.measured", version="1.0"):
    """A measured event.

    Args:
        number: The number of the event, from 0; negative for the warm-up.
        due: When it had to be published, on the machine's monotonic clock, which all its processes share.
    """

    number: int
    due: float
    padding: str


class HandledEvents:
    """The events that one worker process has handled. While the worker runs, it only appends; figures come later.

    Args:
        events: The number of measured events of the run.
    """

    def __init__(self, events: int) -> None:
        self.seen = bytearray(events)
        self.distinct = 0
        self.deliveries = 0
        self.warm = 0
        self.latencies_seconds = array("d")
        self.handled_at = array("d")

    def add(self, event: Measured) -> None:
        """Record one delivery. Only the first delivery of an event counts for latency."""
        now = time.monotonic()
        number = event.number
        if number < 0:
            self.warm += 1
            return
        self.deliveries += 1
        if not self.seen[number]:
            self.seen[number] = 1
            self.distinct += 1
            self.latencies_seconds.append(now - event.due)
            self.handled_at.append(now)


def build_service(queue: int, handled: HandledEvents) -> Service:
    """Return the service of one queue (numbered from 1). Its handler only records the event."""
    service = Service(f"queue-{queue}")

    @service.subscribe(Measured)
    async def handle(event: Measured) -> None:
        handled.add(event)

    return service


def build_services(load: Load) -> list[Service]:
    """Return the services of all queues, to derive the topology from."""
    return [build_service(queue, HandledEvents(0)) for queue in range(1, load.queues + 1)]


def padding_for(size_bytes: int) -> str:
    """Return the padding that gives a message this size, within a few bytes.

    Raises:
        ConfigError: The envelope alone is larger.
    """
    smallest = prepare(Publication(Measured(number=100_000, due=100_000.123456, padding="")), source=SOURCE)
    padding = size_bytes - smallest.message.size_bytes
    if padding < 0:
        msg = f"--size {size_bytes} is less than the envelope alone, which is {smallest.message.size_bytes} bytes"
        raise ConfigError(msg)
    return "x" * padding


def count_ticks(times: Iterable[float]) -> Counter[int]:
    """Return the number of *times*, on the machine's monotonic clock, in each tick."""
    return Counter(int(moment * TICKS_PER_SECOND) for moment in times)


def merge_ticks(timelines: Iterable[Mapping[int, int]]) -> Counter[int]:
    """Return the sum of the timelines of several processes."""
    total: Counter[int] = Counter()
    for timeline in timelines:
        total.update(timeline)
    return total
