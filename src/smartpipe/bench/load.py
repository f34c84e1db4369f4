"""The load of a run: how many events, queues and processes, and at which rate. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from smartpipe.errors import ConfigError
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES
from smartpipe.settings import DEFAULT_CONCURRENCY

MAX_EVENTS = 100_000_000
"""Each worker keeps one byte for each event, to record which of them it has handled."""

_RANGES: dict[str, tuple[float, float]] = {
    "events": (1, MAX_EVENTS),
    "warmup": (0, MAX_EVENTS),
    "size_bytes": (1, DEFAULT_TOPIC_LIMIT_BYTES),
    "queues": (1, 100),
    "producers": (1, 100),
    "processes": (1, 100),
    "concurrency": (1, 10_000),
    "rate_per_second": (1, 1_000_000),
    "patience_seconds": (1, 3_600),
}
FLAGS = {"size_bytes": "--size", "rate_per_second": "--rate", "patience_seconds": "--patience"}


@dataclass(frozen=True, kw_only=True)
class Load:
    """The number and size of the events, and the producers, queues and workers that they pass through.

    Args:
        warmup: The number of events that are published before the measured ones; see ``default_warmup``.
        size_bytes: The size of each message, as SNS counts it.
        producers: The number of processes that publish.
        processes: The number of worker processes of each queue.
        concurrency: The number of messages that each worker handles concurrently; by default as ``smartpipe worker``.
        rate_per_second: The rate of all producers together, with a due time for each event. None publishes as fast as
            possible.
        patience_seconds: The run ends if no event is published or handled for this time.

    Raises:
        ConfigError: Values are out of range. The error lists all of them.
    """

    events: int = 5_000
    warmup: int = 500
    size_bytes: int = 1_024
    queues: int = 3
    producers: int = 1
    processes: int = 1
    concurrency: int = DEFAULT_CONCURRENCY
    rate_per_second: float | None = None
    patience_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check all values, and report all errors together."""
        errors = []
        for field in fields(self):
            value: Any = getattr(self, field.name)
            low, high = _RANGES[field.name]
            if value is not None and not low <= value <= high:
                flag = FLAGS.get(field.name, f"--{field.name}")
                errors.append(f"{flag}={value:.12g} is outside the range {low:,} to {high:,}")
        if errors:
            raise ConfigError(errors)

    @property
    def deliveries(self) -> int:
        """The expected number of measured deliveries: one of each event to each queue."""
        return self.events * self.queues

    def event_numbers(self, producer: int) -> range:
        """Return the numbers of one producer's events, from 0. Producers take turns, so they share one schedule."""
        return range(producer, self.events, self.producers)

    def warmup_event_numbers(self, producer: int) -> range:
        """Return the numbers of the producer's events that are not measured. They are negative."""
        return range(-1 - producer, -1 - self.warmup, -self.producers)

    def due_at(self, number: int, begin_at: float) -> float | None:
        """Return when the event must be published if the run begins at *begin_at*. None means as soon as possible."""
        return None if self.rate_per_second is None else begin_at + number / self.rate_per_second


def default_warmup(events: int) -> int:
    """Return the number of warm-up events of a run: a tenth of its events, at most 1,000."""
    return min(1_000, events // 10)
