"""The metrics that smartpipe reports, with their labels, and the names in PromQL expressions."""

from __future__ import annotations

import re
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import promql_parser

from smartpipe import Queue
from smartpipe.cli.relay import RelayReport
from smartpipe.counters import Counters, TransportCounters
from smartpipe.outbox.backlog import Backlog, BacklogReading
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.call_metrics import CallMetrics, PublishMetrics
from smartpipe.telemetry.families import Sample
from smartpipe.telemetry.loop_lag import LoopLag
from smartpipe.telemetry.prometheus import render
from smartpipe.telemetry.queue_histograms import QueueHistograms
from smartpipe.transport import Depth
from smartpipe.worker.ecs_agent import EcsAgent
from smartpipe.worker.log_writer import family_of_dropped_lines
from smartpipe.worker.metrics import QueueMetrics, families_of, families_of_transport, family_of_overdue
from smartpipe.worker.queue_poller import QueuePoller
from smartpipe.worker.supervisor.children_health import ChildrenHealth
from smartpipe.worker.task_protection import TaskProtection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.telemetry.families import Family

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$")
_LABEL = re.compile(r'(\w+)="')
_TYPE = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)

SCRAPED = frozenset({"job", "instance", "process", "env"})
"""Labels that Prometheus, its configuration or a supervisor adds."""


class Metric(NamedTuple):
    """The kind of a metric, and the labels that its samples may have."""

    kind: str
    labels: frozenset[str]


async def read_existing_metrics() -> dict[str, Metric]:
    """Return the metrics of a worker, a relay and a supervisor, from the text that each of them serves."""
    histograms = QueueHistograms(["user.signed_up"])
    histograms.add_handler("welcome")
    histograms.dead_letters["rejected"] = 1
    service = {"service": "mailer"}
    calls, published = CallMetrics(), PublishMetrics()
    calls.record("send", "mail", "", 0.1)
    calls.record_entries("mail", 1)
    published.chunks.append(("mail", 1, [], 0.1))
    worker = [
        *families_of([QueueMetrics("mailer", "mail", Counters(histograms=histograms), 0, 0, circuits={"bank": 0.0})]),
        *calls.collect(service),
        *published.collect(service),
        LoopLag().collect(service),
        *_poll_queues(),
        family_of_overdue(Sample(service, 0)),
        *families_of_transport(TransportCounters(), service),
        family_of_dropped_lines(service),
        *TaskProtection(_find_none, 1.0, lambda: False, service, agent=EcsAgent("http://agent")).collect(),
    ]
    reading = BacklogReading(Backlog(waiting=0, parked=0, lag_seconds=0), age_seconds=0)

    async def read() -> BacklogReading:
        return reading

    relay: Any = SimpleNamespace(failing=False, published=0, backlog_reader=SimpleNamespace(read=read))
    transport: Any = SimpleNamespace(counts=TransportCounters())
    child: Any = SimpleNamespace(name="0", restarts=0, pid=None)
    supervisor: Any = SimpleNamespace(children=[child])
    texts = [
        render(worker),
        await RelayReport(relay, transport).metrics(),
        await ChildrenHealth(supervisor, 30).metrics(),
    ]
    return _parse("\n".join(texts))


async def _find_none() -> None:
    return None


def _poll_queues() -> list[Family]:
    """Return the metrics of a poller that has read one queue and its dead-letter queue."""
    consumer: Any = SimpleNamespace(queue=Queue("mail"), counters=Counters())
    transport: Any = SimpleNamespace()
    poller = QueuePoller("mailer", [consumer], transport, WorkerSettings())
    poller._readings = {"mail": deque()}
    poller._depths = {"mail": Depth(0, 0, 0), "mail-dlq": Depth(0, 0, 0)}
    poller._ages.values.update({"mail": 1.0, "mail-dlq": 1.0})
    return poller.collect()


def _parse(text: str) -> dict[str, Metric]:
    kinds = dict(_TYPE.findall(text))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for line in text.splitlines():
        if sample := _SAMPLE.match(line):
            name = sample[1] if sample[1] in kinds else re.sub(r"_(bucket|sum|count)$", "", sample[1])
            labels[name] |= set(_LABEL.findall(sample[2] or ""))
    return {name: Metric(kind, frozenset(labels[name])) for name, kind in kinds.items()}


def samples_of(metrics: dict[str, Metric]) -> dict[str, frozenset[str]]:
    """Return the labels of each name that samples have: a histogram has three of them."""
    found: dict[str, frozenset[str]] = {"ALERTS": frozenset({"alertname", "alertstate"}), "up": frozenset()}
    for name, metric in metrics.items():
        if metric.kind == "histogram":
            bare = metric.labels - {"le"}
            found |= {f"{name}_bucket": bare | {"le"}, f"{name}_sum": bare, f"{name}_count": bare}
        else:
            found[name] = metric.labels
    return found


def find_unknown_names(expression: str, known: dict[str, frozenset[str]]) -> list[str]:
    """Return the metrics and the labels in *expression* that do not exist, after parsing it."""
    tree = promql_parser.parse(expression)
    return list(_find_unknown(tree, known))


def _find_unknown(node: Any, known: dict[str, frozenset[str]]) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        if node.name not in known:
            yield str(node.name)
            return
        for matcher in node.matchers.matchers:
            if matcher.name not in known[node.name] | SCRAPED:
                yield f"{node.name}: label {matcher.name}"
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        within = set().union(*(known.get(name, frozenset()) for name in _names_in(node.expr)))
        for label in node.modifier.labels:
            if label not in within | SCRAPED:
                yield f"by {label}: no label of {sorted(_names_in(node.expr))}"
    for child in _children_of(node):
        yield from _find_unknown(child, known)


def _children_of(node: Any) -> Iterator[Any]:
    for name in ("lhs", "rhs", "expr", "vector_selector", "args"):
        child = getattr(node, name, None)
        if isinstance(child, list):
            yield from child
        elif isinstance(child, promql_parser.Expr):
            yield child


def _names_in(node: Any) -> set[str]:
    own = {str(node.name)} if isinstance(node, promql_parser.VectorSelector) else set[str]()
    return own.union(*(_names_in(child) for child in _children_of(node)))
