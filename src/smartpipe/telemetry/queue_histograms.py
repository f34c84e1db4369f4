"""The histograms of one queue's consumer."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from pydantic import AwareDatetime, TypeAdapter

from smartpipe.telemetry.histograms import AGE_BOUNDS, ATTEMPT_BOUNDS, HANDLER_BOUNDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

OTHER = "other"
"""The label of event types that the service does not know. Without it, a producer could add any number of them."""
CALL_OUTCOMES = ("handled", "failed", "timed_out", "deferred")
"""The ends of a handler call. ``deferred``: it did not run, because another worker had the event, or a resource or the
idempotency store was missing."""


_Settled: TypeAlias = tuple[str | None, datetime | None, float | None, int, float, float, bool]
"""The event's type and time, when the message was sent, its receive count, the time when it was settled (Unix seconds),
how long its handlers took (seconds), and whether it was handled."""

_EPOCH: datetime = TypeAdapter[datetime](AwareDatetime).validate_python("1970-01-01T00:00:00Z")
"""It has the same time zone object as the times that Pydantic reads. Python subtracts such times without asking for
their offsets, which would take longer than the rest."""


class EventTimes:
    """The histograms of one event type.

    Args:
        critical_time: From the event's time to the moment when its message is settled for the last time.
        queue_time: From the moment when the queue got the message to the moment when the worker begins with it. Only
            first deliveries count: a later one has waited for its retry.
    """

    __slots__ = ("critical_time", "queue_time")

    def __init__(self) -> None:
        self.critical_time = Histogram(AGE_BOUNDS)
        self.queue_time = Histogram(AGE_BOUNDS)


class QueueHistograms:
    """The histograms of one queue.

    To compute times for each message at its end would cost several times as much as to do it for a hundred in a row,
    because code and data would not be in the processor's cache. So ``settled`` collects what is needed, and ``fold``
    computes. Read the histograms after a ``fold``.

    Args:
        types: The types that the handlers of the queue declare. All others share the times of ``OTHER``, and so does
            a type of this name: two series with one label would be two values of one metric.
    """

    def __init__(self, types: Iterable[str]) -> None:
        self.other = EventTimes()
        self.types = {name: EventTimes() for name in types if name != OTHER}
        self.receive_counts = Histogram(ATTEMPT_BOUNDS)
        self.handlers: dict[str, dict[str, Histogram]] = {}
        self.dead_letters: dict[str, int] = {}
        self.future_events = 0
        self.settled: list[_Settled] = []

    def add_handler(self, name: str) -> dict[str, Histogram]:
        """Return the histograms of the calls of a handler, by outcome."""
        return self.handlers.setdefault(name, {outcome: Histogram(HANDLER_BOUNDS) for outcome in CALL_OUTCOMES})

    def add_exemplar(self, type_: str, event_time: datetime, trace_id: str) -> None:
        """Remember the trace of an event that has been handled at this moment, as an exemplar of its critical time."""
        age = max(0.0, time.time() - (event_time - _EPOCH).total_seconds())
        self.types.get(type_, self.other).critical_time.add_exemplar(age, trace_id)

    def fold(self) -> None:
        """Compute the times of the messages that have been settled since the last call."""
        settled, self.settled = self.settled, []
        types, other = self.types, self.other
        for type_, event_time, sent_at, receive_count, settled_at, seconds, handled in settled:
            times = types.get(type_, other) if type_ is not None else other
            if event_time is not None:
                age = settled_at - (event_time - _EPOCH).total_seconds()
                if age < 0:  # the clock of the producer is ahead
                    self.future_events += 1
                    age = 0.0
                times.critical_time.waiting.append(age)
            if sent_at is not None and receive_count == 1:
                times.queue_time.waiting.append(max(0.0, settled_at - seconds - sent_at))
            if handled:
                self.receive_counts.waiting.append(receive_count)
        for times in (*types.values(), other):
            times.critical_time.fold()
            times.queue_time.fold()
        self.receive_counts.fold()
