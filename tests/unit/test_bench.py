from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.bench.broker import environment_for, is_aws
from smartpipe.bench.cost import Cost, cost_of, max_cost_of
from smartpipe.bench.counting import CallCounts, CountingTransport, sum_requests
from smartpipe.bench.fanout import HandledEvents, Measured, padding_for
from smartpipe.bench.figures import Figures, RunSetting, Throughput, TimelinePoint, compute_figures
from smartpipe.bench.in_memory import InMemoryRun
from smartpipe.bench.latencies import count_seen, encode_latencies, encode_seen, merge_latencies
from smartpipe.bench.load import Load, default_warmup
from smartpipe.bench.messages import (
    Assignment,
    ChildMessage,
    ProducerReport,
    Progress,
    SeenEvents,
    StepDone,
    WorkerReport,
    format_message,
    parse_message,
)
from smartpipe.bench.producer import Producer
from smartpipe.bench.report import (
    PUBLISHED_FIRST,
    SATURATED,
    build_json,
    format_milliseconds,
    format_text,
    latency_warning,
)
from smartpipe.bench.run import Reports, RunProgress, _Run, assign_processes
from smartpipe.bench.worker import BenchWorker
from smartpipe.errors import SmartpipeError, TransportError
from smartpipe.message import Failure, OutgoingMessage
from smartpipe.worker.worker import Worker
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINE: dict[str, str | int] = {"cores": 2, "system": "Linux", "python": "CPython 3.13", "smartpipe": "1"}


def test_all_errors_of_a_load_are_reported_together_by_flag() -> None:
    with pytest.raises(ConfigError) as raised:
        Load(events=0, size_bytes=300_000, rate_per_second=0.5)

    assert raised.value.problems == (
        "--events=0 is outside the range 1 to 100,000,000",
        "--size=300000 is outside the range 1 to 262,144",
        "--rate=0.5 is outside the range 1 to 1,000,000",
    )


@pytest.mark.parametrize(("events", "warmup"), [(5, 0), (5_000, 500), (1_000_000, 1_000)])
def test_the_warm_up_is_a_tenth_of_the_events_and_at_most_1000(events: int, warmup: int) -> None:
    assert default_warmup(events) == warmup


def test_a_load_is_5000_events_of_1_kilobyte_to_3_queues_unless_told() -> None:
    assert Load() == Load(
        events=5_000, warmup=500, size_bytes=1_024, queues=3, producers=1, processes=1,
        concurrency=10, rate_per_second=None, patience_seconds=30.0,
    )  # fmt: skip


def test_producers_share_events_and_one_schedule() -> None:
    load = Load(events=10, warmup=5, producers=3, rate_per_second=100)

    numbers = [list(load.event_numbers(producer)) for producer in range(3)]
    warm = [list(load.warmup_event_numbers(producer)) for producer in range(3)]

    assert numbers == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert sorted(chain.from_iterable(warm)) == [-5, -4, -3, -2, -1]
    assert [load.due_at(number, 50.0) for number in (0, 1, 9)] == [50.0, 50.01, 50.09]
    assert Load().due_at(1, 50.0) is None


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("events", 1, 100_000_000),
        ("warmup", 0, 100_000_000),
        ("size_bytes", 1, 262_144),
        ("queues", 1, 100),
        ("producers", 1, 100),
        ("processes", 1, 100),
        ("concurrency", 1, 10_000),
        ("rate_per_second", 1, 1_000_000),
        ("patience_seconds", 1, 3_600),
    ],
)
def test_each_value_of_a_load_has_a_range(field: str, low: int, high: int) -> None:
    values: Any = [low - 1, low, high, high + 1]
    refused = []
    for value in values:
        try:
            Load(**{field: value})
        except ConfigError:
            refused.append(value)

    assert refused == [low - 1, high + 1]


@pytest.mark.parametrize("size", [1_024, 65_000])
async def test_messages_have_the_requested_size(size: int) -> None:
    transport = FakeTransport()
    producer = Producer(Load(events=3, warmup=0, size_bytes=size), 0, transport, "fake")

    await producer.publish(0.0)
    await producer.aclose()

    sizes = [message.size_bytes for _, _, messages, _ in transport.calls for message in messages]
    assert sizes == [pytest.approx(size, abs=20)] * 3


def test_a_size_smaller_than_the_envelope_is_an_error() -> None:
    with pytest.raises(ConfigError, match="less than the envelope alone, which is [0-9]+ bytes"):
        padding_for(100)


async def test_failed_events_are_counted_and_the_others_are_published() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([Failure(3, "InvalidParameter", "no", retryable=False)])
    producer = Producer(Load(events=25, warmup=0), 0, transport, "fake")

    report = await producer.publish(0.0)
    await producer.aclose()

    assert (report.published, report.failed, report.failure) == (24, 1, "InvalidParameter: no")
    assert sum(report.timeline.values()) == 24


async def test_with_a_rate_latency_counts_from_the_due_time_even_if_the_event_was_published_late() -> None:
    transport = FakeTransport()
    begin = time.monotonic() - 1.0  # the producer was delayed, so all events are late
    producer = Producer(Load(events=20, warmup=0, rate_per_second=200), 0, transport, "fake")

    await producer.publish(begin)
    await producer.aclose()

    bodies = [message.body for _, _, messages, _ in transport.calls for message in messages]
    dues = sorted(float(body.partition('"due":')[2].partition(",")[0]) for body in bodies)
    assert dues == pytest.approx([begin + number / 200 for number in range(20)], abs=1e-6, rel=0)


async def test_with_a_rate_no_event_is_published_before_it_is_due() -> None:
    transport = FakeTransport()
    begin = time.monotonic()
    producer = Producer(Load(events=5, warmup=0, rate_per_second=50), 0, transport, "fake")

    report = await producer.publish(begin)
    await producer.aclose()

    assert report.begun_at == begin
    assert report.ended_at >= begin + 4 / 50


async def test_requests_are_counted_by_verb_with_those_that_fail_or_return_no_messages() -> None:
    inner, published = FakeTransport(), list[int]()
    transport = CountingTransport(inner, published.append)
    outgoing = [OutgoingMessage("x" * 40_000, 40_000)] * 2
    inner.put("a", "b")
    inner.script["delete"].append(TransportError("Throttled", "slow down", retryable=True))
    inner.script["publish"].append([Failure(1, "Throttled", "", retryable=True)])

    await transport.publish("topic", outgoing)
    arguments: dict[str, Any] = {"max_messages": 10, "wait_seconds": 0, "visibility_timeout_seconds": 30}
    await transport.receive("queue", **arguments)
    await transport.receive("queue", **arguments)
    with pytest.raises(TransportError):
        await transport.delete("queue", ["r1"])
    await transport.delete("queue", ["r1", "r2"])

    assert transport.requests == {
        "publish": CallCounts(calls=1, entries=2, billed=2, payload_bytes=80_000),
        "receive": CallCounts(calls=2, entries=2, empty=1, billed=2, payload_bytes=2),
        "delete": CallCounts(calls=2, entries=2, failed=1, billed=2),
    }
    assert published == [1]


def test_requests_of_several_processes_are_summed() -> None:
    one = {"receive": CallCounts(calls=2, entries=11, empty=1, billed=2)}

    assert sum_requests([one, one, {"delete": CallCounts(calls=1)}]) == {
        "receive": CallCounts(calls=4, entries=22, empty=2, billed=4),
        "delete": CallCounts(calls=1),
    }


def test_sns_bills_publishing_and_sqs_bills_all_other_requests() -> None:
    requests = {
        "publish": CallCounts(billed=1_000_000),
        "receive": CallCounts(billed=1_000_000),
        "delete": CallCounts(billed=500_000),
    }

    assert cost_of(requests) == pytest.approx(Cost(sns=0.50, sqs=0.60))
    assert cost_of({}) == Cost(0, 0)


@pytest.mark.parametrize(("size", "chunks"), [(1, 1), (65_536, 1), (65_537, 2), (70_000, 2), (262_144, 4)])
def test_the_highest_cost_of_a_run_has_separate_requests_for_every_message(size: int, chunks: int) -> None:
    load = Load(events=900_000, warmup=100_000, queues=2, size_bytes=size)

    # For each chunk of 64 KB: 1 M publishes, and 2 queues times 1 M receives. For each queue: 1 M deletes.
    assert max_cost_of(load) == pytest.approx(Cost(sns=0.50 * chunks, sqs=2 * 0.40 * (chunks + 1)))


def test_a_duplicate_delivery_counts_once() -> None:
    handled = HandledEvents(3)
    for number in (-1, 0, 2, 2):
        handled.add(Measured(number=number, due=0.0, padding=""))

    assert (handled.warm, handled.distinct, handled.deliveries, len(handled.latencies_seconds)) == (1, 2, 3, 2)
    assert bytes(handled.seen) == b"\x01\x00\x01"


def test_the_events_of_several_workers_of_a_queue_are_merged_as_a_union() -> None:
    assert count_seen([encode_seen(b"\x00\x01\x01\x00"), encode_seen(b"\x01\x01\x00\x00")]) == 3


def test_histograms_of_several_processes_are_merged() -> None:
    fast, slow = encode_latencies([0.001] * 990), encode_latencies([1.0] * 10)

    latency = merge_latencies([fast, slow])

    assert latency is not None
    assert latency.deliveries == 1_000
    assert (latency.p50, latency.p99_9, latency.max) == pytest.approx((0.001, 1.0, 1.0), rel=0.001)
    assert latency.curve[-1][0] == 99.9  # less than one delivery is above that
    assert merge_latencies([encode_latencies([])]) is None


def test_latencies_beyond_the_range_of_the_histogram_count_as_its_ends() -> None:
    found = [merge_latencies([encode_latencies([seconds])]) for seconds in (-0.001, 0.0, 0.000_001, 86_400.0, 1e9)]

    assert [one and one.max for one in found] == pytest.approx([0.000_001] * 3 + [86_400.0] * 2, rel=0.001)


def reports() -> tuple[Load, Reports]:
    load = Load(events=100, warmup=0, queues=2)
    publishing = ProducerReport(
        begun_at=10.0,
        ended_at=12.0,
        cpu_seconds=0.01,
        transport="direct",
        requests={"publish": CallCounts(10, 100, billed=10)},
        timeline={1_000: 60, 1_150: 40},
        published=100,
    )

    def handling(queue: int, seen: bytes, deliveries: int) -> WorkerReport:
        return WorkerReport(
            begun_at=9.9,
            ended_at=14.0,
            cpu_seconds=0.02,
            queue=queue,
            seen=encode_seen(seen),
            deliveries=deliveries,
            latencies=encode_latencies([0.05] * deliveries),
            requests={
                "receive": CallCounts(20, deliveries, 10, billed=20),
                "delete": CallCounts(10, deliveries, billed=10),
            },
        )

    handled = [handling(1, b"\x01" * 100, 103), handling(2, b"\x01" * 90 + b"\x00" * 10, 90)]
    return load, Reports([publishing], handled)


def test_the_events_of_each_queue_count_for_that_queue() -> None:
    _, reported = reports()
    one = reported.handled[0]
    seen = [(1, b"\x01\x01\x00"), (1, b"\x01\x00\x00"), (2, b"\x00\x00\x01"), (3, b"\x00\x00\x00")]
    handled = [replace(one, queue=queue, seen=encode_seen(events)) for queue, events in seen]

    found = compute_figures(Load(events=3, warmup=0, queues=3), RunSetting("x"), reported._replace(handled=handled))

    assert (found.delivered.messages, found.missing) == (3, 6)


def test_figures_are_computed_from_the_reports_of_the_processes() -> None:
    load, reported = reports()

    found = compute_figures(load, RunSetting("somewhere"), reported)

    assert found.published == pytest.approx(Throughput(100, 2.0, 100.0))
    assert found.delivered == pytest.approx(Throughput(190, 4.0, 0.04 / 190 * 1e6))
    assert (found.missing, found.duplicates, found.failed) == (10, 3, 0)
    assert found.sns_requests_per_message == 0.1
    assert found.sqs_requests_per_message == pytest.approx(60 / 190)
    # 10 requests to SNS and 60 to SQS, for 100 events
    assert found.per_million == pytest.approx(Cost(0.5 * 0.1, 0.4 * 0.6))
    assert found.timeline == [
        TimelinePoint(0.0, 240.0, 0.0),
        *(TimelinePoint(n / 4, 0.0, 0.0) for n in range(1, 6)),
        TimelinePoint(1.5, 160.0, 0.0),
    ]


def figures_of(load: Load, setting: RunSetting = RunSetting("somewhere"), **changed: Any) -> Figures:  # noqa: B008
    found = compute_figures(load, setting, reports()[1])
    return found._replace(**changed)


def test_the_text_report_shows_every_figure() -> None:
    load, reported = reports()

    lines = list(format_text(compute_figures(load, RunSetting("somewhere"), reported), MACHINE))

    text = "\n".join(lines)
    assert "100 events of 1,024 bytes to 2 queues, as fast as possible, on somewhere" in text
    assert "1 producer, 1 worker per queue, each a process; concurrency 10; direct transport" in text
    assert "  published               50      2.00         100" in text
    assert "  delivered               48      4.00         190  of 200, 3 duplicates" in text
    assert SATURATED in text
    assert "cost of a million such events on AWS: about $0.29 (SNS $0.05, SQS $0.24)" in text
    assert lines[-1] == "10 of 200 deliveries did not arrive"
    assert max(map(len, lines)) <= 120


REPORT = """\
100 events of 1,024 bytes to 2 queues, as fast as possible, on somewhere
1 producer, 1 worker per queue, each a process; concurrency 10; direct transport
2 cores, Linux, CPython 3.13, smartpipe 1

throughput        per second   seconds    messages
  published               50      2.00         100
  delivered               48      4.00         190  of 200, 3 duplicates

publish → handled, ms       p50       p90       p99     p99.9       max
                             50        50        50        50        50
  events were published as fast as possible: this is the waiting time in full queues; use --rate for latency

client                CPU µs  requests   per message
  publishing             100     0.100
  handling               211     0.316

requests               calls  messages  per call   empty  failed
  publish                 10       100      10.0               0
  receive                 40       193       4.8      20       0
  delete                  20       193       9.7               0

cost of a million such events on AWS: about $0.29 (SNS $0.05, SQS $0.24), from the requests above
  us-east-1, standard topics and queues, list prices of November 2026, without the free tier

10 of 200 deliveries did not arrive"""

REPORT_OF_ONE_PROCESS = """\
100 events of 1,024 bytes to 1 queue, 1,000 events/s, in memory with a round trip of 2.5 ms added
one process, one event loop; concurrency 2,000; direct transport
1 core, Linux, CPython 3.13, smartpipe 1

throughput        per second   seconds    messages
  published               50      2.00         100
  delivered               25      4.00         100  of 100, no duplicates

publish → handled, ms       p50       p90       p99     p99.9       max
                           5.00      5.00      5.00      5.00      5.00
  the last event was published 1.9 s late: this setup cannot sustain 1,000 events/s, and latency counts from when an \
event was due

client                CPU µs  requests   per message
  publishing                     0.120
  handling                       0.600
  both                   200             per delivery, because one process did both

requests               calls  messages  per call   empty  failed
  publish                 12       100      10.0               2
  receive                 40       193       4.8      20       0
  delete                  20       193       9.7               0

cost of a million such events on AWS: about $0.29 (SNS $0.05, SQS $0.24), from the requests above
  us-east-1, standard topics and queues, list prices of November 2026, without the free tier

1 event could not be published; the first error: Throttled: slow"""


def test_a_text_report_is_the_expected_one_from_the_first_line_to_the_last() -> None:
    load, reported = reports()
    assert "\n".join(format_text(compute_figures(load, RunSetting("somewhere"), reported), MACHINE)) == REPORT

    load = Load(events=100, warmup=5, queues=1, rate_per_second=1_000, producers=2, processes=2, concurrency=2_000)
    setting = RunSetting("memory", one_process=True, latency_milliseconds=2.5)
    found = compute_figures(load, setting, reported)
    requests = {**found.requests, "publish": CallCounts(12, 100, failed=2, billed=10)}
    found = found._replace(
        requests=requests, duplicates=0, failed=1, failure="Throttled: slow",
        latency=merge_latencies([encode_latencies([0.005])]),
    )  # fmt: skip
    text = "\n".join(format_text(found, {**MACHINE, "cores": 1}))
    assert text == REPORT_OF_ONE_PROCESS


@pytest.mark.parametrize(
    ("setting", "published", "delivered", "together"),
    [
        (RunSetting("x"), 100.0, 400.0, None),
        (RunSetting("x", one_process=True), None, None, 200.0),
        (RunSetting("x", one_process=True, published_first=True), 100.0, 200.0, None),
    ],
)
def test_the_cpu_time_of_a_shared_process_counts_once(
    setting: RunSetting, published: float | None, delivered: float | None, together: float | None
) -> None:
    found = compute_figures(Load(events=100, warmup=0, queues=1), setting, reports()[1])

    assert (found.published.cpu_us, found.delivered.cpu_us, found.cpu_us_together) == (published, delivered, together)


def test_figures_add_up_the_counters_the_failures_and_the_times_of_all_processes() -> None:
    load, reported = reports()
    [publishing], [one, two] = reported
    late = replace(
        publishing, begun_at=11.0, ended_at=13.5, published=50, failed=3, failure="B: b", timeline={1_000: 9}
    )
    early = replace(publishing, failed=2, failure="", published=50)
    handled = [
        replace(one, counts={"received": 5, "retried": 1}, begun_at=10.5, timeline={1_000: 25, 1_400: 50}),
        replace(two, counts={"received": 7}, begun_at=11.5, ended_at=13.0),
    ]

    found = compute_figures(load, RunSetting("x"), Reports([early, late], handled))

    assert (found.failed, found.failure, found.published.messages) == (5, "B: b", 100)
    assert (found.published.seconds, found.delivered.seconds) == (3.5, 3.5)
    assert found.counts == {"received": 12, "retried": 1}
    assert found.timeline[0] == TimelinePoint(0.0, 276.0, 100.0)
    assert found.timeline[-1] == TimelinePoint(4.0, 0.0, 200.0)
    assert len(found.timeline) == 17


def test_a_run_without_any_event_has_figures_of_zero() -> None:
    load, reported = reports()
    publishing = [replace(reported.published[0], published=0, timeline={}, requests={}, ended_at=10.0)]
    handled = [replace(reported.handled[0], seen=encode_seen(b""), deliveries=0, latencies=encode_latencies([]))]

    found = compute_figures(load, RunSetting("x"), Reports(publishing, handled))

    assert (found.published, found.latency, found.timeline) == (Throughput(0, 0.0, None), None, [])
    assert found.published.per_second == found.sns_requests_per_message == found.sqs_requests_per_message == 0
    assert (found.per_million, found.missing) == (Cost(0, 0), 200)
    assert build_json(found, MACHINE)["latency_seconds"] is None
    assert "deliveries did not arrive" in "\n".join(format_text(found, MACHINE))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.000_5, "0.50"), (0.009_99, "9.99"), (0.01, "10"), (0.0126, "13"), (1.5, "1,500")],
)
def test_a_duration_below_ten_milliseconds_has_two_decimals(seconds: float, text: str) -> None:
    assert format_milliseconds(seconds) == text


def test_the_latency_of_a_mixture_has_its_mean_and_percentiles() -> None:
    latency = merge_latencies([encode_latencies([0.001] * 900 + [0.101] * 90 + [1.0] * 9 + [2.0])])

    assert latency is not None
    assert latency[1:7] == pytest.approx((0.0210, 0.001, 0.001, 0.101, 1.0, 2.0), rel=0.01)


@pytest.mark.parametrize(("count", "highest"), [(1, 0), (2, 50), (10, 90), (99, 98), (100, 99), (1_000, 99.9)])
def test_a_latency_curve_ends_where_one_delivery_is_above(count: int, highest: float) -> None:
    latency = merge_latencies([encode_latencies([0.001] * count)])

    assert latency is not None
    assert latency.curve[-1][0] == highest


def test_the_json_report_has_the_figures_and_the_machine() -> None:
    load, reported = reports()

    found = build_json(compute_figures(load, RunSetting("somewhere"), reported), MACHINE)

    assert found["published"]["per_second"] == 50
    assert found["delivered"]["missing"] == 10
    assert found["latency_seconds"]["p99.9"] == pytest.approx(0.05, rel=0.001)
    assert found["requests"]["receive"]["empty"] == 20
    assert found["machine"] == MACHINE
    assert found["failure"] is None
    assert found["dollars_per_million_events"]["total"] == pytest.approx(0.29)
    assert (found["latency_ms"], found["one_process"], found["published_before_handled"]) == (0.0, False, False)
    assert found["published"]["failed"] == 0


def test_both_reports_name_the_first_error_of_events_that_could_not_be_published() -> None:
    found = figures_of(reports()[0], failed=2, failure="InvalidParameter: no")

    assert build_json(found, MACHINE)["failure"] == "InvalidParameter: no"
    assert "2 events could not be published; the first error: InvalidParameter: no" in list(format_text(found, MACHINE))


@pytest.mark.parametrize(
    ("rate", "setting", "seconds", "warning"),
    [
        (None, RunSetting("x"), 1.0, SATURATED),
        (None, RunSetting("memory", published_first=True, one_process=True), 1.0, PUBLISHED_FIRST),
        (50, RunSetting("x"), 2.3, ""),
        (50, RunSetting("x"), 3.0, ""),
        (50, RunSetting("x"), 3.1, "the last event was published 1.1 s late"),
        (1, RunSetting("x"), 102.0, ""),
        (1, RunSetting("x"), 102.1, "the last event was published 2.1 s late"),
        (50, RunSetting("x"), 9.0, "the last event was published 7.0 s late: this setup cannot sustain 50 events/s"),
    ],
)
def test_a_report_warns_about_misleading_latencies(
    rate: float | None, setting: RunSetting, seconds: float, warning: str
) -> None:
    load = Load(events=100, warmup=0, queues=2, rate_per_second=rate)

    found = latency_warning(figures_of(load, setting, published=Throughput(100, seconds, None)))

    assert found.startswith(warning)
    assert bool(found) == bool(warning)


def test_a_long_timeline_is_downsampled_without_loss() -> None:
    from smartpipe.bench.plot import downsample  # matplotlib takes a second of CPU time to import

    timeline = [TimelinePoint(n / 4, 100.0, 200.0) for n in range(1_000)]

    steps = downsample(timeline)

    assert len(steps) <= 121
    assert (steps[0].published_per_second, steps[-2].delivered_per_second) == (100.0, 200.0)
    assert steps[-1] == TimelinePoint(250.0, 0.0, 0.0)
    assert [downsample(timeline[:count])[1].seconds for count in (120, 121, 240, 241)] == [0.25, 0.5, 0.5, 0.75]
    assert downsample([]) == []


def test_each_further_nine_of_a_percentile_is_one_step_to_the_right() -> None:
    from smartpipe.bench.plot import _nines_of

    assert [_nines_of(percentile) for percentile in (0, 90, 99, 99.9, 99.99)] == pytest.approx([0, 1, 2, 3, 4])


def test_a_message_is_one_line_and_parses_to_an_equal_message() -> None:
    messages: list[ChildMessage] = [
        StepDone(kind="ready"),
        Progress(done=3),
        SeenEvents(seen="x"),
        *reports()[1].handled,
    ]

    for message in messages:
        line = format_message(message)
        assert line.count(b"\n") == 1
        assert parse_message(line) == message


class ScriptedProcesses:
    """Stands for ChildProcesses: it returns the messages of a test's script, and records the commands."""

    def __init__(self, load: Load, script: Sequence[tuple[int, ChildMessage] | None]) -> None:
        roles = [assignment for _, assignment in assign_processes(load)]
        self.children = [self._child(number, role) for number, role in enumerate(roles)]
        self._script = list(script)
        self.commands: list[str] = []

    @staticmethod
    def _child(number: int, assignment: Assignment) -> Any:
        return SimpleNamespace(assignment=assignment, process=SimpleNamespace(pid=number))

    def send(self, command: Any, children: Sequence[Any]) -> None:
        self.commands.append(f"{command.action} {','.join(str(child.process.pid) for child in children)}")

    async def receive(self, timeout_seconds: float) -> tuple[Any, ChildMessage]:
        step = self._script.pop(0) if self._script else None
        if step is None:
            raise TimeoutError
        return self.children[step[0]], step[1]


async def test_an_event_delivered_to_two_workers_of_a_queue_does_not_hide_one_that_is_missing() -> None:
    load = Load(events=2, warmup=0, queues=1, processes=2)
    first, second = reports()[1].handled
    script: list[tuple[int, ChildMessage]] = [
        *((number, StepDone(kind="ready")) for number in range(3)),
        (2, StepDone(kind="warmed_up")),
        *((number, StepDone(kind="measuring")) for number in range(2)),
        (2, reports()[1].published[0]),
        (0, Progress(done=1)),
        (1, Progress(done=1)),  # two deliveries, but of the same event
        (0, SeenEvents(seen=encode_seen(b"\x01\x00"))),
        (1, SeenEvents(seen=encode_seen(b"\x01\x00"))),
        (1, Progress(done=2)),
        (0, SeenEvents(seen=encode_seen(b"\x01\x00"))),
        (1, SeenEvents(seen=encode_seen(b"\x01\x01"))),
        (0, first),
        (1, second),
    ]
    processes = ScriptedProcesses(load, script)
    seen: list[RunProgress] = []

    found = await _Run(load, processes, seen.append).run()  # type: ignore[arg-type]

    assert len(found.handled) == 2
    assert processes.commands == [
        "warm_up 2",
        "measure 0,1",
        "measure 2",
        "report_seen 0,1",
        "report_seen 0,1",
        "stop 0,1",
    ]
    assert seen[-1] == RunProgress("draining", 100, 3)


async def test_a_run_in_memory_reports_its_progress_while_it_measures() -> None:
    seen: list[RunProgress] = []

    await InMemoryRun(Load(events=60, warmup=1, queues=2, rate_per_second=100), seen.append).run()

    assert len(seen) > 1
    assert {one.phase for one in seen} == {"measuring"}
    assert [one.published for one in seen] == sorted(one.published for one in seen)
    assert 0 < seen[-1].handled <= 120


async def test_a_warm_up_that_does_not_arrive_is_published_again() -> None:
    load = Load(events=2, warmup=5, queues=1)
    processes = ScriptedProcesses(
        load,
        [
            *((number, StepDone(kind="ready")) for number in range(2)),
            (1, StepDone(kind="warmed_up")),
            (0, Progress(done=0, warm=4)),
            None,  # no message until the warm-up is repeated
            (0, Progress(done=0, warm=9)),
        ],
    )

    with pytest.raises(SmartpipeError, match="nothing happened"):
        await _Run(load, processes, lambda _: None).run()  # type: ignore[arg-type]

    assert processes.commands == ["warm_up 1", "warm_up 1", "measure 0"]


async def test_a_run_whose_producers_stall_ends_with_an_error() -> None:
    load = Load(events=2, warmup=0, queues=1)
    script: list[tuple[int, ChildMessage]] = [
        (0, StepDone(kind="ready")),
        (1, StepDone(kind="ready")),
        (1, StepDone(kind="warmed_up")),
        (0, StepDone(kind="measuring")),
    ]

    with pytest.raises(SmartpipeError, match="nothing happened for 30 s, although producers still have events"):
        await _Run(load, ScriptedProcesses(load, script), lambda _: None).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "costs"),
    [
        ({}, True),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566"}, False),
        ({"AWS_ENDPOINT_URL_SQS": "https://sqs.eu-west-1.amazonaws.com"}, True),
        ({"AWS_ENDPOINT_URL_SQS": "http://localhost:4566"}, True),  # SNS is on AWS
        ({"AWS_ENDPOINT_URL_SQS": "http://localhost:4566", "AWS_ENDPOINT_URL_SNS": "http://localhost:4566"}, False),
        ({"AWS_ENDPOINT_URL_S3": "http://localhost:9000"}, True),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, True),
    ],
)
def test_endpoints_decide_whether_a_run_costs_money(environment: dict[str, str], costs: bool) -> None:
    assert is_aws(environment) is costs


def test_an_endpoint_outside_aws_needs_no_credentials_and_gets_its_own_prefix() -> None:
    inherited = {
        "PATH": "/bin",
        "SMARTPIPE_CLAIM_CHECK_URL": "s3://bucket",
        "AWS_ENDPOINT_URL_SNS": "https://elsewhere",
    }

    found = environment_for("http://localhost:4566", inherited)

    prefix = found.pop("SMARTPIPE_PREFIX")
    assert prefix.startswith("bench-")
    assert prefix != environment_for("aws", inherited)["SMARTPIPE_PREFIX"]
    assert found == {
        "PATH": "/bin",
        "AWS_ENDPOINT_URL": "http://localhost:4566",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


async def test_a_worker_of_a_run_drains_before_it_reports_what_it_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.bench.worker.tune_garbage_collector", lambda: None)  # it outlives the test
    transport = FakeTransport()
    worker = BenchWorker(Load(events=3, warmup=0), 2, transport, "fake")
    await worker.wait_until_polling()
    worker.measure()
    now = time.monotonic()
    transport.put(*[Measured(number=number, due=now, padding="") for number in (0, 2, 2)])
    await until(lambda: worker.handled.deliveries == 3)
    worker.stop()

    report = await worker.drain()

    assert transport.closed == 1
    assert len(transport.entries("delete")) == 3
    assert (report.queue, report.transport, report.deliveries) == (2, "fake", 3)
    assert report.counts == {"received": 3, "handled": 3}
    assert count_seen([report.seen]) == 2
    assert report.requests["delete"].entries == 3
    assert sum(report.timeline.values()) == 2
    assert report.begun_at <= report.ended_at <= time.monotonic()


async def test_a_worker_of_a_run_that_cannot_start_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.bench.worker.tune_garbage_collector", lambda: None)

    async def fail(_: Worker) -> int:
        raise OSError("no port")

    monkeypatch.setattr(Worker, "run", fail)
    worker = BenchWorker(Load(events=3, warmup=0), 1, FakeTransport(), "fake")

    with pytest.raises(OSError, match="no port"):
        await worker.wait_until_polling()
