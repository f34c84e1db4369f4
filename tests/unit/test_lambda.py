"""A service as a Lambda function, with the event shapes of the Lambda developer guide ("Using Lambda with SQS")."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import Batch, ConfigError, Delivery, Queue, Reject, RetryPolicy, Service, TransportError
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.pointer import write_pointer
from smartpipe.message import Payload
from smartpipe.testing import virtual_time
from smartpipe.transports.open import use_transport
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import movable_time
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smartpipe import Event
    from smartpipe.worker.aws_lambda import LambdaHandler

ARN = "arn:aws:sqs:us-east-2:123456789012:"


def record(event: Event | str, number: int = 1, *, queue: str = "mailer", group: str | None = None) -> dict[str, Any]:
    fifo = {"SequenceNumber": "18849496460467696128", "MessageGroupId": group, "MessageDeduplicationId": str(number)}
    return {
        "messageId": f"id-{number}",
        "receiptHandle": f"receipt-{number}",
        "body": event if isinstance(event, str) else encode(wrap(event, source="test")),
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1545082649183",
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": "1545082649185",
            **(fifo if group else {}),
        },
        "messageAttributes": {
            "type": {"stringValue": "x", "stringListValues": [], "binaryListValues": [], "dataType": "String"},
            "raw": {"binaryValue": "AP8=", "stringListValues": [], "binaryListValues": [], "dataType": "Binary"},
        },
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": ARN + queue,
        "awsRegion": "us-east-2",
    }


def failed(response: dict[str, Any]) -> list[str]:
    assert list(response) == ["batchItemFailures"]
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


class Context:
    """The context that Lambda passes with the event."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    transport = FakeTransport()
    with use_transport(transport):
        yield transport


async def handled(service: Service, *records: dict[str, Any], milliseconds: int = 60_000) -> list[str]:
    handler = service.lambda_handler()
    with virtual_time():
        response = await handler.handle({"Records": list(records)}, Context(milliseconds))
        await handler.aclose()
    return failed(response)


async def test_lambda_deletes_handled_messages_and_failed_ones_are_reported(transport: FakeTransport) -> None:
    service = Service("mailer", retry=RetryPolicy(wait=wait_fixed(7)))
    seen: list[Delivery] = []

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        seen.append(delivery)
        if event.name == "bad":
            raise OSError("down")

    failures = await handled(service, record(UserLeft(name="good")), record(UserLeft(name="bad"), 2))

    assert failures == ["id-2"]
    assert transport.entries("change_visibility") == [("receipt-2", 7)]
    assert seen[0].message.sent_at == 1545082649.183
    assert seen[0].attributes["raw"].value == b"\x00\xff"


async def test_a_dead_letter_is_copied_and_then_counts_as_handled(transport: FakeTransport) -> None:
    service = Service("mailer")

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise Reject("never")

    assert await handled(service, record(UserLeft(name="x")), record("no event", 2)) == []

    kinds = [json.loads(copy.attributes[REASON_ATTRIBUTE].value)["kind"] for copy in transport.entries("send")]
    assert sorted(kinds) == ["not-json", "rejected"]


async def test_a_pointer_to_an_untrusted_location_is_dead_lettered(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://payloads/folder")
    put_in_memory(Payload("secrets", "x", encode(wrap(UserLeft(name="x"), source="s"))))
    service = Service("mailer")
    seen: list[Event] = []

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        seen.append(event)

    pointing = record(write_pointer("secrets", "x"))
    pointing["messageAttributes"]["ExtendedPayloadSize"] = {"stringValue": "2", "dataType": "Number"}

    assert await handled(service, pointing) == []

    [kind] = [json.loads(copy.attributes[REASON_ATTRIBUTE].value)["kind"] for copy in transport.entries("send")]
    assert (kind, seen) == ("payload-not-allowed", [])


async def test_a_dead_letter_that_cannot_be_copied_is_reported_as_failed(transport: FakeTransport) -> None:
    service = Service("mailer")

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise Reject("never")

    transport.script["send"].extend([TransportError("AccessDenied", "no", retryable=False)] * 2)

    assert await handled(service, record(UserLeft(name="x"))) == ["id-1"]


async def test_a_fifo_group_stops_at_its_first_failure_and_the_others_continue(transport: FakeTransport) -> None:
    service = Service("ledger", queue=Queue("ledger", fifo=True), retry=RetryPolicy(wait=wait_fixed(3)))
    ran: list[tuple[str | None, int]] = []

    @service.subscribe(Paid)
    async def book(event: Paid) -> None:
        ran.append((event.account, event.number))
        if event == Paid(account="a", number=2):
            raise OSError("down")

    events = [Paid(account=account, number=number) for number in (1, 2, 3) for account in "ab"]
    records = [record(event, number, queue="ledger.fifo", group=event.account) for number, event in enumerate(events)]

    assert await handled(service, *records) == ["id-2", "id-4"]
    assert [number for account, number in ran if account == "a"] == [1, 2]
    assert [number for account, number in ran if account == "b"] == [1, 2, 3]
    assert transport.entries("change_visibility") == [("receipt-2", 3), ("receipt-4", 3)]


async def test_at_the_end_of_lambdas_time_running_messages_are_returned(transport: FakeTransport) -> None:
    service, fate = Service("mailer"), list[str]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        try:
            await asyncio.sleep(1_000 if event.name == "slow" else 0)
        except asyncio.CancelledError:
            fate.append("cancelled")
            raise

    failures = await handled(
        service, record(UserLeft(name="slow")), record(UserLeft(name="quick"), 2), milliseconds=5_000
    )

    assert failures == ["id-1"]
    assert fate == ["cancelled"]


async def test_a_batch_handler_gets_the_whole_invocation_without_lingering(transport: FakeTransport) -> None:
    service, sizes = Service("index"), list[int]()

    @service.subscribe(UserLeft, batch=Batch(size=100, linger_seconds=30))
    async def index(events: list[UserLeft]) -> None:
        sizes.append(len(events))

    records = [record(UserLeft(name=str(number)), number, queue="index") for number in range(40)]

    assert await handled(service, *records, milliseconds=10_000) == []
    assert sizes == [40]


async def test_a_failed_message_is_reported_even_without_permission_to_set_its_delay(transport: FakeTransport) -> None:
    service = Service("mailer")

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise OSError("down")

    transport.script["change_visibility"].append(TransportError("AccessDenied", "no", retryable=False))

    assert await handled(service, record(UserLeft(name="x"))) == ["id-1"]


def test_the_lifespan_and_the_loop_last_from_invocation_to_invocation(transport: FakeTransport) -> None:
    opened: list[str] = []
    loops: set[asyncio.AbstractEventLoop] = set()

    async def lifespan() -> AsyncIterator[str]:
        opened.append("open")
        yield "pool"
        opened.append("closed")

    service = Service("mailer", lifespan=lifespan)

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp, pool: str) -> None:
        loops.add(asyncio.get_running_loop())

    handler = service.lambda_handler()

    for number in range(3):
        assert failed(handler({"Records": [record(ADA, number)]}, Context(30_000))) == []
    assert opened == ["open"]
    assert len(loops) == 1
    handler.close()
    assert opened == ["open", "closed"]


def test_a_message_that_failed_in_one_invocation_may_succeed_in_the_next(transport: FakeTransport) -> None:
    service, outcomes = Service("mailer"), iter([True, False])

    @service.subscribe(UserSignedUp)
    def send(event: UserSignedUp) -> None:
        if next(outcomes):
            raise OSError("down")

    handler = service.lambda_handler()

    assert failed(handler({"Records": [record(ADA)]}, Context(30_000))) == ["id-1"]
    assert failed(handler({"Records": [record(ADA)]}, Context(30_000))) == []
    handler.close()


async def test_an_event_of_another_source_or_queue_is_rejected_and_the_error_says_how_to_fix_it(
    transport: FakeTransport,
) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None: ...

    with pytest.raises(ConfigError, match="map an SQS queue to this function"):
        await handled(service, {"eventSource": "aws:sns"})
    with pytest.raises(
        ConfigError, match=r"no handlers on queue 'other' .* its queues are mailer. Is SMARTPIPE_PREFIX set"
    ):
        await handled(service, record(ADA, queue="other"))


async def test_the_prefix_is_taken_from_the_queues_name(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFIX", "staging-")
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def send(event: UserSignedUp) -> None: ...

    assert await handled(service, record(ADA, queue="staging-mailer")) == []


def test_a_service_without_handlers_cannot_be_a_lambda_function() -> None:
    with pytest.raises(ConfigError, match="has no handlers"):
        Service("empty").lambda_handler()


def test_messages_of_a_failed_invocation_do_not_count_as_handled(transport: FakeTransport) -> None:
    service, ran = Service("ledger", queue=Queue("ledger", fifo=True)), list[int]()

    @service.subscribe(Paid)
    async def book(event: Paid) -> None:
        ran.append(event.number)

    good = record(Paid(account="a", number=1), 1, queue="ledger.fifo", group="a")
    broken = {**record(Paid(account="b", number=2), 2, queue="ledger.fifo", group="b"), "attributes": {}}
    del broken["receiptHandle"]
    handler = service.lambda_handler()

    with pytest.raises(KeyError):
        handler({"Records": [good, broken]}, Context(30_000))
    assert failed(handler({"Records": [good]}, Context(30_000))) == []
    handler.close()

    assert ran == [1]


async def test_a_cancelled_invocation_leaves_nothing_running(transport: FakeTransport) -> None:
    service, ran = Service("mailer"), list[str]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        await asyncio.sleep(10)
        ran.append(event.name)

    handler = service.lambda_handler()
    with virtual_time():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handler.handle({"Records": [record(UserLeft(name="x"))]}), 1)
        await asyncio.sleep(60)
        await handler.aclose()

    assert ran == []


def test_sync_handlers_have_a_thread_for_each_of_their_slots(transport: FakeTransport) -> None:
    service, barrier = Service("mailer", timeout_seconds=20), threading.Barrier(15)

    @service.subscribe(UserLeft, concurrency=15)
    def leave(event: UserLeft) -> None:
        barrier.wait(20)

    handler = service.lambda_handler()
    records = [record(UserLeft(name=str(number)), number) for number in range(15)]

    assert failed(handler({"Records": records}, Context(60_000))) == []
    handler.close()


def test_an_idempotent_handler_runs_once_although_lambda_delivers_the_event_again(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "memory://")
    service = Service("mailer")
    seen: list[UserSignedUp] = []

    @service.subscribe(UserSignedUp, idempotent=True)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    function = service.lambda_handler()
    body = encode(wrap(ADA, source="test"))
    answers = [function({"Records": [record(body, number)]}, Context(60_000)) for number in (1, 2)]
    function.close()

    assert [failed(answer) for answer in answers] == [[], []]
    assert seen == [ADA]


async def test_a_handler_that_does_not_end_is_reported_and_does_not_hold_the_invocation(
    transport: FakeTransport,
) -> None:
    service, released = Service("mailer", retry=RetryPolicy(wait=wait_fixed(7)), timeout_seconds=10), asyncio.Event()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        while event.name == "endless" and not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    handler = service.lambda_handler()
    with virtual_time():
        began = asyncio.get_running_loop().time()
        records = [record(UserLeft(name="endless")), record(UserLeft(name="good"), 2)]
        response = await handler.handle({"Records": records}, Context(900_000))
        seconds = asyncio.get_running_loop().time() - began
        released.set()
        await asyncio.sleep(1)
        await handler.aclose()

    assert failed(response) == ["id-1"]
    assert 15 <= seconds < 20
    assert transport.entries("change_visibility") == [("receipt-1", 7)]


async def test_invocations_are_deferred_while_too_many_handlers_have_not_ended(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", "2")
    service, released = Service("mailer", retry=RetryPolicy(attempts=1), timeout_seconds=20), threading.Event()
    begun = list[str]()

    @service.subscribe(UserLeft)
    def leave(event: UserLeft) -> None:
        begun.append(event.name)
        if event.name.startswith("endless"):
            released.wait(60)

    handler = service.lambda_handler()
    records = [record(UserLeft(name=f"endless{n}"), n) for n in (1, 2)]
    with movable_time() as move:
        handling = asyncio.create_task(handler.handle({"Records": records}, Context(60_000)))
        await until(lambda: len(begun) == 2)
        move(20)
        await handling
    sent = transport.entries("send")
    response = await handler.handle({"Records": [record(UserLeft(name="good"), 3)]}, Context(60_000))
    assert failed(response) == ["id-3"]
    assert sorted(begun) == ["endless1", "endless2"]
    assert transport.entries("send") == sent

    released.set()
    await until(lambda: not still_deferring(handler))
    await handler.aclose()


def still_deferring(handler: LambdaHandler) -> bool:
    """Return whether the capacity still defers calls."""
    return handler._resources is not None and handler._resources.threads.capacity.full


async def test_a_shortage_of_a_resource_returns_the_message_on_lambda_too(transport: FakeTransport) -> None:
    service = Service("mailer", retry=RetryPolicy(attempts=1))

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft) -> None:
        raise ConnectionError("no socket") from OSError(errno.EMFILE, "Too many open files")

    assert await handled(service, record(UserLeft(name="x"))) == ["id-1"]
    assert transport.entries("send") == []


async def test_the_next_invocation_publishes_the_same_ids(transport: FakeTransport) -> None:
    published: list[str] = []
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        published.append(await delivery.publish(UserLeft(name="Ada")))
        if len(published) < 2:
            raise ValueError("not yet")

    body = encode(wrap(ADA, source="test"))

    assert await handled(service, record(body)) == ["id-1"]
    assert await handled(service, record(body)) == []
    assert published[0] == published[1]


def test_a_warm_function_sets_only_the_delays_of_its_own_invocation(transport: FakeTransport) -> None:
    service = Service("mailer", retry=RetryPolicy(wait=wait_fixed(7)))

    @service.subscribe(UserLeft)
    def leave(event: UserLeft) -> None:
        if event.name == "bad":
            raise OSError("down")

    handler = service.lambda_handler()
    for number in range(1, 6):
        bad = number % 2 == 1
        event = UserLeft(name="bad" if bad else "good")
        assert failed(handler({"Records": [record(event, number)]}, Context(30_000))) == (
            [f"id-{number}"] if bad else []
        )
        assert [call[2] for call in transport.calls] == ([[(f"receipt-{number}", 7)]] if bad else [])
        transport.calls.clear()
    handler.close()
