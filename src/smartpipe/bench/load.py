"""What a run is to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from smartpipe.errors import ConfigError
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES

MAX_EVENTS = 100_000_000
"""Each worker has a byte for each event, to know which of them came."""

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
    """How many events of which size go from how many producers to how many queues.

    Args:
        warmup: So many events go before those that are measured; see ``usual_warmup``.
        size_bytes: Of each message, as SNS counts it.
        producers: Processes that publish.
        processes: Workers of each queue.
        concurrency: Messages that each worker handles at once.
        rate_per_second: Events of all producers together, each due at its time; None: as fast as it goes.
        patience_seconds: So long without anything published or handled ends the run.

    Raises:
        ConfigError: Values out of range, all of them.
    """

    events: int = 5_000
    warmup: int = 500
    size_bytes: int = 1_024
    queues: int = 3
    producers: int = 1
    processes: int = 1
    concurrency: int = 100
    rate_per_second: float | None = None
    patience_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        problems = []
        for field in fields(self):
            value: Any = getattr(self, field.name)
            low, high = _RANGES[field.name]
            if value is not None and not low <= value <= high:
                flag = FLAGS.get(field.name, f"--{field.name}")
                problems.append(f"{flag}={value:.12g} is outside of {low:,} to {high:,}")
        if problems:
            raise ConfigError(problems)

    @property
    def deliveries(self) -> int:
        """How many are measured: each event comes to each queue."""
        return self.events * self.queues

    def numbers(self, producer: int) -> range:
        """Return the events of one producer, counted from 0: they take turns, so that a rate's schedule is one."""
        return range(producer, self.events, self.producers)

    def warmup_numbers(self, producer: int) -> range:
        """Return its events that are not measured: their numbers are below 0."""
        return range(-1 - producer, -1 - self.warmup, -self.producers)

    def due(self, number: int, begin: float) -> float | None:
        """Return when the event is to be published, *begin* being the run's; None: as soon as there is room."""
        return None if self.rate_per_second is None else begin + number / self.rate_per_second


def usual_warmup(events: int) -> int:
    """Return how many events warm a run of so many up: a tenth, and 1,000 at most."""
    return min(1_000, events // 10)
