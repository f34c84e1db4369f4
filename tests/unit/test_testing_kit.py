"""The parts of smartpipe.testing that run services on a real broker, with the broker and the worker replaced."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import smartpipe.testing
from smartpipe import Service
from smartpipe.consumer.decide import Ack, DeadLetter, RetryAfter
from smartpipe.message import Message, OutgoingMessage
from smartpipe.testing import MemoryBroker, planned, provision, real_broker, working
from smartpipe.testing.recorder import Recorder
from smartpipe.testing.records import DeadLettered, Handled, Ignored, Published, Record, Retried, matches
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe.settings import WorkerSettings


class Plans:
    """Replaces the provisioner, and records what it does."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.error: Exception | None = None

    async def plan(self, services: tuple[str, ...]) -> list[int]:
        self.happened.append(services)
        if self.error is not None:
            raise self.error
        return [1, 2]

    async def apply(self, changes: list[int]) -> None:
        self.happened.append(changes)

    async def aclose(self) -> None:
        self.happened.append("closed")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Plans:
    plans = Plans()
    transport = SimpleNamespace(session="session", aclose=plans.aclose)
    monkeypatch.setattr("smartpipe.transports.open.open_aws_transport", lambda: transport)
    monkeypatch.setattr("smartpipe.topology.aws.provision.Provisioner", lambda session: plans if session else None)
    return plans


async def test_changes_are_planned_or_made_and_returned_as_lines(plans: Plans) -> None:
    first, second = Service("a"), Service("b")

    assert await planned(first, second) == ["1", "2"]
    assert plans.happened == [(first, second), "closed"]
    assert await provision(first) == ["1", "2"]
    assert plans.happened[2:] == [(first,), [1, 2], "closed"]


async def test_a_plan_that_fails_closes_its_transport(plans: Plans) -> None:
    plans.error = ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await provision(Service("a"))

    assert plans.happened[-1] == "closed"


class Working:
    """Replaces the worker of a service, and records its settings and stops."""

    def __init__(self) -> None:
        self.settings: list[WorkerSettings] = []
        self.stopped: list[str] = []
        self.checked: list[Any] = []
        self.code = 0
        self.error: Exception | None = None
        found = self

        class Worker:
            def __init__(self, service: Service, transport: Any, settings: WorkerSettings, *, verify: Any) -> None:
                found.settings.append(settings)
                self.consumers: list[str] = []
                self._verify, self._stopping = verify, asyncio.Event()

            async def run(self) -> int:
                await self._verify()
                await asyncio.sleep(1.0)
                if found.error is not None:
                    raise found.error
                self.consumers.append("one")
                await self._stopping.wait()
                return found.code

            def stop(self, reason: str) -> None:
                found.stopped.append(reason)
                self._stopping.set()

        self.worker = Worker

    async def verify(self, service: Service, session: str) -> None:
        self.checked.append((service.name, session))


@pytest.fixture
def worker(plans: Plans, monkeypatch: pytest.MonkeyPatch) -> Working:
    assert plans.happened == []
    worker = Working()
    monkeypatch.setattr(real_broker, "Worker", worker.worker)
    monkeypatch.setattr("smartpipe.topology.aws.verify.verify", worker.verify)
    return worker


def test_a_worker_works_in_the_block_and_drains_at_its_end(worker: Working) -> None:
    async def main() -> float:
        async with working(Service("shop"), concurrency=3, wait_seconds=2) as found:
            assert len(found.consumers) == 1
            assert worker.stopped == []
            return asyncio.get_running_loop().time()

    assert 1.0 <= run_virtually(main()) < 1.1
    assert worker.checked == [("shop", "session")]
    assert worker.stopped == ["the test is over"]
    [settings] = worker.settings
    assert (settings.concurrency, settings.wait_seconds, settings.port, settings.host) == (3, 2, 0, "127.0.0.1")


def test_polls_of_a_worker_in_a_test_are_short(worker: Working) -> None:
    async def main() -> None:
        async with working(Service("shop")):
            pass

    run_virtually(main())
    assert worker.settings[0].wait_seconds == 1


def test_a_drain_that_was_not_clean_fails_the_test(worker: Working) -> None:
    worker.code = 1

    async def main() -> None:
        async with working(Service("shop")):
            pass

    with pytest.raises(AssertionError, match="the worker did not drain cleanly; see its log for the reason"):
        run_virtually(main())


def test_a_worker_that_cannot_start_raises_its_error(worker: Working) -> None:
    worker.error = OSError("no port")

    async def main() -> None:
        async with working(Service("shop")):
            pass

    with pytest.raises(OSError, match="no port"):
        run_virtually(main())


def test_names_are_imported_at_their_first_use_and_others_do_not_exist() -> None:
    for name in smartpipe.testing.__all__:
        assert getattr(smartpipe.testing, name)
    with pytest.raises(AttributeError, match=r"module 'smartpipe\.testing' has no attribute 'Nothing'"):
        smartpipe.testing.Nothing  # noqa: B018


DELIVERED: dict[str, Any] = {
    "event": ADA, "event_id": "7", "at_seconds": 1.5, "body": "{}", "queue": "mailer", "handler": "shop.send",
    "receive_count": 2,
}  # fmt: skip
FROM = "from mailer, receive 2 by shop.send"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (Handled(**DELIVERED), f"handled        UserSignedUp 7 {FROM}"),
        (Ignored(**DELIVERED | {"handler": None}), "ignored        UserSignedUp 7 from mailer, receive 2"),
        (
            Retried(**DELIVERED, after_seconds=0.5, error=ValueError("no")),
            f"retried        UserSignedUp 7 {FROM}, again after 0.5 s: ValueError: no",
        ),
        (
            DeadLettered(**DELIVERED | {"event": None, "body": "x" * 70}, kind="rejected", error=ValueError("no")),
            f"dead-lettered  {'x' * 60!r} {FROM}, rejected: ValueError: no",
        ),
        (
            Published(
                event=ADA, event_id="7", at_seconds=1.5, body="{}", destination="users", attributes={}, group_id=None,
                delay_seconds=0,
            ),
            "published      UserSignedUp 7 to users",
        ),
    ],
)  # fmt: skip
def test_a_record_is_a_line_of_the_timeline(record: Record, line: str) -> None:
    assert str(record) == f"      1.500 s  {line}"


@pytest.mark.parametrize(
    ("event", "fields", "found"),
    [
        (None, {}, True),
        (UserSignedUp, {}, True),
        (UserLeft, {}, False),
        (UserSignedUp, {"name": "Ada"}, True),
        (UserSignedUp, {"name": "Bob"}, False),
        (None, {"nothing": None}, False),
        (UserSignedUp, {"name": "Ada", "nothing": 1}, False),
    ],
)
def test_a_record_matches_a_class_and_all_values(event: Any, fields: dict[str, Any], found: bool) -> None:
    assert matches(Handled(**DELIVERED), event, fields) == found


def settled(outcome: Any, redelivery_seconds: float | None = None) -> Any:
    processed = SimpleNamespace(envelope=None, outcome=outcome, handler=None)
    message = Message("m", "r", "no event", receive_count=3)
    return SimpleNamespace(message=message, processed=processed, queue="mailer", redelivery_seconds=redelivery_seconds)


async def test_the_outcome_of_a_delivery_is_recorded() -> None:
    recorder = Recorder(duplicate_share=0.0, shuffle=False, seed=0)
    error = ValueError("no")

    recorder.record_settled(settled(Ack()))
    recorder.record_settled(settled(Ack(ignored=True)))
    recorder.record_settled(settled(DeadLetter("rejected", error)))
    recorder.record_settled(settled(DeadLetter("rejected", error), 5.0))
    recorder.record_settled(settled(RetryAfter(9, error), 9.0))
    recorder.record_settled(settled(RetryAfter(9, error)))

    assert [type(record) for record in recorder.records] == [Handled, Ignored, DeadLettered, Retried, Retried, Retried]
    assert [record.after_seconds for record in recorder.records[3:]] == [5.0, 9.0, 0]  # type: ignore[attr-defined]
    first = recorder.records[0]
    assert isinstance(first, Handled)
    assert (first.event, first.event_id, first.handler, first.receive_count) == (None, None, None, 3)
    assert first.at_seconds >= 0


async def test_messages_to_a_dead_letter_queue_are_not_published_events() -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None: ...

    async with MemoryBroker(service) as broker:
        for queue in ("mailer", "mailer-dlq"):
            await broker.transport.send(queue, [OutgoingMessage("no event", 8, delay_seconds=5)])

        [record] = [one for one in broker.transport.records if isinstance(one, Published)]
        assert (record.destination, record.event, record.body, record.delay_seconds) == ("mailer", None, "no event", 5)


async def test_the_number_of_times_of_an_assertion_is_in_the_right_number() -> None:
    async with MemoryBroker() as broker:
        await broker.publish(ADA)

        with pytest.raises(AssertionError, match=r"UserSignedUp\(name='Ada'\) was not published 2 times, but 1\. Time"):
            broker.assert_published(UserSignedUp, times=2, name="Ada")
        with pytest.raises(AssertionError, match=r"UserLeft\(\) was not published 1 time, but 0\. Timeline:"):
            broker.assert_published(UserLeft, times=1)
        with pytest.raises(AssertionError, match=r"UserLeft\(\) was not handled\. Timeline:"):
            broker.assert_handled(UserLeft)
        with pytest.raises(AssertionError, match=r"UserLeft\(\) was not dead-lettered as rejected 1 time, but 0\."):
            broker.assert_dead_lettered(UserLeft, kind="rejected")
        assert broker.assert_published(UserLeft, times=0) == []
        broker.assert_nothing_dead_lettered()


async def test_an_empty_timeline_says_so() -> None:
    async with MemoryBroker() as broker:
        with pytest.raises(AssertionError, match=r"Timeline:\n           empty$"):
            broker.assert_published(UserLeft)
