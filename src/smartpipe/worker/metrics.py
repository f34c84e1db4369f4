"""The Prometheus text format, 0.0.4: what a worker counted, and the answers of several processes as one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.escaping import escape_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from smartpipe.counters import Counters, TransportCounters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Every other count is an outcome, of which a delivery has one: their sum means something.
NOT_OUTCOMES = {
    "received": ("smartpipe_messages_received_total", "Deliveries taken from the queue."),
    "lease_lost": ("smartpipe_leases_lost_total", "Leases that ran out while their message was being handled."),
    "not_deleted": ("smartpipe_messages_not_deleted_total", "Finished messages that could not be deleted."),
    "deduplicated": ("smartpipe_deduplicated_total", "Calls left out because their effect had happened."),
    "fenced": ("smartpipe_fenced_total", "Calls that returned after their claim had gone to another worker."),
    "not_ended": (
        "smartpipe_handlers_not_ended_total",
        "Async handlers that did not end although cancelled at their timeout.",
    ),
    "abandoned_threads": ("smartpipe_threads_abandoned_total", "Sync handlers that ran into their timeout."),
}
OF_TRANSPORT = {
    "damaged": ("smartpipe_messages_damaged_total", "Messages of a wrong MD5 sum, left to come again."),
    "resent": ("smartpipe_requests_resent_total", "Requests sent twice, as their kept connection had been closed."),
}


class Sample(NamedTuple):
    """One line."""

    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """Samples of one name; ``kind`` is ``counter`` or ``gauge``."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class QueueState(NamedTuple):
    """How one queue's consumer fares."""

    service: str
    queue: str
    counts: Counters
    in_flight: int
    seconds_since_poll: float


def families_of(queues: Sequence[QueueState]) -> Iterator[Family]:
    """Yield what a worker reports, counts that are 0 too: a rate needs the sample before the first."""
    labels = [{"service": state.service, "queue": state.queue} for state in queues]
    counts = [asdict(state.counts) for state in queues]
    outcomes = [
        Sample({**label, "outcome": name}, value)
        for label, count in zip(labels, counts, strict=True)
        for name, value in count.items()
        if name not in NOT_OUTCOMES
    ]
    yield Family("smartpipe_messages_total", "counter", "What became of deliveries.", outcomes)
    for field, (name, text) in NOT_OUTCOMES.items():
        samples = [Sample(label, count[field]) for label, count in zip(labels, counts, strict=True)]
        yield Family(name, "counter", text, samples)
    in_flight = [Sample(label, state.in_flight) for label, state in zip(labels, queues, strict=True)]
    yield Family("smartpipe_messages_in_flight", "gauge", "Messages being handled.", in_flight)
    ages = [Sample(label, state.seconds_since_poll) for label, state in zip(labels, queues, strict=True)]
    yield Family(
        "smartpipe_poll_age_seconds", "gauge", "Time since the last successful poll; 0 when all slots are taken.", ages
    )


def family_of_overdue(calls: Sample) -> Family:
    """Return the number of handler calls that ran into their timeout and still run."""
    return Family(
        "smartpipe_handlers_overdue", "gauge", "Handler calls that ran into their timeout and still run.", [calls]
    )


def families_of_transport(counts: TransportCounters, labels: Mapping[str, str]) -> Iterator[Family]:
    """Yield what a transport counts, by nothing but *labels*: its connections are of all queues."""
    values = asdict(counts)
    for field, (name, text) in OF_TRANSPORT.items():
        yield Family(name, "counter", text, [Sample(labels, values[field])])


def render(families: Iterable[Family]) -> str:
    """Return the text."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for labels, value in family.samples:
            pairs = ",".join(f'{name}="{_escaped(text, quotes=True)}"' for name, text in labels.items())
            lines.append(f"{family.name}{{{pairs}}} {value}" if pairs else f"{family.name} {value}")
    return "".join(f"{line}\n" for line in lines)


def merge(texts: Mapping[str, str], label: str) -> str:
    """Return *texts*, as `render` wrote them, as one: each family once, each sample with its key as *label*."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for key, text in texts.items():
        pair = f'{label}="{_escaped(key, quotes=True)}"'
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
                samples[family].append(_labelled(line, pair))
    return "".join(f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family]))


def _labelled(line: str, pair: str) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f"{name}{{{pair},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{pair}}} {value}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = "\n".join(map(escape_text, text.split("\n")))
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
