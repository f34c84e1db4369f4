"""The event that is measured, the services that handle it, and what each of their processes notes."""

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
"""Of the machine's clock: what a process did in each of them is one count, from which the course is made."""


class Measured(Event, topic=Topic("events"), type="smartpipe.bench.measured", version="1.0"):
    """An event on its way.

    Args:
        number: From 0; below 0 it only warms up.
        due: When it was to be published, on the machine's monotonic clock, which all its processes share.
    """

    number: int
    due: float
    padding: str


class Ledger:
    """What one worker process handled. It only appends while it runs; figures are made of it afterwards.

    Args:
        events: How many there will be.
    """

    def __init__(self, events: int) -> None:
        self.seen = bytearray(events)
        self.distinct = 0
        self.deliveries = 0
        self.warm = 0
        self.latencies_seconds = array("d")
        self.handled_at = array("d")

    def note(self, event: Measured) -> None:
        """Enter one delivery; how long it took counts at the first of an event only."""
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


def service_of(queue: int, ledger: Ledger) -> Service:
    """Return the service of one queue, from 1, whose handler notes the event and returns."""
    service = Service(f"queue-{queue}")

    @service.subscribe(Measured)
    async def handle(event: Measured) -> None:
        ledger.note(event)

    return service


def services_of(load: Load) -> list[Service]:
    """Return all of them, for their topology."""
    return [service_of(queue, Ledger(0)) for queue in range(1, load.queues + 1)]


def padding_for(size_bytes: int) -> str:
    """Return what fills an event up to a message of that size, within a few bytes.

    Raises:
        ConfigError: The envelope alone is longer.
    """
    least = prepare(Publication(Measured(number=100_000, due=100_000.123456, padding="")), source=SOURCE)
    padding = size_bytes - least.message.size_bytes
    if padding < 0:
        msg = f"--size {size_bytes} is less than the envelope alone, which is {least.message.size_bytes} bytes"
        raise ConfigError(msg)
    return "x" * padding


def course(moments: Iterable[float]) -> Counter[int]:
    """Return how many of *moments*, of the machine's monotonic clock, fall into each tick."""
    return Counter(int(moment * TICKS_PER_SECOND) for moment in moments)


def merged(courses: Iterable[Mapping[int, int]]) -> Counter[int]:
    """Return the courses of several processes as one."""
    total: Counter[int] = Counter()
    for one in courses:
        total.update(one)
    return total
