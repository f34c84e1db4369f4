"""Format metrics as Prometheus text, version 0.0.4, and merge the texts of several processes. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.escaping import escape_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from smartpipe.counters import Counters, TransportCounters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
TRANSPORT_COUNTERS = {
    "damaged": ("smartpipe_messages_damaged_total", "Messages with a wrong MD5 sum, which will be delivered again."),
    "resent": (
        "smartpipe_requests_resent_total",
        "Requests sent again because their keep-alive connection had been closed.",
    ),
}


class Sample(NamedTuple):
    """One line: labels and a value."""

    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """The samples of one metric. ``kind`` is ``counter`` or ``gauge``."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class QueueMetrics(NamedTuple):
    """The metrics of one queue's consumer."""

    service: str
    queue: str
    counts: Counters
    in_flight: int
    seconds_since_poll: float


def families_of(queues: Sequence[QueueMetrics]) -> Iterator[Family]:
    """Yield the metrics of a worker, including counters at 0: a rate needs the sample before the first increment."""
    labels = [{"service": queue.service, "queue": queue.queue} for queue in queues]
    counts = [asdict(queue.counts) for queue in queues]
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
    in_flight = [Sample(label, queue.in_flight) for label, queue in zip(labels, queues, strict=True)]
    yield Family("smartpipe_messages_in_flight", "gauge", "Messages being handled, or waiting here for it.", in_flight)
    ages = [Sample(label, queue.seconds_since_poll) for label, queue in zip(labels, queues, strict=True)]
    yield Family(
        "smartpipe_poll_age_seconds", "gauge", "Time since the last successful poll; 0 when all slots are taken.", ages
    )


def family_of_overdue(calls: Sample) -> Family:
    """Return the number of handler calls that have exceeded their timeout and still run."""
    return Family(
        "smartpipe_handlers_overdue", "gauge", "Handler calls that have exceeded their timeout and still run.", [calls]
    )


def families_of_transport(counts: TransportCounters, labels: Mapping[str, str]) -> Iterator[Family]:
    """Yield the counters of a transport, with *labels* only: all queues share its connections."""
    values = asdict(counts)
    for field, (name, text) in TRANSPORT_COUNTERS.items():
        yield Family(name, "counter", text, [Sample(labels, values[field])])


def render(families: Iterable[Family]) -> str:
    """Return *families* as text."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in family.samples:
            pairs = ",".join(f'{name}="{_escape(text, quotes=True)}"' for name, text in labels.items())
            lines.append(f"{family.name}{{{pairs}}} {value}" if pairs else f"{family.name} {value}")
    return "".join(f"{line}\n" for line in lines)


def merge(texts: Mapping[str, str], label: str) -> str:
    """Merge *texts* from ``render``: each family appears once, and each sample gets its key as *label*."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for key, text in texts.items():
        pair = f'{label}="{_escape(key, quotes=True)}"'
        family = ""
        for line in filter(None, text.split("\n")):
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                samples.setdefault(family, [])
            if line.startswith("#"):
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            else:
                samples[family].append(_add_label(line, pair))
    return "".join(f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family]))


def _add_label(line: str, pair: str) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f"{name}{{{pair},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{pair}}} {value}"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = "\n".join(map(escape_text, text.split("\n")))
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
