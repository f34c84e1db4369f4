"""What came out of a run: from what its processes reported to what people want to know."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.bench.cost import MILLION, Cost, cost
from smartpipe.bench.counting import Requests, total
from smartpipe.bench.fanout import TICKS_PER_SECOND, merged
from smartpipe.bench.latencies import Latency, count_seen, summed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import Side
    from smartpipe.bench.run import Reports

SLOT_SECONDS = 0.25


class Setting(NamedTuple):
    """Where a run took place.

    Args:
        backend: As people read it, with its version.
        in_turn: Everything was published before anything was handled.
        one_process: Both sides ran in one process, on one event loop.
    """

    backend: str
    in_turn: bool = False
    one_process: bool = False


class Flow(NamedTuple):
    """One side: what it moved, in which time, and at which price.

    Args:
        messages: Events published, or handled for the first time.
        seconds: From the beginning of the run to the last of them.
        cpu_us: User and system time of its processes for each message, in microseconds; None where both
            sides shared a process at the same time.
    """

    messages: int
    seconds: float
    cpu_us: float | None

    @property
    def per_second(self) -> float:
        """The throughput."""
        return self.messages / self.seconds if self.seconds else 0.0


class Moment(NamedTuple):
    """One slot of the course: seconds since the beginning, and events per second in it."""

    seconds: float
    published_per_second: float
    delivered_per_second: float


class Figures(NamedTuple):
    """All that a run has to tell.

    Args:
        failed: Events that could not be published; *failure* is what was said of the first.
        duplicates: Deliveries of what had come before, which SNS and SQS may do.
        cpu_us_together: Of both sides for each delivery; None where the sides are told apart.
        requests: By verb, all processes together.
        per_million: What a million events cost on AWS, published once and handled by every queue.
        counts: What the workers counted, the warm-up included.
    """

    load: Load
    setting: Setting
    transport: str
    published: Flow
    delivered: Flow
    failed: int
    failure: str
    duplicates: int
    latency: Latency | None
    cpu_us_together: float | None
    requests: Requests
    per_million: Cost
    counts: dict[str, int]
    course: list[Moment]

    @property
    def missing(self) -> int:
        """Deliveries that did not come, of events that were not published too."""
        return self.load.deliveries - self.delivered.messages

    @property
    def sns_requests_per_message(self) -> float:
        """Of each event that was published."""
        calls = self.requests["publish"].calls if "publish" in self.requests else 0
        return calls / self.published.messages if self.published.messages else 0.0

    @property
    def sqs_requests_per_message(self) -> float:
        """Of each delivery."""
        calls = sum(calls.calls for verb, calls in self.requests.items() if verb != "publish")
        return calls / self.delivered.messages if self.delivered.messages else 0.0


def figures(load: Load, setting: Setting, reports: Reports) -> Figures:
    """Return the figures of a run."""
    requests = total([side.requests for side in (*reports.published, *reports.handled)])
    published = sum(report.published for report in reports.published)
    delivered = sum(
        count_seen(report.seen for report in reports.handled if report.queue == queue)
        for queue in range(1, load.queues + 1)
    )
    begin = min(report.begun_at for report in reports.published)
    handling_begin = max(begin, min(report.begun_at for report in reports.handled))
    together = setting.one_process and not setting.in_turn
    publishing, handling = ([side.cpu_seconds for side in sides] for sides in reports)
    # In one process each worker's clock is the whole process's, to its own end.
    handling_cpu = max(handling) if setting.one_process else sum(handling)
    cost_each = cost(requests).times(MILLION / published if published else 0)
    return Figures(
        load=load,
        setting=setting,
        transport=reports.published[0].transport,
        published=Flow(
            published,
            max(one.ended_at for one in reports.published) - begin,
            None if together else _us(sum(publishing), published),
        ),
        delivered=Flow(
            delivered,
            max(one.ended_at for one in reports.handled) - handling_begin,
            None if together else _us(handling_cpu, delivered),
        ),
        failed=sum(report.failed for report in reports.published),
        failure=next((report.failure for report in reports.published if report.failure), ""),
        duplicates=sum(report.deliveries for report in reports.handled) - delivered,
        latency=summed(report.latencies for report in reports.handled),
        cpu_us_together=_us(handling_cpu, delivered) if together else None,
        requests=requests,
        per_million=cost_each,
        counts=_counts(reports),
        course=_course(reports, begin),
    )


def machine() -> dict[str, str | int]:
    """Return what the figures depend on besides: processors, Python, and the packages that do the work."""
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


def _us(seconds: float, count: int) -> float | None:
    return seconds / count * MILLION if count else None


def _counts(reports: Reports) -> dict[str, int]:
    names = dict.fromkeys(name for report in reports.handled for name in report.counts)
    return {name: sum(report.counts.get(name, 0) for report in reports.handled) for name in names}


def _course(reports: Reports, begin: float) -> list[Moment]:
    """Return slots of a quarter of a second, counted from the beginning."""
    slots: dict[int, list[int]] = {}
    sides: tuple[Sequence[Side], ...] = (reports.published, reports.handled)
    for side, several in enumerate(sides):
        for tick, count in merged(report.course for report in several).items():
            slot = int(max(0.0, (tick + 0.5) / TICKS_PER_SECOND - begin) / SLOT_SECONDS)
            slots.setdefault(slot, [0, 0])[side] += count
    return [
        Moment(slot * SLOT_SECONDS, *(count / SLOT_SECONDS for count in slots.get(slot, (0, 0))))
        for slot in range(max(slots, default=-1) + 1)
    ]
