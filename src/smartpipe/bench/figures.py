"""Compute the figures of a run from the reports of its processes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.cost import MILLION, Cost, cost_of
from smartpipe.bench.counting import Requests, sum_requests
from smartpipe.bench.fanout import TICKS_PER_SECOND, merge_ticks
from smartpipe.bench.latencies import Latency, count_seen, merge_latencies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import ProcessReport
    from smartpipe.bench.run import Reports

SLOT_SECONDS = 0.25


class RunSetting(NamedTuple):
    """The broker of a run, and how its two sides shared the process.

    Args:
        backend: The name and version of the broker.
        published_first: All events were published before the first was handled.
        one_process: Both sides ran in one process, on one event loop.
        latency_milliseconds: The round trip that was added between the processes and the broker.
    """

    backend: str
    published_first: bool = False
    one_process: bool = False
    latency_milliseconds: float = 0.0


class Throughput(NamedTuple):
    """The throughput of one side, and its CPU time.

    Args:
        messages: The number of events published, or handled for the first time.
        seconds: The time from the beginning of the run to the last of them.
        cpu_us: User and system time of its processes for each message, in microseconds. None if both sides shared a
            process at the same time.
    """

    messages: int
    seconds: float
    cpu_us: float | None

    @property
    def per_second(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds else 0.0


class TimelinePoint(NamedTuple):
    """One slot of the timeline: seconds since the beginning, and the rates within the slot."""

    seconds: float
    published_per_second: float
    delivered_per_second: float


class Figures(NamedTuple):
    """All figures of a run.

    Args:
        failed: The number of events that could not be published; *failure* is the error of the first.
        duplicates: The number of repeated deliveries, which SNS and SQS allow.
        cpu_us_together: The CPU time of both sides for each delivery, in microseconds. None if each side has its own.
        requests: The requests of all processes, by verb.
        per_million: The cost of a million events on AWS, each published once and handled by every queue.
        counts: The counters of the workers, with the warm-up.
    """

    load: Load
    setting: RunSetting
    transport: str
    published: Throughput
    delivered: Throughput
    failed: int
    failure: str
    duplicates: int
    latency: Latency | None
    cpu_us_together: float | None
    requests: Requests
    per_million: Cost
    counts: dict[str, int]
    timeline: list[TimelinePoint]

    @property
    def missing(self) -> int:
        """The number of deliveries that did not arrive. Those of events that were not published count too."""
        return self.load.deliveries - self.delivered.messages

    @property
    def sns_requests_per_message(self) -> float:
        """Requests to SNS for each published event."""
        calls = self.requests["publish"].calls if "publish" in self.requests else 0
        return calls / self.published.messages if self.published.messages else 0.0

    @property
    def sqs_requests_per_message(self) -> float:
        """Requests to SQS for each delivery."""
        calls = sum(calls.calls for verb, calls in self.requests.items() if verb != "publish")
        return calls / self.delivered.messages if self.delivered.messages else 0.0


def compute_figures(load: Load, setting: RunSetting, reports: Reports) -> Figures:
    """Return the figures of a run."""
    requests = sum_requests([report.requests for report in (*reports.published, *reports.handled)])
    published = sum(report.published for report in reports.published)
    delivered = sum(
        count_seen(report.seen for report in reports.handled if report.queue == queue)
        for queue in range(1, load.queues + 1)
    )
    begin = min(report.begun_at for report in reports.published)
    handling_begin = max(begin, min(report.begun_at for report in reports.handled))
    together = setting.one_process and not setting.published_first
    publishing, handling = ([report.cpu_seconds for report in side] for side in reports)
    # In one process, each worker reads the CPU clock of the whole process when it ends: the last value covers all.
    handling_cpu = max(handling) if setting.one_process else sum(handling)
    cost_each = cost_of(requests).multiply(MILLION / published if published else 0)
    return Figures(
        load=load,
        setting=setting,
        transport=reports.published[0].transport,
        published=Throughput(
            published,
            max(report.ended_at for report in reports.published) - begin,
            None if together else _microseconds_each(sum(publishing), published),
        ),
        delivered=Throughput(
            delivered,
            max(report.ended_at for report in reports.handled) - handling_begin,
            None if together else _microseconds_each(handling_cpu, delivered),
        ),
        failed=sum(report.failed for report in reports.published),
        failure=next((report.failure for report in reports.published if report.failure), ""),
        duplicates=sum(report.deliveries for report in reports.handled) - delivered,
        latency=merge_latencies(report.latencies for report in reports.handled),
        cpu_us_together=_microseconds_each(handling_cpu, delivered) if together else None,
        requests=requests,
        per_million=cost_each,
        counts=_sum_counts(reports),
        timeline=_build_timeline(reports, begin),
    )


def describe_machine() -> dict[str, str | int]:
    """Return the number of cores, the system, and the versions of Python and of the packages that matter."""
    found: dict[str, str | int] = {
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in ("smartpipe", "aiobotocore", "pydantic", "uvloop"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _microseconds_each(seconds: float, count: int) -> float | None:
    return seconds / count * MILLION if count else None


def _sum_counts(reports: Reports) -> dict[str, int]:
    names = dict.fromkeys(name for report in reports.handled for name in report.counts)
    return {name: sum(report.counts.get(name, 0) for report in reports.handled) for name in names}


def _build_timeline(reports: Reports, begin: float) -> list[TimelinePoint]:
    """Return the timeline in slots of 0.25 s from the beginning."""
    slots: dict[int, list[int]] = {}
    sides: tuple[Sequence[ProcessReport], ...] = (reports.published, reports.handled)
    for side, side_reports in enumerate(sides):
        for tick, count in merge_ticks(report.timeline for report in side_reports).items():
            slot = int(max(0.0, (tick + 0.5) / TICKS_PER_SECOND - begin) / SLOT_SECONDS)
            slots.setdefault(slot, [0, 0])[side] += count
    return [
        TimelinePoint(slot * SLOT_SECONDS, *(count / SLOT_SECONDS for count in slots.get(slot, (0, 0))))
        for slot in range(max(slots, default=-1) + 1)
    ]
