"""Invocations of a Lambda function: their time, several queues, and calls to SQS in tens."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import field_validator
from tenacity import wait_fixed

from smartpipe import Batch, ConfigError, Delivery, Event, Queue, Retry, RetryPolicy, Service, Topic, TransportError
from smartpipe.message import Attribute, Failure
from smartpipe.testing import virtual_time
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.unit.test_lambda import Context, failed, handled, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SEVEN = RetryPolicy(wait=wait_fixed(7))
DENIED = TransportError("AccessDenied", "not allowed", retryable=False)


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    transport = FakeTransport()
    with use_transport(transport):
        yield transport


def now() -> float:
    return asyncio.get_running_loop().time()


def sleeping(*, retry: RetryPolicy = SEVEN) -> Service:
    """A service whose handler sleeps for the seconds in the event's name, or fails."""
    service = Service("mailer", retry=retry, timeout_seconds=None)

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        if event.name == "bad":
            raise OSError("down")
        await asyncio.sleep(float(event.name))

    return service


@pytest.mark.parametrize(
    ("context", "seconds", "failures"),
    [
        (Context(5_000), "3.9", []),
        (Context(5_000), "4.1", ["id-1"]),
        (Context(900), "0.1", ["id-1"]),
        (None, "899", []),
        (None, "901", ["id-1"]),
        (object(), "899", []),
    ],
)
async def test_handlers_have_the_functions_time_less_a_second_and_without_a_context_a_quarter_of_an_hour(
    context: object, seconds: str, failures: list[str], transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    handler = sleeping().lambda_handler()
    with virtual_time(), caplog.at_level(logging.WARNING, "smartpipe.lambda"):
        response = await handler.handle({"Records": [record(UserLeft(name=seconds))]}, context)
        await handler.aclose()

    assert failed(response) == failures
    late = "1 messages will be redelivered: the time of the function is over"
    assert caplog.messages[:1] == [late] * len(failures)


async def test_the_delays_of_retries_are_set_in_tens_and_the_failures_reported_in_the_order_of_the_event(
    transport: FakeTransport,
) -> None:
    names = ["bad"] * 6 + ["0"] + ["bad"] * 6
    records = [record(UserLeft(name=name), number) for number, name in enumerate(names)]

    failures = await handled(sleeping(), *records)

    assert failures == [f"id-{number}" for number, name in enumerate(names) if name == "bad"]
    assert transport.batches("change_visibility") == [10, 2]
    assert {seconds for _, seconds in transport.entries("change_visibility")} == {7}
    assert transport.entries("delete") == []  # Lambda does that


async def test_the_longest_delay_of_a_retry_leaves_time_for_the_window_and_the_function_before_it(
    transport: FakeTransport,
) -> None:
    service = Service("mailer")

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise Retry("tomorrow", after_seconds=43_200)

    assert await handled(service, record(UserLeft(name="bad"))) == ["id-1"]
    assert transport.entries("change_visibility") == [("receipt-1", 43_200 - 300 - 900)]


REFUSED = [Failure(0, "InvalidParameterValue", "beyond the limit", retryable=False)]


@pytest.mark.parametrize("answer", [1_000.0, DENIED, REFUSED])
async def test_delays_that_cannot_be_set_are_logged_and_do_not_hold_the_function(
    answer: Any, transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.script["change_visibility"].append(answer)
    handler = sleeping().lambda_handler()
    with virtual_time():
        began = now()
        response = await handler.handle({"Records": [record(UserLeft(name="bad"))]}, Context(10_000))
        took = now() - began
        await handler.aclose()

    assert failed(response) == ["id-1"]
    assert took == pytest.approx(9.8 if answer == 1_000.0 else 0, abs=0.01)  # two tenths are left for the response
    assert sum(message.startswith("Cannot set the delays of retries") for message in caplog.messages) == 1


@pytest.mark.parametrize("answer", [[], 1_000.0, DENIED])
async def test_handled_messages_are_deleted_in_tens_before_a_suspect_begins(
    answer: Any, transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    service, begun = Service("mailer", retry=RetryPolicy(attempts=3, wait=wait_fixed(1))), list[tuple[str, int]]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        begun.append((event.name, len(transport.entries("delete"))))
        if event.name == "bad":
            raise OSError("down")

    if answer != []:
        transport.script["delete"].append(answer)
    records = [record(UserLeft(name="ok"), number) for number in range(12)]
    records += [record(UserLeft(name="bad"), 12), record(UserLeft(name="suspect"), 13)]
    records[13]["attributes"]["ApproximateReceiveCount"] = "4"
    handler = service.lambda_handler()
    with virtual_time():
        began = now()
        response = await handler.handle({"Records": records}, Context(60_000))
        took = now() - began
        await handler.aclose()

    assert failed(response) == ["id-12"]
    assert begun[-1][0] == "suspect"
    whole = answer == []
    assert transport.batches("delete") == ([10, 2] if whole else [10])
    assert set(transport.entries("delete")) <= {f"receipt-{number}" for number in range(12)}
    assert took == pytest.approx(3 if answer == 1_000.0 else 0, abs=0.01)
    logged = [message for message in caplog.messages if message.startswith("Cannot delete handled messages")]
    assert len(logged) == (not whole)
    assert sum("it will be handled last and alone" in message for message in caplog.messages) == 1


async def test_records_of_several_queues_are_handled_by_their_own_handlers(transport: FakeTransport) -> None:
    service, seen = Service("mailer", retry=SEVEN), list[str]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        seen.append(f"{delivery.queue} {event.name}")
        if event.name == "bad":
            raise OSError("down")

    @service.subscribe(UserLeft, queue=Queue("audit"))
    async def audit(event: UserLeft, delivery: Delivery) -> None:
        seen.append(f"{delivery.queue} {event.name}")
        raise OSError("always")

    records = [
        record(UserLeft(name=name), number, queue=queue)
        for number, (name, queue) in enumerate([("a", "mailer"), ("b", "audit"), ("bad", "mailer")])
    ]

    assert await handled(service, *records) == ["id-1", "id-2"]
    assert sorted(seen) == ["audit b", "mailer a", "mailer bad"]
    delays = {name: entries for verb, name, entries, _ in transport.calls if verb == "change_visibility"}
    assert delays == {"audit": [("receipt-1", 7)], "mailer": [("receipt-2", 7)]}


@pytest.mark.parametrize(
    "event", [{}, {"Records": []}, {"Records": [record(ADA), {**record(ADA), "eventSource": "aws:sns"}]}]
)
async def test_an_event_with_any_record_of_another_source_is_refused(
    event: dict[str, Any], transport: FakeTransport
) -> None:
    handler = sleeping().lambda_handler()

    with pytest.raises(ConfigError, match="the event is not from SQS: map an SQS queue to this function"):
        await handler.handle(event)
    assert transport.calls == []


async def test_attributes_are_read_as_text_or_bytes_and_may_be_absent(transport: FakeTransport) -> None:
    service, seen = Service("mailer"), list[dict[str, Attribute]]()

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(dict(delivery.attributes))

    with_text, without, null = record(ADA, 1), record(ADA, 2), record(ADA, 3)
    with_text["messageAttributes"] = {
        "empty": {"stringValue": "", "dataType": "String"},
        "n": {"stringValue": "1", "dataType": "Number"},
        "raw": {"binaryValue": "AP8=", "dataType": "Binary.x"},
    }
    del without["messageAttributes"]
    null["messageAttributes"] = None

    assert await handled(service, with_text, without, null) == []
    assert sorted(seen, key=len) == [
        {},
        {},
        {
            "empty": Attribute("String", ""),
            "n": Attribute("Number", "1"),
            "raw": Attribute("Binary.x", b"\x00\xff"),
        },
    ]


async def test_a_batch_starts_when_no_other_message_can_join_it(transport: FakeTransport) -> None:
    service, started = Service("index", timeout_seconds=60), list[tuple[float, int]]()

    @service.subscribe(UserLeft)
    async def first(event: UserLeft) -> None:
        await asyncio.sleep(float(event.name))

    @service.subscribe(UserLeft, batch=Batch(size=100, linger_seconds=300))
    async def index(events: list[UserLeft]) -> None:
        started.append((now(), len(events)))
        await asyncio.sleep(1)

    handler = service.lambda_handler()
    with virtual_time():
        for _ in range(2):
            started.clear()
            began = now()
            records = [record(UserLeft(name=name), number, queue="index") for number, name in enumerate("113")]
            assert failed(await handler.handle({"Records": records}, Context(60_000))) == []
            assert [size for _, size in started] == [3]
            assert started[0][0] - began == pytest.approx(3, abs=0.03)
            assert now() - began == pytest.approx(4, abs=0.03)
        await handler.aclose()


async def test_after_a_close_the_next_invocation_opens_everything_again(transport: FakeTransport) -> None:
    opened: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        opened.append("open")
        yield
        opened.append("close")

    service = Service("mailer", lifespan=lifespan)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None: ...

    handler = service.lambda_handler()
    for round_ in (1, 2):
        for _ in range(2):
            assert failed(await handler.handle({"Records": [record(ADA)]}, Context(30_000))) == []
        assert opened == ["open", "close"] * (round_ - 1) + ["open"]
        await handler.aclose()
        await handler.aclose()
        assert opened == ["open", "close"] * round_
    assert transport.closed == 2


def test_a_close_of_a_function_that_was_never_called_does_nothing(transport: FakeTransport) -> None:
    handler = sleeping().lambda_handler()
    handler.close()
    handler.close()

    assert transport.closed == 0


async def test_a_group_with_a_suspect_is_handled_last_and_alone(
    transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    service, log = Service("s", queue=Queue("s", fifo=True, max_receive_count=20)), list[str]()

    @service.subscribe(Paid)
    async def book(event: Paid) -> None:
        log.append(f"{event.account}{event.number} begins")
        await asyncio.sleep(1)
        log.append(f"{event.account}{event.number} ends")

    events = [Paid(account=account, number=number) for account in "ab" for number in (1, 2)]
    records = [record(event, number, queue="s.fifo", group=event.account) for number, event in enumerate(events)]
    records[1]["attributes"]["ApproximateReceiveCount"] = "11"

    assert await handled(service, *records) == []
    assert log == [f"{name} {step}" for name in ("b1", "b2", "a1", "a2") for step in ("begins", "ends")]
    assert transport.entries("delete") == ["receipt-2", "receipt-3"]
    assert sum("it will be handled last and alone" in message for message in caplog.messages) == 1


async def test_a_warm_function_remembers_no_failure_of_an_earlier_invocation(transport: FakeTransport) -> None:
    handler = sleeping().lambda_handler()
    with virtual_time():
        for number in range(5):
            response = await handler.handle({"Records": [record(UserLeft(name="bad"), number)]}, Context(10_000))
            assert failed(response) == [f"id-{number}"]
            [source] = handler._sources.values()
            assert (source.response.deleted_ids, len(source.response.leases)) == (set(), 1)
        await handler.aclose()


async def test_a_handler_that_outlives_its_timeout_can_see_that_its_message_was_returned(
    transport: FakeTransport,
) -> None:
    service, released, lost = Service("mailer", retry=SEVEN, timeout_seconds=10), asyncio.Event(), list[bool]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        lost.append(delivery.lease_lost)
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        lost.append(delivery.lease_lost)

    handler = service.lambda_handler()
    with virtual_time():
        response = await handler.handle({"Records": [record(UserLeft(name="x"))]}, Context(60_000))
        released.set()
        await asyncio.sleep(1)
        await handler.aclose()

    assert failed(response) == ["id-1"]
    assert lost == [False, True]


class Panic(BaseException):
    """What a fault of a library in Rust raises."""


class Checked(Event, topic=Topic("users"), type="lambda.checked", version="1.0"):
    name: str

    @field_validator("name")
    @classmethod
    def check(cls, name: str) -> str:
        if name == "bad" and "panic" in armed:
            raise Panic
        return name


armed: set[str] = set()


@pytest.mark.usefixtures("transport")
async def test_a_message_whose_task_fails_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("mailer")

    @service.subscribe(Checked)
    async def handle(_: Checked) -> None: ...

    records = [record(Checked(name=name), number) for number, name in enumerate(["good", "bad"])]
    monkeypatch.setattr(f"{__name__}.armed", {"panic"})

    assert await handled(service, *records) == ["id-1"]
