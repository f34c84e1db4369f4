"""Parts of a benchmark: counted calls, the schedule of a producer, a run in memory, and the plot."""

from __future__ import annotations

import asyncio
import math
import os
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.bench import figures, in_memory, producer, worker
from smartpipe.bench.counting import CallCounts, CountingTransport
from smartpipe.bench.fanout import Measured, build_service, build_services, count_ticks, merge_ticks, padding_for
from smartpipe.bench.figures import Figures, RunSetting, Throughput, TimelinePoint
from smartpipe.bench.in_memory import InMemoryRun
from smartpipe.bench.latencies import encode_latencies, encode_seen, merge_latencies
from smartpipe.bench.load import Load
from smartpipe.bench.messages import ProducerReport, WorkerReport
from smartpipe.bench.producer import Producer
from smartpipe.bench.report import SATURATED
from smartpipe.bench.run import Reports
from smartpipe.bench.worker import BenchWorker
from smartpipe.errors import TransportError
from smartpipe.message import Failure, OutgoingMessage
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("payload_bytes", "billed"), [(0, 1), (65_536, 1), (65_537, 2), (131_072, 2), (131_073, 3), (196_608, 3)]
)
def test_aws_bills_each_64_kilobytes_of_a_call(payload_bytes: int, billed: int) -> None:
    counts = CallCounts()

    counts.count(2, payload_bytes)
    counts.count(0, 0)
    counts.count_failed()

    assert counts == CallCounts(calls=3, entries=2, empty=1, failed=1, billed=billed + 2, payload_bytes=payload_bytes)


async def test_calls_of_every_verb_are_forwarded_and_counted_until_a_reset() -> None:
    inner = FakeTransport()
    transport = CountingTransport(inner)
    outgoing = [OutgoingMessage("x" * 70_000, 70_000)]

    assert await transport.send("queue", outgoing) == []
    assert await transport.change_visibility("queue", [("r", 1.0), ("s", 2.0)]) == []
    inner.script["send"].append([Failure(0, "Refused", "no", retryable=False)])
    assert len(await transport.send("queue", outgoing)) == 1
    inner.script["change_visibility"].append(TransportError("Throttled", "slow", retryable=True))
    with pytest.raises(TransportError):
        await transport.change_visibility("queue", [("r", 1.0)])

    assert transport.requests == {
        "send": CallCounts(calls=2, entries=2, billed=4, payload_bytes=140_000),
        "change_visibility": CallCounts(calls=2, entries=2, failed=1, billed=2),
    }
    transport.reset()
    assert transport.requests == {}
    await transport.aclose()
    assert inner.closed == 1


def test_times_are_counted_in_hundredths_of_a_second() -> None:
    assert count_ticks([1.0, 1.009, 1.01, 2.5]) == {100: 2, 101: 1, 250: 1}
    assert merge_ticks([{1: 2}, {1: 3, 2: 1}, {}]) == {1: 5, 2: 1}


def test_each_queue_has_its_own_service() -> None:
    assert [service.name for service in build_services(Load(queues=3))] == ["queue-1", "queue-2", "queue-3"]
    handled: Any = SimpleNamespace(add=lambda _: None)
    assert build_service(7, handled).name == "queue-7"


def test_the_smallest_size_is_that_of_the_envelope() -> None:
    with pytest.raises(ConfigError) as raised:
        padding_for(100)
    smallest = int(str(raised.value).split()[-2])

    assert padding_for(smallest) == ""
    assert padding_for(smallest + 3) == "xxx"
    with pytest.raises(ConfigError):
        padding_for(smallest - 1)


def measured_in(transport: FakeTransport) -> list[Measured]:
    bodies = [message.body for _, _, messages, _ in transport.calls for message in messages]
    return [Measured.model_validate_json(body.partition('"data":')[2][:-1]) for body in bodies]


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let producers and runs measure time on the clock of the running loop."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time(), process_time=lambda: 0.0)
    for module in (producer, in_memory, worker):
        monkeypatch.setattr(module, "time", clock)


@pytest.mark.usefixtures("virtual_clock")
def test_a_producer_publishes_each_event_when_it_is_due() -> None:
    async def main() -> tuple[ProducerReport, float]:
        one = Producer(Load(events=10, warmup=0, producers=2, rate_per_second=2.0), 1, FakeTransport(), "fake")
        report = await one.publish(5.0)
        now = asyncio.get_running_loop().time()
        await one.aclose()
        return report, now

    report, now = run_virtually(main())

    assert (report.begun_at, report.published, report.failed, report.failure) == (5.0, 5, 0, "")
    assert 9.5 <= report.ended_at <= now < 9.6
    assert [tick // 50 for tick in sorted(report.timeline)] == [11, 13, 15, 17, 19]
    assert report.transport == "fake"


@pytest.mark.usefixtures("virtual_clock")
def test_a_producer_publishes_its_warm_up_without_counting_it() -> None:
    async def main() -> tuple[FakeTransport, Producer, ProducerReport]:
        transport = FakeTransport()
        one = Producer(Load(events=3, warmup=4), 0, transport, "fake")
        await one.warm_up()
        assert sorted(event.number for event in measured_in(transport)) == [-4, -3, -2, -1]
        assert one.done == 0
        transport.calls.clear()
        report = await one.publish(0.0)
        await one.aclose()
        return transport, one, report

    transport, one, report = run_virtually(main())

    assert sorted(event.number for event in measured_in(transport)) == [0, 1, 2]
    assert (report.published, one.done) == (3, 3)
    assert report.requests["publish"].entries == 3


@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("rate", [None, 10.0])
def test_a_run_without_published_events_ends_where_it_began(rate: float | None) -> None:
    async def main() -> ProducerReport:
        transport = FakeTransport()
        transport.script["publish"] += [[Failure(0, "Refused", "no", retryable=False)]] * 9
        one = Producer(Load(events=1, warmup=0, rate_per_second=rate), 0, transport, "fake")
        report = await one.publish(3.0)
        await one.aclose()
        return report

    report = run_virtually(main())

    assert (report.published, report.failed, report.failure) == (0, 1, "Refused: no")
    assert report.ended_at == report.begun_at == 3.0


def test_a_run_in_memory_handles_every_event_on_every_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "tune_garbage_collector", lambda: None)
    load = Load(events=30, warmup=7, queues=2, size_bytes=600)

    reports = asyncio.run(InMemoryRun(load, lambda _: None).run())

    found = figures.compute_figures(load, RunSetting("memory", published_first=True, one_process=True), reports)
    assert (found.published.messages, found.delivered.messages, found.missing, found.duplicates) == (30, 60, 0, 0)
    assert [report.queue for report in reports.handled] == [1, 2]
    assert found.requests["publish"].entries == 30
    assert found.requests["delete"].entries == 60
    begun = {report.begun_at for report in reports.handled}
    assert min(begun) >= reports.published[0].ended_at


class Silent:
    """A worker that handles nothing."""

    def __init__(self, *_: object) -> None:
        self.handled = SimpleNamespace(warm=0, distinct=0)
        self.stopped = 0
        self.task = asyncio.ensure_future(asyncio.sleep(0))

    def stop(self) -> None:
        self.stopped += 1

    def measure(self) -> None: ...

    async def drain(self) -> str:
        return "a report"


@pytest.mark.usefixtures("virtual_clock")
def test_a_run_in_memory_ends_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "BenchWorker", Silent)
    seen: list[Any] = []

    async def main() -> float:
        load = Load(events=2, warmup=1, queues=1, patience_seconds=5, rate_per_second=1_000)
        reports = await InMemoryRun(load, seen.append).run()
        assert len(reports.handled) == 1
        return asyncio.get_running_loop().time()

    assert 10 <= run_virtually(main()) <= 10.5  # for the warm-up, and for the events
    assert 100 <= len(seen) <= 105  # ten times a second


@pytest.mark.parametrize(("finished", "waits"), [(False, True), (True, False)])
def test_a_worker_of_a_run_is_ready_when_it_polls(finished: bool, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        def __init__(self, *_: object) -> None:
            self.consumers: list[str] = ["one"] if finished else []

        async def run(self) -> int:
            await asyncio.sleep(1.0)
            self.consumers.append("one")
            await asyncio.sleep(100.0)
            return 0

    monkeypatch.setattr(worker, "Worker", Worker)
    monkeypatch.setattr(worker, "tune_garbage_collector", lambda: None)

    async def main() -> float:
        one = BenchWorker(Load(), 1, FakeTransport(), "fake")
        await one.wait_until_polling()
        one.task.cancel()
        return asyncio.get_running_loop().time()

    assert (1.0 <= run_virtually(main()) < 1.1) == waits


def test_a_machine_is_described_by_its_cores_system_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "uvloop":
            raise PackageNotFoundError
        return f"{package} 1"

    monkeypatch.setattr(figures, "version", version)
    monkeypatch.setattr(os, "cpu_count", lambda: None)

    found = figures.describe_machine()

    assert found.pop("system")
    assert str(found.pop("python")).startswith("CPython 3.")
    assert found == {
        "cores": 1, "smartpipe": "smartpipe 1", "aiobotocore": "aiobotocore 1", "pydantic": "pydantic 1",
    }  # fmt: skip


def figures_of(count: int) -> Figures:
    load = Load(events=count or 1, warmup=0, queues=2)
    published = ProducerReport(begun_at=0.0, ended_at=1.0, cpu_seconds=0.1, transport="direct", published=count)
    handled = WorkerReport(
        begun_at=0.0, ended_at=1.0, cpu_seconds=0.1, queue=1, seen=encode_seen(b"\x01" * count), deliveries=count,
        latencies=encode_latencies([0.05] * count),
    )  # fmt: skip
    found = figures.compute_figures(load, RunSetting("here"), figures_reports(published, handled))
    timeline = [TimelinePoint(number / 4, 10.0, 20.0) for number in range(4)]
    return found._replace(timeline=timeline, published=Throughput(count, 1.0, None))


def figures_reports(published: ProducerReport, handled: WorkerReport) -> Any:
    return Reports([published], [handled])


@pytest.mark.parametrize(
    ("count", "shown", "hidden"),
    [
        (1_000, ["p50  50 ms", "p99  50 ms", "p99.9  50 ms", "99.9 %"], ["99.99 %"]),
        (100, ["p50  50 ms", "p90  50 ms", "p99  50 ms", "99 %"], ["p99.9", "99.9 %"]),
        (0, [], ["p50", "90 %"]),
    ],
)
def test_a_plot_shows_the_percentiles_that_enough_events_support(
    count: int, shown: list[str], hidden: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    from smartpipe.bench.plot import plot  # matplotlib takes a second of CPU time to import

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    file = tmp_path / "run.svg"

    plot(figures_of(count), file)

    text = file.read_text()
    for one in (*shown, "delivered, 2 per event", "published", "messages per second", "2 queues"):
        assert f">{one}" in text or one in text, one
    for one in hidden:
        assert f">{one}" not in text, one
    assert (SATURATED.split(":")[0] in " ".join(text.split())) == bool(count)
    assert "<dc:date>" not in text


def test_a_plot_is_a_picture_of_the_size_of_a_page(tmp_path: Path) -> None:
    from smartpipe.bench.plot import DOTS_PER_INCH, SIZE_INCHES, plot

    file = tmp_path / "run.png"

    plot(figures_of(10), file)

    header = file.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == tuple(math.floor(inches * DOTS_PER_INCH) for inches in SIZE_INCHES)


def test_the_curve_of_a_mixture_rises() -> None:
    latency = merge_latencies([encode_latencies([number / 1_000 for number in range(1, 1_001)])])

    assert latency is not None
    values = [seconds for _, seconds in latency.curve]
    assert values == sorted(values)
    assert latency.curve[0][0] == 0
    assert latency.mean == pytest.approx(0.5005, rel=0.01)
