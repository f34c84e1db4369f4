"""The numbers of messages in the queues of a worker, as it reports them."""

from __future__ import annotations

import asyncio
import logging
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, Queue, TransportError, Worker
from smartpipe.counters import Counters
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.settings import WorkerSettings
from smartpipe.telemetry.prometheus import OPENMETRICS, render
from smartpipe.topology.derive import derive
from smartpipe.transport import Depth
from smartpipe.transports.measured import measure
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.worker.queue_poller import QueuePoller
from tests.support.consumers import make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

DENIED = TransportError("AccessDenied", "sqs:GetQueueAttributes on queue 'mail-dlq' is denied", retryable=False)
EMPTY = Depth(0, 0, 0)


class Counting:
    """A transport that only counts messages, and whose answers a test sets."""

    def __init__(self, **depths: Depth | Exception) -> None:
        self.depths: dict[str, Depth | Exception] = {
            name.replace("_", "-"): depth for name, depth in ({"mail": EMPTY, "mail_dlq": EMPTY} | depths).items()
        }
        self.asked: list[tuple[str, float]] = []
        self.seconds = 0.0

    async def count_messages(self, queue: str) -> Depth:
        self.asked.append((queue, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.seconds)
        found = self.depths[queue]
        if isinstance(found, Exception):
            raise found
        return found


def make_poller(transport: Any, counters: Counters | None = None, **settings: Any) -> QueuePoller:
    consumers: Any = [SimpleNamespace(failing=False, queue=Queue("mail"), counters=counters or Counters())]
    return QueuePoller("mailer", consumers, transport, WorkerSettings.load(**settings))


def values_of(poller: QueuePoller, name: str) -> dict[str, float]:
    """Return the values of a metric by the label ``state``, or by "" without one."""
    [family] = [family for family in poller.collect() if family.name == f"smartpipe_{name}"]
    for sample in family.samples:
        assert (sample.labels["service"], sample.labels["queue"]) == ("mailer", "mail")
    return {sample.labels.get("state", ""): sample.value for sample in family.samples}  # type: ignore[misc]


def at(*seconds_and_steps: tuple[float, Any], poller: QueuePoller) -> None:
    """Run the poller on a virtual clock, and each step at its time in seconds."""

    async def main() -> None:
        async with poller:
            for seconds, step in seconds_and_steps:
                await asyncio.sleep(seconds - asyncio.get_running_loop().time())
                step()

    run_virtually(main())


def test_messages_are_counted_by_state_and_those_of_the_dead_letter_queue_together() -> None:
    poller = make_poller(Counting(mail=Depth(7, 2, 1), mail_dlq=Depth(3, 1, 0)))
    assert values_of(poller, "queue_messages") == values_of(poller, "dead_letter_messages") == {}

    def check() -> None:
        assert values_of(poller, "queue_messages") == {"visible": 7, "in_flight": 2, "delayed": 1}
        assert values_of(poller, "dead_letter_messages") == {"": 4}

    at((0.1, check), poller=poller)


def test_each_queue_is_asked_every_30_seconds_also_after_slow_answers() -> None:
    transport = Counting()
    transport.seconds = 2.0

    at((91, lambda: None), poller=make_poller(transport))

    times = [0.0, 30.0, 60.0, 90.0]
    assert sorted(transport.asked) == [(name, time) for name in ("mail", "mail-dlq") for time in times]


def test_a_queue_that_the_worker_cannot_receive_from_is_not_asked_for() -> None:
    transport = Counting(mail=Depth(7, 0, 0))
    poller = make_poller(transport)
    consumer: Any = poller._consumers[0]

    def fail() -> None:
        consumer.failing = True

    def check() -> None:
        assert values_of(poller, "queue_messages") == {}
        consumer.failing = False

    at((1, fail), (31, check), (61, lambda: None), poller=poller)

    assert [time for name, time in transport.asked if name == "mail"] == [0.0, 60.0]


@pytest.mark.parametrize("settings", [{"queue_metrics_seconds": 0}, {"metrics": False}])
def test_nothing_is_asked_if_the_settings_turn_it_off(settings: dict[str, Any]) -> None:
    transport = Counting()
    at((100, lambda: None), poller=make_poller(transport, **settings))
    assert transport.asked == []


def test_a_transport_that_cannot_count_is_not_asked() -> None:
    for transport in (FakeTransport(), measure(FakeTransport())):
        poller = make_poller(transport)
        at((100, lambda: None), poller=poller)
        assert not any(family.samples for family in poller.collect())


def test_a_backlog_takes_the_visible_messages_by_the_rate_of_all_processes() -> None:
    transport, counters = Counting(mail=Depth(600, 10, 5)), Counters()
    poller = make_poller(transport, counters, processes=2)

    def settle() -> None:
        counters.handled, counters.ignored, counters.dead_lettered = 40, 15, 5
        counters.retried = counters.released = counters.deferred = 1000  # they are in the queue again

    at(
        (1, lambda: values_of(poller, "backlog_seconds") == {} or pytest.fail("no rate is known yet")),
        (20, settle),
        (31, lambda: check_backlog(poller, 600 / (60 / 30 * 2))),
        (181, lambda: check_backlog(poller, math.inf)),  # nothing has been settled for two minutes
        poller=poller,
    )


def check_backlog(poller: QueuePoller, expected: float) -> None:
    assert values_of(poller, "backlog_seconds") == {"": pytest.approx(expected)}


def test_the_rate_is_that_of_the_last_two_minutes() -> None:
    transport, counters = Counting(mail=Depth(100, 0, 0)), Counters()
    poller = make_poller(transport, counters)

    def add(count: int) -> None:
        counters.handled += count

    at(
        (10, lambda: add(1200)),
        (121, lambda: check_backlog(poller, 100 / (1200 / 120))),
        (140, lambda: add(60)),
        (151, lambda: check_backlog(poller, 100 / (60 / 120))),  # the 1,200 are too long ago
        poller=poller,
    )


def test_a_poll_that_is_rarer_than_two_minutes_has_a_rate_too() -> None:
    counters = Counters()
    poller = make_poller(Counting(mail=Depth(100, 0, 0)), counters, queue_metrics_seconds=300)

    at(
        (10, lambda: setattr(counters, "handled", 300)),
        (301, lambda: check_backlog(poller, 100.0)),
        poller=poller,
    )


def test_no_visible_message_is_no_backlog_even_before_a_rate_is_known() -> None:
    poller = make_poller(Counting(mail=Depth(0, 9, 9)))
    at((1, lambda: check_backlog(poller, 0.0)), (61, lambda: check_backlog(poller, 0.0)), poller=poller)


def test_an_endless_backlog_is_written_as_prometheus_reads_it() -> None:
    poller = make_poller(Counting(mail=Depth(1, 0, 0)))

    def check() -> None:
        line = 'smartpipe_backlog_seconds{service="mailer",queue="mail"} +Inf\n'
        assert line in render(poller.collect())
        assert line in render(poller.collect(), OPENMETRICS)

    at((31, check), poller=poller)


def test_a_failure_is_logged_once_and_only_its_queue_is_absent_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smartpipe.queues")
    transport = Counting(mail=Depth(7, 0, 0), mail_dlq=DENIED)
    poller = make_poller(transport)

    def check() -> None:
        assert values_of(poller, "dead_letter_messages") == {}
        assert values_of(poller, "queue_messages")["visible"] == 7
        assert caplog.messages == [f"Cannot count the messages of 1 of 2 queues, retrying every 30 s: {DENIED}"]

    def check_again() -> None:
        assert values_of(poller, "dead_letter_messages") == {"": 0}
        assert caplog.messages[1:] == ["The messages of all queues can be counted again"]

    at(
        (1, check),
        (61, check),
        (62, lambda: transport.depths.update({"mail-dlq": EMPTY})),
        (91, check_again),
        (92, lambda: transport.depths.update({"mail": DENIED})),
        (121, lambda: values_of(poller, "queue_messages") == {} or pytest.fail("old numbers are shown")),
        (122, lambda: values_of(poller, "backlog_seconds") == {} or pytest.fail("an old backlog is shown")),
        poller=poller,
    )
    assert len(caplog.messages) == 3


def test_an_unexpected_error_is_a_failure_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    transport = Counting(mail=KeyError("ApproximateNumberOfMessages"))
    at((31, lambda: None), poller=make_poller(transport))
    assert len(caplog.messages) == 1
    assert len(transport.asked) == 4


def test_at_its_end_an_open_call_is_cancelled_and_the_numbers_are_forgotten() -> None:
    transport = Counting(mail=Depth(7, 0, 0))
    poller = make_poller(transport)

    async def main() -> None:
        async with poller:
            await asyncio.sleep(1)
            assert values_of(poller, "queue_messages")["visible"] == 7
            transport.seconds = 1e6
            await asyncio.sleep(30)
        assert asyncio.get_running_loop().time() == pytest.approx(31)
        assert len(asyncio.all_tasks()) == 1
        assert values_of(poller, "queue_messages") == {}

    run_virtually(main())


class Ages:
    """A session whose CloudWatch answers as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[float, list[str]]] = []
        self.answer: Any = {}
        self.addresses = SimpleNamespace(physical=lambda name: f"staging-{name}")
        monkeypatch.setattr("smartpipe.topology.aws.cloudwatch.oldest_ages", self.find)

    async def find(self, session: Any, names: Sequence[str]) -> dict[str, float]:
        assert session is self
        self.asked.append((asyncio.get_running_loop().time(), list(names)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)


class CountingOnAws(Counting):
    session: Any = None


def make_aged(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[CountingOnAws, Ages, QueuePoller]:
    transport, ages = CountingOnAws(), Ages(monkeypatch)
    transport.session = ages
    return transport, ages, make_poller(transport, **settings)


def test_the_age_of_messages_is_not_asked_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, ages, poller = make_aged(monkeypatch)
    transport.depths["mail"] = Depth(1, 0, 0)
    at((200, lambda: None), poller=poller)
    assert ages.asked == []


def test_only_queues_with_messages_are_asked_for_their_age_and_the_others_have_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport, ages, poller = make_aged(monkeypatch, queue_age_seconds=60)
    ages.answer = {"staging-mail": 55.0}

    def check(age: float, dead_letter_age: float | None) -> None:
        assert values_of(poller, "oldest_message_age_seconds") == {"": age}
        expected = {} if dead_letter_age is None else {"": dead_letter_age}
        assert values_of(poller, "oldest_dead_letter_age_seconds") == expected

    at(
        (1, lambda: check(0.0, 0.0)),
        (2, lambda: transport.depths.update({"mail": Depth(0, 1, 0)})),
        (61, lambda: check(55.0, 0.0)),
        (62, lambda: transport.depths.update({"mail-dlq": Depth(1, 0, 0)})),
        (121, lambda: check(55.0, None)),  # CloudWatch does not know it yet
        poller=poller,
    )
    assert ages.asked == [(60.0, ["staging-mail"]), (120.0, ["staging-mail", "staging-mail-dlq"])]


def test_ages_are_absent_while_cloudwatch_cannot_be_asked_and_depths_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "smartpipe.queues")
    transport, ages, poller = make_aged(monkeypatch, queue_age_seconds=60)
    transport.depths["mail"] = Depth(1, 0, 0)
    ages.answer = TransportError("AccessDenied", "cloudwatch:GetMetricData", retryable=False)

    def check() -> None:
        assert values_of(poller, "oldest_message_age_seconds") == {}
        assert values_of(poller, "queue_messages")["visible"] == 1
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("Cannot ask CloudWatch for the age of messages, retrying every 60 s: ")

    at(
        (1, check),
        (61, check),
        (62, lambda: setattr(ages, "answer", {"staging-mail": 5.0})),
        (121, lambda: values_of(poller, "oldest_message_age_seconds") == {"": 5.0} or pytest.fail("it is absent")),
        (122, lambda: setattr(ages, "answer", TransportError("Throttling", "no", retryable=True))),
        (181, lambda: values_of(poller, "oldest_message_age_seconds") == {} or pytest.fail("an old age is shown")),
        poller=poller,
    )
    assert caplog.messages[1] == "CloudWatch reports the age of messages again"
    assert len(caplog.messages) == 3


def test_an_age_more_often_than_once_a_minute_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="queue_age_seconds=30 is too short: .*; set 60 or more, or 0 for never"):
        WorkerSettings.load(queue_age_seconds=30)


def worker_in_memory(transport: MemoryTransport) -> Worker:
    service = make_service()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.apply(derive([service], NAMING))
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=5)
    return Worker(service, transport, settings)


class Recording(MemoryTransport):
    """Counts the counting calls, and whether the worker was ready at each."""

    def __init__(self) -> None:
        super().__init__()
        self.worker: Worker | None = None
        self.asked: list[tuple[str, bool]] = []

    async def count_messages(self, queue: str) -> Depth:
        self.asked.append((queue, self.worker is not None and self.worker.ready))
        return await super().count_messages(queue)


async def test_a_worker_counts_from_when_it_is_ready_until_it_drains() -> None:
    transport = Recording()
    worker = transport.worker = worker_in_memory(transport)

    running = asyncio.create_task(worker.run())
    await until(lambda: len(transport.asked) == 2)
    await until(lambda: 'state="visible"' in metrics_of(worker))
    assert transport.asked == [("mailer", True), ("mailer-dlq", True)]
    assert 'smartpipe_dead_letter_messages{service="mailer",queue="mailer"} 0\n' in metrics_of(worker)

    worker.stop()
    assert await running == 0
    assert 'state="visible"' not in metrics_of(worker)


def metrics_of(worker: Worker) -> str:
    return render(worker.collect_metrics())


class Refusing(MemoryTransport):
    async def count_messages(self, queue: str) -> Depth:
        raise DENIED


async def test_a_worker_handles_messages_while_counting_fails(caplog: pytest.LogCaptureFixture) -> None:
    transport = Refusing()
    worker = worker_in_memory(transport)
    running = asyncio.create_task(worker.run())
    await until(lambda: "Cannot count the messages of 2 of 2 queues" in caplog.text)

    await transport.send("mailer", [prepare(Publication(ADA), source="test").message])

    await until(lambda: worker.ready and worker.consumers[0].counters.handled == 1)
    worker.stop()
    assert await running == 0
