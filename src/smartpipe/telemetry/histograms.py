"""Histograms: how many values fell into each range.

Code on the path of each event writes the lines of ``Histogram.record`` itself, which saves a call.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from threading import Lock
from typing import NamedTuple

CALL_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds, for requests. Source: OpenTelemetry, "Semantic conventions for messaging client metrics", 1.44."""
HANDLER_BOUNDS = (0.001, 0.0025, *CALL_BOUNDS, 30.0, 60.0, 300.0)
"""Seconds. Many handlers are faster or slower than the conventions' bounds, all of which are among these."""
AGE_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0)
"""Seconds, for the time since an event or a message came into being: messages may wait for days."""
ATTEMPT_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0)
ENTRY_BOUNDS = tuple(map(float, range(1, 11)))
"""Entries of a batch request."""


FOLD_AT = 100
"""Values that wait at most. To fold as many takes about 0.02 ms."""


class Exemplar(NamedTuple):
    """One of the values in a bucket, with the trace that it belongs to. ``time`` is in seconds since 1970."""

    trace_id: str
    value: float
    time: float


class Histogram:
    """Counts values by bucket, also from several threads.

    New values wait in a list until there are many, because to sort them then costs less than to find the bucket of each
    one. ``fold`` counts those that wait. Read ``counts`` and ``sum`` after a ``fold``. If ``kept`` is a list, ``fold``
    also appends the values to it, for an exporter that writes each one and clears the list.

    Args:
        bounds: The upper bounds of all buckets but the last one, ascending. A value that equals a bound is in its
            bucket.
    """

    __slots__ = ("_lock", "bounds", "counts", "exemplars", "kept", "sum", "waiting")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        self.waiting: list[float] = []
        self.kept: list[float] | None = None
        self._lock = Lock()

    def record(self, value: float) -> None:
        """Add a value."""
        self.waiting.append(value)
        if len(self.waiting) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Count the values that wait."""
        with self._lock:
            values = self.waiting[:]
            del self.waiting[: len(values)]  # another thread may have added one since
            if not values:
                return
            if self.kept is not None:
                self.kept += values
            self.sum += math.fsum(values)
            values.sort()
            below = 0
            for index, bound in enumerate(self.bounds):
                up_to = bisect_right(values, bound, below)
                self.counts[index] += up_to - below
                below = up_to
            self.counts[-1] += len(values) - below

    def snapshot(self) -> tuple[list[int], float]:
        """Return the counts and the sum of all values, those that wait included, as they are at one moment."""
        self.fold()
        with self._lock:
            return self.counts[:], self.sum

    def add_exemplar(self, value: float, trace_id: str) -> None:
        """Remember the trace of a value that has been recorded, for its bucket. A later one replaces it."""
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(trace_id, value, time.time())

    @property
    def count(self) -> int:
        """The number of values, those that wait included."""
        return sum(self.counts) + len(self.waiting)
