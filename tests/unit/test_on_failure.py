"""``Service.on_failure``: functions that are called with each failed delivery, and can neither lose nor delay it."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import (
    Batch,
    BatchDelivery,
    ConfigError,
    Delivery,
    DeliveryFailure,
    MessageError,
    Publisher,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Service,
    TransportError,
)
from smartpipe.consumer.decide import WorkerLost
from smartpipe.consumer.processor import Processor
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.encode import current_envelope
from smartpipe.failures import HOOK_SECONDS
from smartpipe.message import Failure, OutgoingMessage
from smartpipe.settings import WorkerSettings
from smartpipe.testing import MemoryBroker, virtual_time
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.transports.open import use_transport
from smartpipe.worker.group import WorkerGroup
from tests.support.consumers import consuming, drain, make_consumer
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

TWICE = RetryPolicy(attempts=2, wait=wait_fixed(1))


def failing(error: BaseException) -> tuple[Service, list[DeliveryFailure]]:
    """Return a service whose only handler raises *error*, and the failures that its hook is called with."""
    service, failures = Service("mailer", retry=TWICE), list[DeliveryFailure]()

    @service.subscribe(UserSignedUp)
    async def send_mail(event: UserSignedUp) -> None:
        raise error

    @service.on_failure
    async def collect(failure: DeliveryFailure) -> None:
        await asyncio.sleep(0)
        failures.append(failure)

    return service, failures


async def publish(service: Service, *events: Any, **options: Any) -> MemoryBroker:
    """Publish *events*, and wait until the service has nothing left to do."""
    async with MemoryBroker(service, **options) as broker:
        for event in events:
            await broker.publish(event)
        await broker.drain()
    return broker


async def test_each_failed_attempt_is_reported_once_with_its_outcome() -> None:
    error = OSError("no mail server")
    service, failures = failing(error)

    await publish(service, ADA)

    retried, dead = failures
    assert (retried.error, dead.error) == (error, error)
    assert (retried.outcome, retried.kind, retried.retry_after_seconds, retried.attempt) == ("retried", None, 1, 1)
    assert (dead.outcome, dead.kind, dead.retry_after_seconds, dead.attempt) == (
        "dead_lettered",
        "retries-exhausted",
        None,
        2,
    )
    for failure in failures:
        assert (failure.service, failure.queue) == ("mailer", "mailer")
        assert failure.handler is not None
        assert failure.handler.endswith("send_mail")
        assert failure.event == ADA
        assert failure.event_type == "member.signed_up"
        assert failure.envelope is not None
        assert failure.event_id == failure.envelope.id
        assert failure.trace_id == failure.envelope.traceparent[3:35]  # type: ignore[index]
        assert failure.log_fields.items() >= {"event_id": failure.event_id, "attempt": failure.attempt}.items()
        assert "Ada" not in str(failure.log_fields)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retry("later", after_seconds=3), [("retried", None, 3), ("dead_lettered", "retries-exhausted", None)]),
        (Reject("unknown user"), [("dead_lettered", "rejected", None)]),
        (SystemExit(3), [("retried", None, 1), ("dead_lettered", "retries-exhausted", None)]),
        (asyncio.CancelledError(), [("retried", None, 1), ("dead_lettered", "retries-exhausted", None)]),
    ],
    ids=["retry", "reject", "exit", "cancelled by itself"],
)
async def test_any_exception_of_a_handler_is_reported(error: BaseException, expected: list[Any]) -> None:
    service, failures = failing(error)

    await publish(service, ADA)

    assert [(one.outcome, one.kind, one.retry_after_seconds) for one in failures] == expected
    assert {one.error for one in failures} == {error}


async def test_the_only_error_of_a_task_group_is_reported_itself() -> None:
    error = OSError("no mail server")
    service, failures = failing(ExceptionGroup("tasks", [error]))

    await publish(service, ADA)

    assert failures[-1].error is error


async def test_a_timeout_is_reported_whether_the_handler_ends_or_not() -> None:
    service, failures = Service("mailer", retry=RetryPolicy(attempts=1)), list[DeliveryFailure]()
    service.on_failure(failures.append)
    released = asyncio.Event()

    @service.subscribe(UserSignedUp, timeout_seconds=2)
    async def end_at_once(event: UserSignedUp) -> None:
        await asyncio.sleep(60)

    @service.subscribe(UserLeft, timeout_seconds=2)
    async def stay(event: UserLeft) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.publish(UserLeft(name="Ada"))
        await broker.drain()
        released.set()
        await asyncio.sleep(1)

    assert sorted(type(one.error).__name__ for one in failures) == ["HandlerTimeout"] * 2
    assert {one.outcome for one in failures} == {"dead_lettered"}


async def test_a_message_that_cannot_be_decoded_is_reported_without_an_event() -> None:
    service, failures = failing(OSError())

    async with MemoryBroker(service) as broker:
        await broker.send("mailer", "no event")
        await broker.drain()

    [failure] = failures
    assert isinstance(failure.error, MessageError)
    assert (failure.outcome, failure.kind, failure.attempt) == ("dead_lettered", "not-json", 1)
    assert failure.message.body == "no event"
    assert failure.handler is None
    assert (failure.event, failure.event_id, failure.event_type, failure.trace_id) == (None, None, None, None)
    assert failure.log_fields["event_id"] is None


async def test_a_message_that_has_killed_its_workers_is_reported() -> None:
    service, failures = failing(OSError())
    transport = FakeTransport()

    with virtual_time():
        async with consuming(service, transport):
            transport.put(ADA, receive_count=500)
            await until(lambda: transport.entries("delete"))

    [failure] = failures
    assert isinstance(failure.error, WorkerLost)
    assert (failure.kind, failure.attempt, failure.handler) == ("worker-lost", 500, None)


async def test_each_failed_item_of_a_batch_is_reported() -> None:
    service, failures = Service("mailer", retry=RetryPolicy(attempts=1)), list[DeliveryFailure]()
    service.on_failure(failures.append)

    @service.subscribe(UserSignedUp, batch=Batch(size=4))
    async def send_mails(events: list[UserSignedUp], batch: BatchDelivery) -> None:
        for index, event in enumerate(events):
            if event.name in "bd":
                batch.fail(index, Reject(event.name))

    await publish(service, *(ADA.model_copy(update={"name": name}) for name in "abcd"))

    assert sorted(str(one.error) for one in failures) == ["b", "d"]
    assert sorted(one.event.name for one in failures) == ["b", "d"]  # type: ignore[union-attr]


async def test_a_halted_group_is_reported() -> None:
    halting = RetryPolicy(attempts=1, wait=wait_fixed(1), max_seconds=60, on_exhausted="halt")
    service, failures = Service("ledger", queue=Queue("ledger", fifo=True)), list[DeliveryFailure]()
    service.on_failure(failures.append)

    @service.subscribe(Paid, retry=halting)
    async def book(event: Paid, delivery: Delivery) -> None:
        if delivery.receive_count == 1:
            raise OSError("no ledger")

    await publish(service, Paid(account="a", number=1), Paid(account="a", number=2))

    assert failures[0].outcome == "halted"
    assert (failures[0].kind, failures[0].retry_after_seconds) == ("retries-exhausted", 60)


async def test_an_internal_error_is_reported_with_the_attempt_that_the_receive_count_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, failures = failing(OSError())
    error, transport = ZeroDivisionError(), FakeTransport()

    async def process(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Processor, "process", process)
    with virtual_time():
        async with consuming(service, transport):
            transport.put(ADA, receive_count=3)
            await until(lambda: failures)

    [failure] = failures
    assert (failure.error, failure.outcome, failure.attempt) == (error, "internal_error", 3)
    assert failure.retry_after_seconds == 30


async def test_a_failure_whose_dead_letter_cannot_be_written_counts_as_retried() -> None:
    service, failures = failing(Reject("unknown user"))
    transport = FakeTransport()
    transport.script["send"].extend([[Failure(0, "InvalidParameterValue", "refused", retryable=False)]] * 2)

    with virtual_time():
        async with consuming(service, transport):
            transport.put(ADA)
            await until(lambda: failures)

    assert [(one.outcome, one.kind, one.retry_after_seconds) for one in failures] == [("retried", None, 30)]


async def test_nothing_is_reported_for_a_delivery_that_has_not_failed() -> None:
    service, failures = Service("mailer", unknown_events="ignore"), list[DeliveryFailure]()
    service.on_failure(failures.append)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        if delivery.receive_count == 1:
            raise MemoryError  # deferred

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.send("mailer", encode(wrap(UserLeft(name="Ada"), source="test")))
        await broker.drain()
        broker.assert_handled(UserSignedUp, times=1)
        assert len(broker.retried()) == 1

    assert failures == []


async def test_nothing_is_reported_for_handlers_that_a_stop_cancels_and_messages_that_it_returns() -> None:
    service, failures = Service("mailer"), list[DeliveryFailure]()
    service.on_failure(failures.append)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        await asyncio.sleep(10_000)

    transport = FakeTransport()
    with virtual_time():
        consumer = make_consumer(service, transport, concurrency=1)
        consumer.start()
        transport.put(ADA, ADA)
        await until(lambda: consumer.in_flight)
        await drain(consumer, budget_seconds=1)

    assert consumer.counters.cancelled == 1
    assert failures == []


async def test_all_functions_are_called_and_a_sync_one_runs_in_a_thread() -> None:
    service, failures = failing(Reject("unknown user"))
    names = list[str]()

    @service.on_failure
    def report(failure: DeliveryFailure, prefix: str = "") -> None:
        names.append(prefix + threading.current_thread().name)

    assert report is service.on_failure(report)
    service.on_failure(partial(report, prefix="partial "))

    await publish(service, ADA)

    assert len(failures) == 1
    assert sorted(names) == ["partial smartpipe-handler", "smartpipe-handler", "smartpipe-handler"]


async def test_the_functions_are_called_after_the_message_was_settled() -> None:
    service, _ = failing(Reject("unknown user"))
    transport, sent = FakeTransport(), list[int]()

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        await asyncio.sleep(1)  # the delete is sent while this runs
        sent.extend([len(transport.entries("send")), len(transport.entries("delete"))])

    with virtual_time():
        async with consuming(service, transport):
            transport.put(ADA)
            await until(lambda: sent)

    assert sent == [1, 1]


async def test_an_error_of_a_function_is_logged_once_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    service, failures = failing(OSError("no mail server"))
    broken = [True]

    @service.on_failure
    def report(failure: DeliveryFailure) -> None:
        if broken[0]:
            raise RuntimeError("no Sentry")

    with caplog.at_level(logging.INFO, "smartpipe.failures"):
        async with MemoryBroker(service) as broker:
            for _ in range(2):
                await broker.publish(ADA)
            await broker.drain()
            assert len(broker.dead_lettered()) == 2
            broken[0] = False
            await broker.publish(ADA)
            await broker.drain()

    assert len(failures) == 6
    lines = [record for record in caplog.records if "on_failure" in record.message]
    assert [record.levelname for record in lines] == ["ERROR", "INFO"]
    assert "report raised RuntimeError." in lines[0].message
    assert "no Sentry" in str(lines[0].exc_info)
    assert lines[1].message.endswith("report works again. It missed 4 failures")


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr)
async def test_no_exception_of_a_function_ends_the_worker(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    service, failures = failing(Reject("unknown user"))

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        raise error

    broker = await publish(service, ADA)

    assert len(broker.dead_lettered()) == len(failures) == 1
    assert f"raised {type(error).__name__}" in caplog.text


async def test_a_slow_function_is_cancelled_after_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    service, failures = failing(Reject("unknown user"))
    ends = list[float]()

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        started = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(asyncio.get_running_loop().time() - started)

    await publish(service, ADA, ADA, concurrency=1)

    assert ends == pytest.approx([5, 5], abs=0.1)
    assert len(failures) == 2
    assert caplog.text.count("has not ended after 5 s") == 1


async def test_a_slow_function_that_swallows_its_cancellation_does_not_count_as_working(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, _ = failing(Reject("unknown user"))

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    with caplog.at_level(logging.INFO, "smartpipe.failures"):
        await publish(service, ADA, ADA, concurrency=1)

    assert caplog.text.count("has not ended after 5 s") == 1
    assert "works again" not in caplog.text


async def test_a_function_that_hangs_in_a_thread_is_not_called_again_until_it_has_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, failures = failing(Reject("unknown user"))
    release, calls = threading.Event(), list[DeliveryFailure]()
    loop: Any = asyncio.get_running_loop()

    @service.on_failure
    def report(failure: DeliveryFailure) -> None:
        calls.append(failure)
        release.wait(30)

    with caplog.at_level(logging.INFO, "smartpipe.failures"):
        async with MemoryBroker(service, concurrency=1) as broker:
            for _ in range(3):
                await broker.publish(ADA)
            draining = asyncio.create_task(broker.drain())
            await until(lambda: calls)
            loop._selector.now += HOOK_SECONDS  # time is real while the thread runs
            await draining
            assert (len(calls), len(failures), len(broker.dead_lettered())) == (1, 3, 3)
            release.set()
            await until(lambda: "works again. It missed 2 failures" in caplog.text)
            monkeypatch.setattr("smartpipe.failures.HOOK_SECONDS", 30)
            await broker.publish(ADA)
            await broker.drain()

    assert len(calls) == 2
    assert caplog.text.count("has not ended after") == 1


async def test_a_stop_does_not_wait_for_a_slow_function_and_settles_the_message_once() -> None:
    service, _ = failing(OSError("no mail server"))
    transport, begun, cancelled = FakeTransport(), list[DeliveryFailure](), list[DeliveryFailure]()

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        begun.append(failure)
        try:
            await asyncio.sleep(4)
        except asyncio.CancelledError:
            cancelled.append(failure)
            raise

    with virtual_time():
        consumer = make_consumer(service, transport)
        consumer.start()
        transport.put(ADA)
        await until(lambda: begun)
        hard = asyncio.Event()
        hard.set()
        await drain(consumer, hard=hard)

    assert len(cancelled) == 1
    assert consumer.counters.as_dict() == {"received": 1, "retried": 1}
    assert transport.entries("change_visibility") == [("r1", 1)]


async def test_what_a_function_publishes_names_the_failed_event_as_its_cause() -> None:
    service, failures = failing(Reject("unknown user"))

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        async with Publisher("alerts") as publisher:
            await publisher.publish(UserLeft(name="Ada"))

    broker = await publish(service, ADA)

    [left] = [one for one in broker.transport.records if isinstance(one.event, UserLeft)]
    [failure] = failures
    assert f'"causationid":"{failure.event_id}"' in left.body
    assert str(failure.trace_id) in left.body


async def test_a_message_that_cannot_be_decoded_is_not_taken_for_the_one_before_it_in_its_group() -> None:
    service, causes = Service("ledger", queue=Queue("ledger", fifo=True)), list[Any]()

    @service.subscribe(Paid)
    async def book(event: Paid) -> None: ...

    @service.on_failure
    async def report(failure: DeliveryFailure) -> None:
        causes.append(current_envelope.get())

    async with MemoryBroker(service) as broker:
        queue = broker.transport.queue("ledger.fifo")
        for body in (encode(wrap(Paid(account="a"), source="test")), "no event"):
            message = OutgoingMessage(body, len(body), group_id="a", deduplication_id=body[:8])
            assert queue.send(message) is None
        await broker.drain()

    assert causes == [None]


async def test_an_attempt_is_counted_as_the_retry_policy_counts_it() -> None:
    """Deliveries that were deferred do not count; those of an idempotent handler are its claims."""
    attempts = list[tuple[int, int]]()
    for idempotent in (False, True):
        service, failures = Service("mailer", retry=TWICE), list[DeliveryFailure]()
        service.on_failure(failures.append)

        @service.subscribe(UserSignedUp, idempotent=idempotent)
        async def handle(event: UserSignedUp, delivery: Delivery) -> None:
            attempts.append((delivery.attempt, delivery.log_fields["attempt"]))  # type: ignore[arg-type]
            raise MemoryError if delivery.receive_count == 1 else OSError

        await publish(service, ADA)

        assert attempts == [(1, 1), (1, 1), (2, 2)]
        assert [(one.attempt, one.message.receive_count) for one in failures] == [(1, 2), (2, 3)]
        attempts.clear()


async def test_on_lambda_the_functions_have_been_called_when_the_invocation_returns() -> None:
    service, failures = failing(OSError("no mail server"))
    threads = list[str]()
    service.on_failure(lambda _: threads.append(threading.current_thread().name))
    function = service.lambda_handler()
    record = {
        "messageId": "message-1",
        "receiptHandle": "receipt-1",
        "body": encode(wrap(ADA, source="test", event_id="event-1")),
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:mailer",
    }

    with use_transport(FakeTransport()):
        for _ in range(2):
            response = await function.handle({"Records": [record]})
            assert response == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
        await function.aclose()

    assert [(one.event_id, one.outcome) for one in failures] == [("event-1", "retried")] * 2
    assert threads == ["smartpipe-handler"] * 2


async def test_in_a_group_of_services_each_has_its_own_functions() -> None:
    mail, mail_failures = failing(Reject("no mail"))
    audit, audit_failures = Service("audit"), list[DeliveryFailure]()
    audit.on_failure(audit_failures.append)

    @audit.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        raise Reject("no audit")

    transport = MemoryTransport()
    transport.apply(derive([mail, audit], NAMING))
    settings = WorkerSettings.load(host="127.0.0.1", port=0, wait_seconds=1, drain_seconds=5)
    group = WorkerGroup([mail, audit], transport, settings)
    running = asyncio.create_task(group.run())
    async with Publisher("test", transport=transport) as publisher:
        await publisher.publish(ADA)
    await until(lambda: mail_failures and audit_failures)
    group.stop()

    assert await running == 0
    assert [(one.service, str(one.error)) for one in mail_failures] == [("mailer", "no mail")]
    assert [(one.service, str(one.error)) for one in audit_failures] == [("audit", "no audit")]


def generator(failure: DeliveryFailure) -> Any:
    yield failure


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "service 'mailer': on_failure(None) is not a function: write @service.on_failure above def report("),
        (OSError, "is not a function"),
        (lambda: None, "<lambda>: too many positional arguments; write @service.on_failure"),
        (lambda _, more: more, "missing a required argument: 'more'; write"),
        (generator, "generator is a generator, so none of it would run"),
    ],
    ids=["none", "class", "no parameter", "two parameters", "generator"],
)
def test_a_function_that_cannot_be_called_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Service("mailer").on_failure(function)

    assert message in str(caught.value)


async def test_a_service_without_functions_builds_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("mailer", retry=TWICE)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        raise TransportError("Throttled", "slow down", retryable=True)

    monkeypatch.setattr("smartpipe.consumer.settle.DeliveryFailure", None)  # would raise if it were called

    broker = await publish(service, ADA)

    assert len(broker.dead_lettered()) == 1
