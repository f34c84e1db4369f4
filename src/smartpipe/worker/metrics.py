"""The metrics of a worker, from the counters and histograms of its queues. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.counters import counts_of
from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.queue_histograms import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.counters import Counters, TransportCounters
    from smartpipe.telemetry.families import Labels
    from smartpipe.telemetry.queue_histograms import QueueHistograms

# Every other counter is an outcome. A delivery has exactly one outcome, so their sum is the number of deliveries.
OTHER_COUNTERS = {
    "received": ("smartpipe_messages_received_total", "Deliveries received from the queue."),
    "lease_lost": ("smartpipe_leases_lost_total", "Leases that expired while their message was being handled."),
    "not_deleted": ("smartpipe_messages_not_deleted_total", "Finished messages that could not be deleted."),
    "deduplicated": (
        "smartpipe_deduplicated_total",
        "Handler calls skipped because the event had been handled before.",
    ),
    "fenced": ("smartpipe_fenced_total", "Handler calls that returned after another worker had taken their claim."),
    "not_ended": (
        "smartpipe_handlers_not_ended_total",
        "Async handlers that did not end after their timeout had cancelled them.",
    ),
    "abandoned_threads": (
        "smartpipe_threads_abandoned_total",
        "Threads abandoned because a sync handler exceeded its timeout.",
    ),
}
# The fields of QueueMetrics.
GAUGES = {
    "in_flight": ("smartpipe_messages_in_flight", "Messages being handled, or waiting here for it."),
    "slots": ("smartpipe_slots", "Messages that may be handled at a time."),
    "open_calls": ("smartpipe_receive_calls_open", "Receive calls that wait for messages."),
    "seconds_since_poll": (
        "smartpipe_poll_age_seconds",
        "Time since the last successful poll; 0 when all slots are taken.",
    ),
}
TRANSPORT_COUNTERS = {
    "damaged": ("smartpipe_messages_damaged_total", "Messages with a wrong MD5 sum, which will be delivered again."),
    "resent": (
        "smartpipe_requests_resent_total",
        "Requests sent again because their keep-alive connection had been closed.",
    ),
}


class QueueMetrics(NamedTuple):
    """The metrics of one queue's consumer.

    Args:
        slots: The number of messages that it may handle at a time.
        open_calls: The number of its receive calls that wait for messages.
        circuits: The state of each circuit breaker, by its name: 1 open, 0.5 half-open, 0 closed.
    """

    service: str
    queue: str
    counts: Counters
    in_flight: int
    seconds_since_poll: float
    slots: int = 0
    open_calls: int = 0
    circuits: Mapping[str, float] = {}


def families_of(queues: Sequence[QueueMetrics]) -> Iterator[Family]:
    """Yield the metrics of a worker, including counters at 0: a rate needs the sample before the first increment."""
    labels = [{"service": queue.service, "queue": queue.queue} for queue in queues]
    labelled = list(zip(labels, queues, strict=True))
    counts = [counts_of(queue.counts) for queue in queues]
    outcomes = [
        Sample({**label, "outcome": name}, value)
        for label, count in zip(labels, counts, strict=True)
        for name, value in count.items()
        if name not in OTHER_COUNTERS
    ]
    yield Family("smartpipe_messages_total", "counter", "Deliveries by outcome.", outcomes)
    for field, (name, text) in OTHER_COUNTERS.items():
        samples = [Sample(label, count[field]) for label, count in zip(labels, counts, strict=True)]
        yield Family(name, "counter", text, samples)
    for field, (name, text) in GAUGES.items():
        yield Family(name, "gauge", text, [Sample(label, getattr(queue, field)) for label, queue in labelled])
    circuits = [
        Sample({**label, "circuit": name}, state) for label, queue in labelled for name, state in queue.circuits.items()
    ]
    yield Family("smartpipe_circuit_open", "gauge", "1 if the circuit is open, 0.5 half-open, 0 closed.", circuits)
    yield from _families_of_histograms(
        [(label, queue.counts.histograms) for label, queue in labelled if queue.counts.histograms is not None]
    )


def _families_of_histograms(recorded: Sequence[tuple[Labels, QueueHistograms]]) -> Iterator[Family]:
    for _, histograms in recorded:
        histograms.fold()
    times = [
        ({**labels, "type": name}, one)
        for labels, histograms in recorded
        for name, one in (*histograms.types.items(), (OTHER, histograms.other))
        if name != OTHER or one.queue_time.count or one.critical_time.count
    ]
    yield Family(
        "smartpipe_critical_time_seconds",
        "histogram",
        "Time from an event's own time until its message was handled or dead-lettered.",
        [Sample(labels, one.critical_time) for labels, one in times],
    )
    yield Family(
        "smartpipe_queue_time_seconds",
        "histogram",
        "Time that a message waited in its queue before its first delivery was processed.",
        [Sample(labels, one.queue_time) for labels, one in times],
    )
    calls = [
        Sample({**labels, "handler": handler, "outcome": outcome}, histogram)
        for labels, histograms in recorded
        for handler, outcomes in histograms.handlers.items()
        for outcome, histogram in outcomes.items()
    ]
    yield Family("smartpipe_handler_seconds", "histogram", "Duration of handler calls by outcome.", calls)
    yield Family(
        "smartpipe_receive_count",
        "histogram",
        "Number of times that a message had been received when it was handled.",
        [Sample(labels, histograms.receive_counts) for labels, histograms in recorded],
    )
    yield Family(
        "smartpipe_dead_letters_total",
        "counter",
        "Messages moved to the dead-letter queue, by reason.",
        [
            Sample({**labels, "reason": reason}, count)
            for labels, histograms in recorded
            for reason, count in histograms.dead_letters.items()
        ],
    )
    yield Family(
        "smartpipe_events_from_the_future_total",
        "counter",
        "Events whose time was later than this machine's clock. Their critical time counts as 0.",
        [Sample(labels, histograms.future_events) for labels, histograms in recorded],
    )


def family_of_overdue(calls: Sample) -> Family:
    """Return the number of handler calls that have exceeded their timeout and still run."""
    return Family(
        "smartpipe_handlers_overdue", "gauge", "Handler calls that have exceeded their timeout and still run.", [calls]
    )


def families_of_transport(counts: TransportCounters, labels: Mapping[str, str]) -> Iterator[Family]:
    """Yield the counters of a transport, with *labels* only: all queues share its connections."""
    values = counts_of(counts)
    for field, (name, text) in TRANSPORT_COUNTERS.items():
        yield Family(name, "counter", text, [Sample(labels, values[field])])
