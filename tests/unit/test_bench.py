from __future__ import annotations

import time
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.bench.cost import Cost, at_most, cost
from smartpipe.bench.counting import Calls, CountingTransport, total
from smartpipe.bench.fanout import Ledger, Measured, padding_for
from smartpipe.bench.figures import Figures, Flow, Moment, Setting, figures
from smartpipe.bench.latencies import count_seen, encoded, packed, summed
from smartpipe.bench.load import Load, usual_warmup
from smartpipe.bench.messages import Assignment, Handled, Message, Progress, Published, Said, Tally, read, write
from smartpipe.bench.place import environment_at, is_aws
from smartpipe.bench.producing import Producer
from smartpipe.bench.report import IN_TURN, SATURATED, as_json, caveat, in_words
from smartpipe.bench.run import Reports, Standing, _Run, assignments
from smartpipe.errors import SmartpipeError, TransportError
from smartpipe.message import Failure, OutgoingMessage
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINE: dict[str, str | int] = {"cores": 2, "system": "Linux", "python": "CPython 3.13", "smartpipe": "1"}


def test_all_faults_of_a_load_are_told_together_as_flags() -> None:
    with pytest.raises(ConfigError) as raised:
        Load(events=0, size_bytes=300_000, rate_per_second=0.5)

    assert raised.value.problems == (
        "--events=0 is outside of 1 to 100,000,000",
        "--size=300000 is outside of 1 to 262,144",
        "--rate=0.5 is outside of 1 to 1,000,000",
    )


@pytest.mark.parametrize(("events", "warmup"), [(5, 0), (5_000, 500), (1_000_000, 1_000)])
def test_the_warm_up_is_a_tenth_unless_that_is_much(events: int, warmup: int) -> None:
    assert usual_warmup(events) == warmup


def test_producers_share_events_and_one_schedule() -> None:
    load = Load(events=10, warmup=5, producers=3, rate_per_second=100)

    numbers = [list(load.numbers(producer)) for producer in range(3)]
    warm = [list(load.warmup_numbers(producer)) for producer in range(3)]

    assert numbers == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert sorted(chain.from_iterable(warm)) == [-5, -4, -3, -2, -1]
    assert [load.due(number, 50.0) for number in (0, 1, 9)] == [50.0, 50.01, 50.09]
    assert Load().due(1, 50.0) is None


@pytest.mark.parametrize("size", [1_024, 65_000])
async def test_messages_have_the_size_that_was_asked_for(size: int) -> None:
    transport = FakeTransport()
    producer = Producer(Load(events=3, warmup=0, size_bytes=size), 0, transport)

    await producer.produce(0.0)
    await producer.aclose()

    sizes = [message.size_bytes for _, _, messages, _ in transport.calls for message in messages]
    assert sizes == [pytest.approx(size, abs=20)] * 3


def test_a_size_below_the_envelopes_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than the envelope alone, which is [0-9]+ bytes"):
        padding_for(100)


async def test_events_that_are_refused_are_counted_and_the_others_go_on() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([Failure(3, "InvalidParameter", "no", retryable=False)])
    producer = Producer(Load(events=25, warmup=0), 0, transport)

    report = await producer.produce(0.0)
    await producer.aclose()

    assert (report.published, report.failed, report.failure) == (24, 1, "InvalidParameter: no")
    assert sum(report.course.values()) == 24


async def test_with_a_rate_latency_counts_from_when_an_event_was_due_though_it_left_late() -> None:
    transport = FakeTransport()
    begin = time.monotonic() - 1.0  # the producer was held up: all of them are late
    producer = Producer(Load(events=20, warmup=0, rate_per_second=200), 0, transport)

    await producer.produce(begin)
    await producer.aclose()

    bodies = [message.body for _, _, messages, _ in transport.calls for message in messages]
    dues = sorted(float(body.partition('"due":')[2].partition(",")[0]) for body in bodies)
    assert dues == pytest.approx([begin + number / 200 for number in range(20)], abs=1e-6, rel=0)


async def test_with_a_rate_no_event_leaves_before_it_is_due() -> None:
    transport = FakeTransport()
    begin = time.monotonic()
    producer = Producer(Load(events=5, warmup=0, rate_per_second=50), 0, transport)

    report = await producer.produce(begin)
    await producer.aclose()

    assert report.begun_at == begin
    assert report.ended_at >= begin + 4 / 50


async def test_requests_are_counted_by_verb_also_those_that_fail_or_bring_nothing() -> None:
    inner, taken = FakeTransport(), list[int]()
    transport = CountingTransport(inner, taken.append)
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
        "publish": Calls(calls=1, entries=2, billed=2, payload_bytes=80_000),
        "receive": Calls(calls=2, entries=2, empty=1, billed=2, payload_bytes=2),
        "delete": Calls(calls=2, entries=2, failed=1, billed=2),
    }
    assert taken == [1]


def test_requests_of_several_processes_are_summed() -> None:
    one = {"receive": Calls(calls=2, entries=11, empty=1, billed=2)}

    assert total([one, one, {"delete": Calls(calls=1)}]) == {
        "receive": Calls(calls=4, entries=22, empty=2, billed=4),
        "delete": Calls(calls=1),
    }


def test_publishing_is_billed_by_sns_and_all_else_by_sqs() -> None:
    requests = {
        "publish": Calls(billed=1_000_000),
        "receive": Calls(billed=1_000_000),
        "delete": Calls(billed=500_000),
    }

    assert cost(requests) == pytest.approx(Cost(sns=0.50, sqs=0.60))
    assert cost({}) == Cost(0, 0)


def test_the_most_that_a_run_can_cost_has_every_message_in_requests_of_its_own() -> None:
    load = Load(events=900_000, warmup=100_000, queues=2, size_bytes=70_000)

    # 2 chunks of 64 KB each: 2 M publishes; 2 queues times (2 M receives and 1 M deletes)
    assert at_most(load) == pytest.approx(Cost(sns=1.00, sqs=2.40))


def test_a_delivery_that_comes_again_counts_once() -> None:
    ledger = Ledger(3)
    for number in (-1, 0, 2, 2):
        ledger.note(Measured(number=number, due=0.0, padding=""))

    assert (ledger.warm, ledger.distinct, ledger.deliveries, len(ledger.latencies_seconds)) == (1, 2, 3, 2)
    assert bytes(ledger.seen) == b"\x01\x00\x01"


def test_what_several_workers_of_a_queue_saw_is_the_union() -> None:
    assert count_seen([packed(b"\x00\x01\x01\x00"), packed(b"\x01\x01\x00\x00")]) == 3


def test_histograms_of_several_processes_are_one() -> None:
    fast, slow = encoded([0.001] * 990), encoded([1.0] * 10)

    latency = summed([fast, slow])

    assert latency is not None
    assert latency.deliveries == 1_000
    assert (latency.p50, latency.p99_9, latency.max) == pytest.approx((0.001, 1.0, 1.0), rel=0.001)
    assert latency.curve[-1][0] == 99.9  # above that there is less than one delivery
    assert summed([encoded([])]) is None


def reports() -> tuple[Load, Reports]:
    found = Load(events=100, warmup=0, queues=2)
    publishing = Published(
        begun_at=10.0,
        ended_at=12.0,
        cpu_seconds=0.01,
        transport="Wire",
        requests={"publish": Calls(10, 100, billed=10)},
        course={1_000: 60, 1_150: 40},
        published=100,
    )

    def handling(queue: int, seen: bytes, deliveries: int) -> Handled:
        return Handled(
            begun_at=9.9,
            ended_at=14.0,
            cpu_seconds=0.02,
            queue=queue,
            seen=packed(seen),
            deliveries=deliveries,
            latencies=encoded([0.05] * deliveries),
            requests={"receive": Calls(20, deliveries, 10, billed=20), "delete": Calls(10, deliveries, billed=10)},
        )

    handled = [handling(1, b"\x01" * 100, 103), handling(2, b"\x01" * 90 + b"\x00" * 10, 90)]
    return found, Reports([publishing], handled)


def test_figures_are_made_of_what_the_processes_report() -> None:
    load, reported = reports()

    found = figures(load, Setting("somewhere"), reported)

    assert found.published == pytest.approx(Flow(100, 2.0, 100.0))
    assert found.delivered == pytest.approx(Flow(190, 4.0, 0.04 / 190 * 1e6))
    assert (found.missing, found.duplicates, found.failed) == (10, 3, 0)
    assert found.sns_requests_per_message == 0.1
    assert found.sqs_requests_per_message == pytest.approx(60 / 190)
    # 10 requests to SNS and 60 to SQS, for 100 events
    assert found.per_million == pytest.approx(Cost(0.5 * 0.1, 0.4 * 0.6))
    assert found.course == [
        Moment(0.0, 240.0, 0.0),
        *(Moment(n / 4, 0.0, 0.0) for n in range(1, 6)),
        Moment(1.5, 160.0, 0.0),
    ]


def figures_of(load: Load, setting: Setting = Setting("somewhere"), **changed: Any) -> Figures:  # noqa: B008
    found = figures(load, setting, reports()[1])
    return found._replace(**changed)


def test_the_report_is_lines_of_text_that_name_every_figure() -> None:
    load, reported = reports()

    lines = list(in_words(figures(load, Setting("somewhere"), reported), MACHINE))

    text = "\n".join(lines)
    assert "100 events of 1,024 bytes to 2 queues, as fast as it goes, on somewhere" in text
    assert "1 producer, 1 worker a queue, each a process; concurrency 100; Wire" in text
    assert "  published               50      2.00         100" in text
    assert "  delivered               48      4.00         190  of 200, 3 came again" in text
    assert SATURATED in text
    assert "a million such events on AWS: about $0.29 (SNS $0.05, SQS $0.24)" in text
    assert lines[-1] == "10 of 200 deliveries did not come"
    assert max(map(len, lines)) <= 120


def test_the_json_has_what_the_text_has_and_the_machine() -> None:
    load, reported = reports()

    found = as_json(figures(load, Setting("somewhere"), reported), MACHINE)

    assert found["published"]["per_second"] == 50
    assert found["delivered"]["missing"] == 10
    assert found["latency_seconds"]["p99.9"] == pytest.approx(0.05, rel=0.001)
    assert found["requests"]["receive"]["empty"] == 20
    assert found["machine"] == MACHINE


@pytest.mark.parametrize(
    ("rate", "setting", "seconds", "said"),
    [
        (None, Setting("x"), 1.0, SATURATED),
        (None, Setting("memory", in_turn=True, one_process=True), 1.0, IN_TURN),
        (50, Setting("x"), 2.3, ""),
        (50, Setting("x"), 9.0, "the last event was published 7.0 s late: 50 events/s are more than this setup does"),
    ],
)
def test_a_report_says_what_its_latencies_are_worth(
    rate: float | None, setting: Setting, seconds: float, said: str
) -> None:
    load = Load(events=100, warmup=0, queues=2, rate_per_second=rate)

    found = caveat(figures_of(load, setting, published=Flow(100, seconds, None)))

    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_long_course_is_drawn_in_few_steps_with_nothing_lost() -> None:
    from smartpipe.bench.plot import thinned  # with matplotlib: a second of CPU, here for one worker only

    course = [Moment(n / 4, 100.0, 200.0) for n in range(1_000)]

    steps = thinned(course)

    assert len(steps) <= 121
    assert (steps[0].published_per_second, steps[-2].delivered_per_second) == (100.0, 200.0)
    assert steps[-1] == Moment(250.0, 0.0, 0.0)


def test_what_a_process_says_is_one_line_and_reads_as_it_was_said() -> None:
    said: list[Message] = [Said(kind="ready"), Progress(done=3), Tally(seen="x"), *reports()[1].handled]

    for message in said:
        line = write(message)
        assert line.count(b"\n") == 1
        assert read(line) == message


class ScriptedCrew:
    """Says what a test has it say, and remembers its orders."""

    def __init__(self, load: Load, script: Sequence[tuple[int, Message] | None]) -> None:
        parts = [assignment for _, assignment in assignments(load)]
        self.members = [self._member(number, part) for number, part in enumerate(parts)]
        self._script = list(script)
        self.orders: list[str] = []

    @staticmethod
    def _member(number: int, assignment: Assignment) -> Any:
        return SimpleNamespace(assignment=assignment, process=SimpleNamespace(pid=number))

    def order(self, order: Any, members: Sequence[Any]) -> None:
        self.orders.append(f"{order.what} {','.join(str(member.process.pid) for member in members)}")

    async def next(self, timeout_seconds: float) -> tuple[Any, Message]:
        said = self._script.pop(0) if self._script else None
        if said is None:
            raise TimeoutError
        return self.members[said[0]], said[1]


async def test_an_event_that_came_to_two_workers_of_a_queue_does_not_hide_one_that_has_not_come_yet() -> None:
    load = Load(events=2, warmup=0, queues=1, processes=2)
    first, second = reports()[1].handled
    script: list[tuple[int, Message]] = [
        *((number, Said(kind="ready")) for number in range(3)),
        (2, Said(kind="warm")),
        *((number, Said(kind="measuring")) for number in range(2)),
        (2, reports()[1].published[0]),
        (0, Progress(done=1)),
        (1, Progress(done=1)),  # two in all, but both are the same event
        (0, Tally(seen=packed(b"\x01\x00"))),
        (1, Tally(seen=packed(b"\x01\x00"))),
        (1, Progress(done=2)),
        (0, Tally(seen=packed(b"\x01\x00"))),
        (1, Tally(seen=packed(b"\x01\x01"))),
        (0, first),
        (1, second),
    ]
    crew = ScriptedCrew(load, script)
    seen: list[Standing] = []

    found = await _Run(load, crew, seen.append).run()  # type: ignore[arg-type]

    assert len(found.handled) == 2
    assert crew.orders == ["warm 2", "measure 0,1", "measure 2", "tally 0,1", "tally 0,1", "stop 0,1"]
    assert seen[-1] == Standing("draining", 100, 3)


async def test_a_warm_up_that_does_not_come_is_published_again() -> None:
    load = Load(events=2, warmup=5, queues=1)
    crew = ScriptedCrew(
        load,
        [
            *((number, Said(kind="ready")) for number in range(2)),
            (1, Said(kind="warm")),
            (0, Progress(done=0, warm=4)),
            None,  # nothing for so long that it is time
            (0, Progress(done=0, warm=9)),
        ],
    )

    with pytest.raises(SmartpipeError, match="nothing happened"):
        await _Run(load, crew, lambda _: None).run()  # type: ignore[arg-type]

    assert crew.orders == ["warm 1", "warm 1", "measure 0"]


async def test_a_run_in_which_nothing_comes_any_more_ends_with_what_came() -> None:
    load = Load(events=2, warmup=0, queues=1)
    begun: list[tuple[int, Message]] = [
        (0, Said(kind="ready")),
        (1, Said(kind="ready")),
        (1, Said(kind="warm")),
        (0, Said(kind="measuring")),
    ]

    with pytest.raises(SmartpipeError, match="nothing happened for 30 s, and the producers wait"):
        await _Run(load, ScriptedCrew(load, begun), lambda _: None).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "costs"),
    [
        ({}, True),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566"}, False),
        ({"AWS_ENDPOINT_URL_SQS": "https://sqs.eu-west-1.amazonaws.com"}, True),
        ({"AWS_ENDPOINT_URL_SQS": "http://localhost:4566"}, True),  # SNS is AWS's
        ({"AWS_ENDPOINT_URL_SQS": "http://localhost:4566", "AWS_ENDPOINT_URL_SNS": "http://localhost:4566"}, False),
        ({"AWS_ENDPOINT_URL_S3": "http://localhost:9000"}, True),
        ({"AWS_ENDPOINT_URL": "http://localhost:4566", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, True),
    ],
)
def test_what_costs_money_is_known_by_its_endpoints(environment: dict[str, str], costs: bool) -> None:
    assert is_aws(environment) is costs


def test_an_endpoint_that_is_no_aws_needs_no_credentials_and_gets_names_of_its_own() -> None:
    given = {"PATH": "/bin", "SMARTPIPE_CLAIM_CHECK_URL": "s3://bucket", "AWS_ENDPOINT_URL_SNS": "https://elsewhere"}

    found = environment_at("http://localhost:4566", given)

    prefix = found.pop("SMARTPIPE_PREFIX")
    assert prefix.startswith("bench-")
    assert prefix != environment_at("aws", given)["SMARTPIPE_PREFIX"]
    assert found == {
        "PATH": "/bin",
        "AWS_ENDPOINT_URL": "http://localhost:4566",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
