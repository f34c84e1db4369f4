"""The four metrics of OpenTelemetry's messaging conventions, computed from ours. Pure.

Source: OpenTelemetry, "Semantic conventions for messaging client metrics", 1.44. They are in development, so all
their names are here.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from smartpipe.telemetry.call_metrics import PUBLISHED
from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.histograms import CALL_BOUNDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smartpipe.telemetry.families import Labels

OPERATION_DURATION = "messaging.client.operation.duration"
SENT_MESSAGES = "messaging.client.sent.messages"
CONSUMED_MESSAGES = "messaging.client.consumed.messages"
PROCESS_DURATION = "messaging.process.duration"

OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
ERROR_TYPE = "error.type"

SNS = "aws.sns"
SQS = "aws_sqs"
OPERATIONS = {
    "publish": ("send", SNS),
    "send": ("send", SQS),
    "receive": ("receive", SQS),
    "delete": ("settle", SQS),
    "change_visibility": ("settle", SQS),
    "process": ("process", SQS),
}
"""The type and the system of each operation. ``count_messages`` does not concern messages, so it is not among them."""


def derive_conventions(families: Iterable[Family]) -> Iterator[Family]:
    """Yield the metrics of the conventions for which *families* have samples."""
    found = {family.name: family.samples for family in families}
    calls = found.get("smartpipe_call_seconds", ())
    yield from _yield_histograms(
        OPERATION_DURATION,
        "Duration of messaging operation initiated by a producer or consumer client.",
        [
            (_attributes(labels["operation"], labels["destination"], labels["error"]), value)
            for labels, value in calls
            if labels["operation"] in OPERATIONS and isinstance(value, Histogram)
        ],
    )
    sent = found.get("smartpipe_published_total", ())
    by_send = _find_queues(calls)
    yield from _yield_counters(
        SENT_MESSAGES,
        "Number of messages producer attempted to send to the broker.",
        [
            (
                _attributes(
                    "send" if labels["destination"] in by_send else "publish",
                    labels["destination"],
                    "" if labels["result"] == PUBLISHED else labels["result"],
                ),
                value,
            )
            for labels, value in sent
        ],
    )
    yield from _yield_counters(
        CONSUMED_MESSAGES,
        "Number of messages that were delivered to the application.",
        [
            (_attributes("receive", labels["queue"]), value)
            for labels, value in found.get("smartpipe_messages_received_total", ())
        ],
    )
    yield from _yield_histograms(
        PROCESS_DURATION,
        "Duration of processing operation.",
        [
            (_attributes("process", labels["queue"], "" if labels["outcome"] == "handled" else labels["outcome"]), one)
            for labels, one in found.get("smartpipe_handler_seconds", ())
            if labels["outcome"] != "deferred" and isinstance(one, Histogram)
        ],
    )


def _attributes(operation: str, destination: str, error: str = "") -> dict[str, str]:
    kind, system = OPERATIONS[operation]
    attributes = {OPERATION_NAME: operation, OPERATION_TYPE: kind, SYSTEM: system, DESTINATION: destination}
    return {**attributes, **({ERROR_TYPE: error} if error else {})}


def _find_queues(calls: Iterable[Sample]) -> set[str]:
    """Return the destinations that events were sent to as queues: those with send calls and without publish calls.

    If a topic and a queue share a name, the results of both have one sample, which counts as the topic's.
    """
    used: dict[str, set[str]] = {"publish": set(), "send": set()}
    for labels, _ in calls:
        used.get(labels["operation"], set()).add(labels["destination"])
    return used["send"] - used["publish"]


def _yield_histograms(name: str, text: str, parts: Sequence[tuple[dict[str, str], Histogram]]) -> Iterator[Family]:
    """Yield a family with the sum of all histograms that have the same attributes, if there are any."""
    sums: dict[tuple[str, ...], tuple[Labels, list[Histogram]]] = {}
    for attributes, histogram in parts:
        if histogram.count:
            sums.setdefault(tuple(attributes.values()), (attributes, []))[1].append(histogram)
    if sums:
        samples = [Sample(attributes, add_histograms(CALL_BOUNDS, found)) for attributes, found in sums.values()]
        yield Family(name, "histogram", text, samples)


def _yield_counters(
    name: str, text: str, parts: Sequence[tuple[dict[str, str], float | Histogram]]
) -> Iterator[Family]:
    sums: dict[tuple[str, ...], tuple[Labels, float]] = {}
    for attributes, value in parts:
        if not isinstance(value, Histogram):
            key = tuple(attributes.values())
            sums[key] = attributes, sums.get(key, (attributes, 0))[1] + value
    if sums:
        yield Family(name, "counter", text, [Sample(*pair) for pair in sums.values()])


def add_histograms(bounds: tuple[float, ...], parts: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms whose bounds include *bounds*. The last bucket has all values above them."""
    total = Histogram(bounds)
    for part in parts:
        counts, part_sum = part.snapshot()
        total.sum += part_sum
        for bound, count in zip((*part.bounds, float("inf")), counts, strict=True):
            total.counts[bisect_left(bounds, bound)] += count
        for exemplar in list(part.exemplars.values()):
            total.exemplars[bisect_left(bounds, exemplar.value)] = exemplar
    return total
