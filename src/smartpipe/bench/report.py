"""Format the figures as text and as JSON. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smartpipe.bench.cost import PRICES_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smartpipe.bench.figures import Figures
    from smartpipe.bench.load import Load

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p99_9", "max": "max"}
SATURATED = "events were published as fast as possible: this is the waiting time in full queues; use --rate for latency"
PUBLISHED_FIRST = "all events were published before any was handled: this is the waiting time; use --rate for latency"
MAX_LATE_SECONDS, MAX_LATE_SHARE = 1.0, 0.02
"""A run is late if its last event was published more than a second, and more than 2 % of the run, after it was due."""
SIGNIFICANT_MILLISECONDS = 10.0


def format_title(figures: Figures) -> list[str]:
    """Return the load and the setting of the run, in two lines."""
    load = figures.load
    processes = (
        "one process, one event loop"
        if figures.setting.one_process
        else (
            f"{_format_count(load.producers, 'producer')}, {_format_count(load.processes, 'worker')} per queue, "
            "each a process"
        )
    )
    pace = "as fast as possible" if load.rate_per_second is None else f"{load.rate_per_second:,g} events/s"
    events = (
        f"{_format_count(load.events, 'event')} of {load.size_bytes:,} bytes to {_format_count(load.queues, 'queue')}"
    )
    where = "in memory" if figures.setting.one_process else f"on {figures.setting.backend}"
    if figures.setting.latency_milliseconds:
        where += f" with a round trip of {figures.setting.latency_milliseconds:g} ms added"
    return [
        f"{events}, {pace}, {where}",
        f"{processes}; concurrency {load.concurrency:,}; {figures.transport} transport",
    ]


def format_text(figures: Figures, machine: Mapping[str, str | int]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from format_title(figures)
    yield _format_machine(machine)
    yield ""
    yield from _format_throughput(figures)
    yield ""
    yield from _format_latency(figures)
    yield ""
    yield from _format_client(figures)
    yield ""
    yield from _format_requests(figures)
    yield ""
    cost = figures.per_million
    yield (
        f"cost of a million such events on AWS: about ${cost.total:.2f} (SNS ${cost.sns:.2f}, SQS ${cost.sqs:.2f}), "
        "from the requests above"
    )
    yield f"  {PRICES_TEXT}"
    yield from _format_failures(figures)


def build_json(figures: Figures, machine: Mapping[str, str | int]) -> dict[str, Any]:
    """Return all figures as one object. Times are in seconds unless a name says otherwise."""
    latency = figures.latency
    return {
        "backend": figures.setting.backend,
        "transport": figures.transport,
        "one_process": figures.setting.one_process,
        "latency_ms": figures.setting.latency_milliseconds,
        "published_before_handled": figures.setting.published_first,
        "load": asdict(figures.load),
        "machine": dict(machine),
        "published": _side_as_json(figures.published, failed=figures.failed, requests=figures.sns_requests_per_message),
        "delivered": {
            **_side_as_json(figures.delivered, missing=figures.missing, requests=figures.sqs_requests_per_message),
            "duplicates": figures.duplicates,
        },
        "cpu_us_per_delivery_both_sides": figures.cpu_us_together,
        "latency_seconds": None
        if latency is None
        else {"mean": latency.mean, **{name: getattr(latency, key) for name, key in PERCENTILES.items()}},
        "latency_curve": [] if latency is None else [list(point) for point in latency.curve],
        "requests": {verb: asdict(calls) for verb, calls in figures.requests.items()},
        "dollars_per_million_events": {**figures.per_million._asdict(), "total": figures.per_million.total},
        "prices": PRICES_TEXT,
        "worker_counts_with_warmup": figures.counts,
        "timeline": [point._asdict() for point in figures.timeline],
        "failure": figures.failure or None,
    }


def latency_warning(figures: Figures) -> str:
    """Return a warning for the reader of the latencies, or an empty string if none is needed."""
    if figures.setting.published_first:
        return PUBLISHED_FIRST
    rate = figures.load.rate_per_second
    if rate is None:
        return SATURATED
    planned = figures.load.events / rate
    late = figures.published.seconds - planned
    if late > max(MAX_LATE_SECONDS, planned * MAX_LATE_SHARE):
        return (
            f"the last event was published {late:,.1f} s late: this setup cannot sustain {rate:,g} events/s, and "
            "latency counts from when an event was due"
        )
    return ""


def format_milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds, with two decimals below 10 ms."""
    value = seconds * 1_000
    return f"{value:,.2f}" if value < SIGNIFICANT_MILLISECONDS else f"{value:,.0f}"


def _side_as_json(flow: Any, *, requests: float, **more: int) -> dict[str, Any]:
    return {
        "messages": flow.messages,
        **more,
        "seconds": flow.seconds,
        "per_second": flow.per_second,
        "cpu_us_per_message": flow.cpu_us,
        "requests_per_message": requests,
    }


def _format_machine(machine: Mapping[str, str | int]) -> str:
    packages = ", ".join(
        f"{name} {value}" for name, value in machine.items() if name not in {"cores", "system", "python"}
    )
    return f"{_format_count(int(machine['cores']), 'core')}, {machine['system']}, {machine['python']}, {packages}"


def _format_throughput(figures: Figures) -> Iterator[str]:
    published, delivered, load = figures.published, figures.delivered, figures.load
    duplicates = f"{figures.duplicates:,} duplicates" if figures.duplicates else "no duplicates"
    yield f"{'throughput':16}{'per second':>12}{'seconds':>10}{'messages':>12}"
    yield f"  {'published':14}{published.per_second:>12,.0f}{published.seconds:>10,.2f}{published.messages:>12,}"
    yield (
        f"  {'delivered':14}{delivered.per_second:>12,.0f}{delivered.seconds:>10,.2f}{delivered.messages:>12,}"
        f"  of {load.deliveries:,}, {duplicates}"
    )


def _format_latency(figures: Figures) -> Iterator[str]:
    latency = figures.latency
    yield "publish → handled, ms" + "".join(f"{name:>10}" for name in PERCENTILES)
    if latency is not None:
        yield f"{'':21}" + "".join(f"{format_milliseconds(getattr(latency, key)):>10}" for key in PERCENTILES.values())
    if warning := latency_warning(figures):
        yield f"  {warning}"


def _format_client(figures: Figures) -> Iterator[str]:
    yield f"{'client':16}{'CPU µs':>12}{'requests':>10}   per message"
    for name, flow, requests in (
        ("publishing", figures.published, figures.sns_requests_per_message),
        ("handling", figures.delivered, figures.sqs_requests_per_message),
    ):
        cpu = "" if flow.cpu_us is None else f"{flow.cpu_us:,.0f}"
        yield f"  {name:14}{cpu:>12}{requests:>10.3f}"
    if figures.cpu_us_together is not None:
        yield f"  {'both':14}{figures.cpu_us_together:>12,.0f}{'':>10}   per delivery, because one process did both"


def _format_requests(figures: Figures) -> Iterator[str]:
    yield f"{'requests':20}{'calls':>8}{'messages':>10}{'per call':>10}{'empty':>8}{'failed':>8}"
    for verb, calls in figures.requests.items():
        each = calls.entries / max(1, calls.calls - calls.failed)
        empty = f"{calls.empty:,}" if verb == "receive" else ""
        yield f"  {verb:18}{calls.calls:>8,}{calls.entries:>10,}{each:>10.1f}{empty:>8}{calls.failed:>8,}"


def _format_failures(figures: Figures) -> Iterator[str]:
    if figures.failed:
        yield ""
        yield f"{_format_count(figures.failed, 'event')} could not be published; the first error: {figures.failure}"
    if figures.missing:
        yield ""
        yield f"{figures.missing:,} of {figures.load.deliveries:,} deliveries did not arrive"


def _format_count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe_traffic(load: Load) -> str:
    """Return the number of events and queues of a run, for the question before it."""
    return f"{load.events + load.warmup:,} events to {_format_count(load.queues, 'queue')}"
