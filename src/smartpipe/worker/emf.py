"""Write the metrics of a Lambda function as CloudWatch's embedded metric format (EMF): JSON lines in its log. Pure.

Source: Amazon CloudWatch user guide, "Specification: Embedded metric format".
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from smartpipe.counters import counts_of
from smartpipe.worker.metrics import OTHER_COUNTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.counters import Counters
    from smartpipe.telemetry.histograms import Histogram
    from smartpipe.telemetry.queue_histograms import QueueHistograms

MAX_VALUES = 100
"""The length of an array of values. More values need another line."""
ALWAYS = ("handled", "retried", "dead_lettered")
"""Outcomes that are written even if they are 0, so that alarms have data. CloudWatch charges for each metric."""


class EmfDocuments:
    """The metrics of one queue, as the difference to the last call of ``render``.

    Args:
        queue: The name of the queue in its AWS account, so that two environments in one account differ.
    """

    def __init__(self, service: str, queue: str, namespace: str, counters: Counters) -> None:
        self._dimensions = {"service": service, "queue": queue}
        self._namespace = namespace
        self._counters = counters
        self._before = counts_of(counters)
        self._times: dict[str, list[Histogram]] = {}
        if counters.histograms is not None:
            self._times = _find_times(counters.histograms)
            for histogram in chain.from_iterable(self._times.values()):
                histogram.kept = []

    def render(self, now: float, request_id: str | None = None) -> Iterator[str]:
        """Yield a line for this invocation, and more lines if it had more than 100 values of a kind.

        Args:
            now: The time in seconds since 1970.
            request_id: The id of the invocation, as a field beside the metrics.
        """
        numbers: dict[str, Any] = self._take_counts()
        times = self._take_times()
        fields = {} if request_id is None else {"aws_request_id": request_id}
        for start in range(0, max([1, *map(len, times.values())]), MAX_VALUES):
            parts = {name: values[start : start + MAX_VALUES] for name, values in times.items()}
            found = {**numbers, **{name: part for name, part in parts.items() if part}}
            units = [{"Name": name, "Unit": "Seconds" if name in times else "Count"} for name in found]
            directive = {"Namespace": self._namespace, "Dimensions": [list(self._dimensions)], "Metrics": units}
            metadata = {"Timestamp": round(now * 1_000), "CloudWatchMetrics": [directive]}
            yield json.dumps({"_aws": metadata, **self._dimensions, **fields, **found}, separators=(",", ":"))
            numbers = {}  # only the first line counts

    def _take_counts(self) -> dict[str, int]:
        """Return the increase of each counter."""
        counts = counts_of(self._counters)
        increases = {name: count - self._before[name] for name, count in counts.items()}
        self._before = counts
        return {_name_counter(name): number for name, number in increases.items() if number or name in ALWAYS}

    def _take_times(self) -> dict[str, list[float]]:
        """Return the new values of the histograms in seconds."""
        if self._counters.histograms is not None:
            self._counters.histograms.fold()
        found: dict[str, list[float]] = {}
        for name, histograms in self._times.items():
            values = found[name] = []
            for histogram in histograms:
                histogram.fold()
                values += [round(value, 6) for value in histogram.kept or ()]
                histogram.kept = []
        return found


def _find_times(histograms: QueueHistograms) -> dict[str, list[Histogram]]:
    types = (*histograms.types.values(), histograms.other)
    calls = [
        histogram
        for outcomes in histograms.handlers.values()
        for outcome, histogram in outcomes.items()
        if outcome != "deferred"  # the handler did not run
    ]
    return {
        "critical_time_seconds": [one.critical_time for one in types],
        "queue_time_seconds": [one.queue_time for one in types],
        "handler_seconds": calls,
    }


def _name_counter(name: str) -> str:
    """Return the name of a counter: that of Prometheus without prefix and suffix, or ``messages_`` and the outcome."""
    if name in OTHER_COUNTERS:
        return OTHER_COUNTERS[name][0].removeprefix("smartpipe_").removesuffix("_total")
    return f"messages_{name}"
