"""The metrics of calls to SNS and SQS, and of published events."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from smartpipe.errors import THROTTLES
from smartpipe.names import name_in
from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.histograms import CALL_BOUNDS, ENTRY_BOUNDS, FOLD_AT, Histogram
from smartpipe.telemetry.queue_histograms import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.telemetry.families import Labels

K = TypeVar("K")

PUBLISHED = "published"
MAX_CODES = 100
"""AWS has fewer error codes than that for these calls. Without a limit, a broker could add any number of labels."""
MAX_DESTINATIONS = 1_000
"""Topics and queues beyond this number share a label. An application may send to a queue of each of its clients."""


class CallKey(NamedTuple):
    """A kind of call.

    Args:
        operation: The method of Transport.
        error: The code of the error that the call raised; empty if it succeeded.
    """

    operation: str
    destination: str
    error: str


class CallMetrics:
    """How long calls took, and how many entries each request to publish or to send had."""

    def __init__(self) -> None:
        self.seconds: dict[CallKey, Histogram] = {}
        self.entries: dict[str, Histogram] = {}
        self._codes: set[str] = set()
        self._destinations: set[str] = set()
        self._succeeded: dict[tuple[str, str], Histogram] = {}

    def record(self, operation: str, destination: str, error: str, seconds: float) -> None:
        """Record a call that has ended. A destination that is an ARN is recorded by its name, without the account."""
        if not error and (operation, destination) in self._succeeded:
            self._succeeded[operation, destination].record(seconds)
            return
        name = limit_labels(name_in(destination), self._destinations, MAX_DESTINATIONS)
        key = CallKey(operation, name, limit_labels(error, self._codes, MAX_CODES) if error else "")
        _record(self.seconds, key, CALL_BOUNDS, seconds)
        if not error and len(self._succeeded) < MAX_DESTINATIONS:
            self._succeeded[operation, destination] = self.seconds[key]  # the next call finds it at once

    def record_entries(self, destination: str, count: int) -> None:
        """Record the number of entries of a request that publishes or sends."""
        name = limit_labels(name_in(destination), self._destinations, MAX_DESTINATIONS)
        _record(self.entries, name, ENTRY_BOUNDS, count)

    def collect(self, labels: Labels) -> Iterator[Family]:
        """Yield the metrics, each sample with *labels*."""
        calls = [Sample({**labels, **key._asdict()}, histogram) for key, histogram in list(self.seconds.items())]
        yield Family("smartpipe_call_seconds", "histogram", "Duration of calls to SNS and SQS by operation.", calls)
        fills = [Sample({**labels, "destination": name}, one) for name, one in list(self.entries.items())]
        yield Family("smartpipe_publish_batch_entries", "histogram", "Entries in each publishing request.", fills)
        throttled: dict[tuple[str, str], int] = {}
        for key, histogram in list(self.seconds.items()):
            pair = key.operation, key.destination
            throttled[pair] = throttled.get(pair, 0) + (histogram.count if is_throttling(key.error) else 0)
        yield Family(
            "smartpipe_throttled_total",
            "counter",
            "Calls that SNS or SQS refused because there were too many.",
            [
                Sample({**labels, "operation": operation, "destination": destination}, count)
                for (operation, destination), count in throttled.items()
            ],
        )


class PublishMetrics:
    """The results of published events, and how long they took, retries included. Threads may share one.

    ``chunks`` has, for each group of events that was sent together, its destination, the number of events, the codes of
    those that failed, and the seconds from the first request to the last response. Read the rest after ``fold``.
    """

    def __init__(self) -> None:
        self.results: dict[tuple[str, str], int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.chunks: list[tuple[str, int, list[str], float]] = []
        self._codes: set[str] = set()
        self._destinations: set[str] = set()
        self._lock = Lock()

    def record(self, destination: str, events: int, codes: list[str], seconds: float) -> None:
        """Record a group of events that was sent together; see ``chunks``."""
        self.chunks.append((destination, events, codes, seconds))
        if len(self.chunks) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Count the chunks since the last call."""
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        chunks = self.chunks[:]
        del self.chunks[: len(chunks)]  # another thread may have added one since
        for name, events, codes, seconds in chunks:
            destination = limit_labels(name_in(name), self._destinations, MAX_DESTINATIONS)
            if destination not in self.seconds:
                self.seconds[destination] = Histogram(CALL_BOUNDS)
                self.results[destination, PUBLISHED] = 0
            self.results[destination, PUBLISHED] += events - len(codes)
            for code in codes:
                key = destination, limit_labels(code, self._codes, MAX_CODES)
                self.results[key] = self.results.get(key, 0) + 1
            for _ in range(events - len(codes)):
                self.seconds[destination].record(seconds)

    def collect(self, labels: Labels) -> Iterator[Family]:
        """Yield the metrics, each sample with *labels*."""
        self.fold()
        results = [
            Sample({**labels, "destination": destination, "result": result}, count)
            for (destination, result), count in list(self.results.items())
        ]
        yield Family("smartpipe_published_total", "counter", "Events by the result of their publication.", results)
        times = [Sample({**labels, "destination": name}, one) for name, one in list(self.seconds.items())]
        yield Family(
            "smartpipe_publish_seconds",
            "histogram",
            "Time until SNS or SQS accepted an event, retries included.",
            times,
        )


def _record(histograms: dict[K, Histogram], key: K, bounds: tuple[float, ...], value: float) -> None:
    histogram = histograms.get(key)
    if histogram is None:
        histogram = histograms[key] = Histogram(bounds)
    histogram.record(value)


def is_throttling(code: str) -> bool:
    """Return whether AWS says with *code* that a caller makes too many requests."""
    return code in THROTTLES


def limit_labels(label: str, known: set[str], limit: int) -> str:
    """Return *label*, or OTHER if it would be one more than *limit* of the *known* ones, to which it is added."""
    if label not in known:
        if len(known) >= limit:
            return OTHER
        known.add(label)
    return label
