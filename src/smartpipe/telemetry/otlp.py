"""Convert our metrics to the data that exporters of OpenTelemetry accept. Pure.

The package opentelemetry-sdk is an extra, so import this module only when metrics are exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from smartpipe.telemetry.conventions import (
    CONSUMED_MESSAGES,
    OPERATION_DURATION,
    PROCESS_DURATION,
    SENT_MESSAGES,
    derive_conventions,
)
from smartpipe.telemetry.histograms import Histogram
from smartpipe.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from opentelemetry.sdk.resources import Resource

    from smartpipe.telemetry.families import Family, Sample

UNITS = {
    OPERATION_DURATION: "s",
    SENT_MESSAGES: "{message}",
    CONSUMED_MESSAGES: "{message}",
    PROCESS_DURATION: "s",
}
NANOSECONDS = 1_000_000_000


def name_and_unit(family: Family) -> tuple[str, str]:
    """Return the name and the unit that a family has in OTLP.

    Names begin with ``smartpipe.``, and the suffixes for the unit and for counters are left out. Prometheus adds both
    again when it receives OTLP, so its names are the same in both ways. It would also add ``_ratio`` to a gauge whose
    unit is 1, so numbers without a unit have an empty one.
    """
    if family.name in UNITS:
        return family.name, UNITS[family.name]
    name = family.name.removesuffix("_total")
    seconds = name.removesuffix("_seconds")
    return seconds.replace("_", ".", 1), "s" if seconds != name else ""


def convert(families: Sequence[Family], resource: Resource, *, start: int, now: int) -> MetricsData:
    """Return *families* and the metrics of the conventions as cumulative data.

    Args:
        start, now: When counting began, and when the families were collected, in nanoseconds since 1970.
    """
    metrics = [
        Metric(*_name_text_and_unit(family), data=_convert_family(family, start, now))
        for family in (*families, *derive_conventions(families))
        if family.samples
    ]
    scope = InstrumentationScope("smartpipe", __version__)
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], resource.schema_url)])


def _name_text_and_unit(family: Family) -> tuple[str, str, str]:
    """Return the name, the description and the unit of a family, in the order in which a Metric takes them."""
    name, unit = name_and_unit(family)
    return name, family.help, unit


def _convert_family(family: Family, start: int, now: int) -> Sum | Gauge | HistogramData:
    if family.kind == "histogram":
        points = [point for sample in family.samples for point in _convert_histogram(sample, start, now)]
        return HistogramData(points, AggregationTemporality.CUMULATIVE)
    numbers = [
        NumberDataPoint(dict(labels), None if family.kind == "gauge" else start, now, value)  # type: ignore[arg-type]
        for labels, value in family.samples
        if not isinstance(value, Histogram)
    ]
    return Gauge(numbers) if family.kind == "gauge" else Sum(numbers, AggregationTemporality.CUMULATIVE, True)


def _convert_histogram(sample: Sample, start: int, now: int) -> Iterable[HistogramDataPoint]:
    histogram = sample.value
    if isinstance(histogram, Histogram):
        counts, total = histogram.snapshot()
        yield HistogramDataPoint(
            attributes=dict(sample.labels),
            start_time_unix_nano=start,
            time_unix_nano=now,
            count=sum(counts),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=list(histogram.bounds),
            min=None,  # type: ignore[arg-type]  # optional in OTLP, and not known here
            max=None,  # type: ignore[arg-type]
            exemplars=list(_convert_exemplars(histogram)),
        )


def _convert_exemplars(histogram: Histogram) -> Iterator[Exemplar]:
    for one in list(histogram.exemplars.values()):
        # Without a span id, exporters would leave out the trace id. Zeros mean "no span".
        yield Exemplar({}, one.value, int(one.time * NANOSECONDS), span_id=0, trace_id=int(one.trace_id, 16))
