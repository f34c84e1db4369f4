"""The figures as people and as programs read them. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smartpipe.bench.cost import PRICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smartpipe.bench.figures import Figures
    from smartpipe.bench.load import Load

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p99_9", "max": "max"}
SATURATED = "events were published as fast as they go: this is the wait in full queues, not latency; --rate shows that"
IN_TURN = "everything was published before anything was handled: this is the wait for that; --rate measures latency"
LATE_SECONDS, LATE_SHARE = 1.0, 0.02
"""Behind its schedule is a run whose last event was published so long after it was due, and by this part of the run."""
SIGNIFICANT_MILLISECONDS = 10.0


def title(figures: Figures) -> list[str]:
    """Return what was run, in two lines."""
    load = figures.load
    processes = (
        "one process, one event loop"
        if figures.setting.one_process
        else f"{_many(load.producers, 'producer')}, {_many(load.processes, 'worker')} a queue, each a process"
    )
    pace = "as fast as it goes" if load.rate_per_second is None else f"{load.rate_per_second:,g} events/s"
    events = f"{_many(load.events, 'event')} of {load.size_bytes:,} bytes to {_many(load.queues, 'queue')}"
    where = "in memory" if figures.setting.one_process else f"on {figures.setting.backend}"
    return [
        f"{events}, {pace}, {where}",
        f"{processes}; concurrency {load.concurrency:,}; {figures.transport}",
    ]


def in_words(figures: Figures, machine: Mapping[str, str | int]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from title(figures)
    yield _machine(machine)
    yield ""
    yield from _throughput(figures)
    yield ""
    yield from _latency(figures)
    yield ""
    yield from _client(figures)
    yield ""
    yield from _requests(figures)
    yield ""
    cost = figures.per_million
    yield (
        f"a million such events on AWS: about ${cost.total:.2f} (SNS ${cost.sns:.2f}, SQS ${cost.sqs:.2f}), "
        "by the requests above"
    )
    yield f"  {PRICES}"
    yield from _faults(figures)


def as_json(figures: Figures, machine: Mapping[str, str | int]) -> dict[str, Any]:
    """Return all of it as one object; times are in seconds unless a name says otherwise."""
    latency = figures.latency
    return {
        "backend": figures.setting.backend,
        "transport": figures.transport,
        "one_process": figures.setting.one_process,
        "published_before_handled": figures.setting.in_turn,
        "load": asdict(figures.load),
        "machine": dict(machine),
        "published": _flow(figures.published, failed=figures.failed, requests=figures.sns_requests_per_message),
        "delivered": {
            **_flow(figures.delivered, missing=figures.missing, requests=figures.sqs_requests_per_message),
            "duplicates": figures.duplicates,
        },
        "cpu_us_per_delivery_both_sides": figures.cpu_us_together,
        "latency_seconds": None
        if latency is None
        else {"mean": latency.mean, **{name: getattr(latency, key) for name, key in PERCENTILES.items()}},
        "latency_curve": [] if latency is None else [list(point) for point in latency.curve],
        "requests": {verb: asdict(calls) for verb, calls in figures.requests.items()},
        "dollars_per_million_events": {**figures.per_million._asdict(), "total": figures.per_million.total},
        "prices": PRICES,
        "worker_counts_with_warmup": figures.counts,
        "course": [moment._asdict() for moment in figures.course],
        "failure": figures.failure or None,
    }


def caveat(figures: Figures) -> str:
    """Return what has to be known to read the latencies; empty where they are what they seem."""
    if figures.setting.in_turn:
        return IN_TURN
    rate = figures.load.rate_per_second
    if rate is None:
        return SATURATED
    planned = figures.load.events / rate
    late = figures.published.seconds - planned
    if late > max(LATE_SECONDS, planned * LATE_SHARE):
        return (
            f"the last event was published {late:,.1f} s late: {rate:,g} events/s are more than this setup does, and "
            "latency counts from when an event was due"
        )
    return ""


def milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds, with as many digits as it is worth."""
    value = seconds * 1_000
    return f"{value:,.2f}" if value < SIGNIFICANT_MILLISECONDS else f"{value:,.0f}"


def _flow(flow: Any, *, requests: float, **more: int) -> dict[str, Any]:
    return {
        "messages": flow.messages,
        **more,
        "seconds": flow.seconds,
        "per_second": flow.per_second,
        "cpu_us_per_message": flow.cpu_us,
        "requests_per_message": requests,
    }


def _machine(machine: Mapping[str, str | int]) -> str:
    packages = ", ".join(
        f"{name} {value}" for name, value in machine.items() if name not in {"cores", "system", "python"}
    )
    return f"{_many(int(machine['cores']), 'core')}, {machine['system']}, {machine['python']}, {packages}"


def _throughput(figures: Figures) -> Iterator[str]:
    published, delivered, load = figures.published, figures.delivered, figures.load
    duplicates = f"{figures.duplicates:,} came again" if figures.duplicates else "none came twice"
    yield f"{'throughput':16}{'per second':>12}{'seconds':>10}{'messages':>12}"
    yield f"  {'published':14}{published.per_second:>12,.0f}{published.seconds:>10,.2f}{published.messages:>12,}"
    yield (
        f"  {'delivered':14}{delivered.per_second:>12,.0f}{delivered.seconds:>10,.2f}{delivered.messages:>12,}"
        f"  of {load.deliveries:,}, {duplicates}"
    )


def _latency(figures: Figures) -> Iterator[str]:
    latency = figures.latency
    yield "publish → handled, ms" + "".join(f"{name:>10}" for name in PERCENTILES)
    if latency is not None:
        yield f"{'':21}" + "".join(f"{milliseconds(getattr(latency, key)):>10}" for key in PERCENTILES.values())
    if said := caveat(figures):
        yield f"  {said}"


def _client(figures: Figures) -> Iterator[str]:
    yield f"{'client':16}{'CPU µs':>12}{'requests':>10}   for each message"
    for name, flow, requests in (
        ("publishing", figures.published, figures.sns_requests_per_message),
        ("handling", figures.delivered, figures.sqs_requests_per_message),
    ):
        cpu = "" if flow.cpu_us is None else f"{flow.cpu_us:,.0f}"
        yield f"  {name:14}{cpu:>12}{requests:>10.3f}"
    if figures.cpu_us_together is not None:
        yield f"  {'both':14}{figures.cpu_us_together:>12,.0f}{'':>10}   for each delivery, as one process did both"


def _requests(figures: Figures) -> Iterator[str]:
    yield f"{'requests':20}{'calls':>8}{'messages':>10}{'a call':>10}{'empty':>8}{'failed':>8}"
    for verb, calls in figures.requests.items():
        each = calls.entries / max(1, calls.calls - calls.failed)
        empty = f"{calls.empty:,}" if verb == "receive" else ""
        yield f"  {verb:18}{calls.calls:>8,}{calls.entries:>10,}{each:>10.1f}{empty:>8}{calls.failed:>8,}"


def _faults(figures: Figures) -> Iterator[str]:
    if figures.failed:
        yield ""
        yield f"{_many(figures.failed, 'event')} could not be published, the first because of {figures.failure}"
    if figures.missing:
        yield ""
        yield f"{figures.missing:,} of {figures.load.deliveries:,} deliveries did not come"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def worst_case(load: Load) -> str:
    """Return how many messages a run moves, for a question before it."""
    return f"{load.events + load.warmup:,} events to {_many(load.queues, 'queue')}"
