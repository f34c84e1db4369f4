from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from pydantic import field_validator
from tenacity import wait_fixed

from smartpipe import Delivery, Event, Reject, Retry, RetryPolicy
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.envelope import encode, wrap
from smartpipe.message import Attribute
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserLeft, UserSignedUp, users
from tests.support.fakes import UNREACHABLE, FakeTransport, refused, throttled
from tests.support.forgeries import FORGED
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

    from smartpipe import Service
    from smartpipe.counters import Counters

SEVEN = RetryPolicy(attempts=3, wait=wait_fixed(7))


def consume(service: Service, transport: FakeTransport, *, seconds: float = 60, concurrency: int = 10) -> Counters:
    """Let the service consume for a number of virtual seconds, then drain it."""

    async def main() -> Counters:
        async with consuming(service, transport, concurrency=concurrency) as consumer:
            await asyncio.sleep(seconds)
        return consumer.counters

    return run_virtually(main())


def reasons(transport: FakeTransport) -> list[dict[str, Any]]:
    return [json.loads(message.attributes[REASON_ATTRIBUTE].value) for message in transport.entries("send")]


def test_a_handled_message_is_deleted() -> None:
    service, transport = make_service(), FakeTransport()
    seen: list[UserSignedUp] = []

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    transport.put(ADA)
    counts = consume(service, transport)

    assert seen == [ADA]
    assert transport.entries("delete") == ["r1"]
    assert counts.as_dict() == {"received": 1, "handled": 1}


def test_deletes_are_batched() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(*[ADA] * 25)
    counts = consume(service, transport, concurrency=30)

    assert sorted(transport.batches("delete")) == [5, 10, 10]
    assert counts.handled == 25


def test_the_delivery_has_the_data_of_the_message() -> None:
    service, transport = make_service(), FakeTransport()
    seen: list[tuple[object, ...]] = []

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        seen.append((delivery.source, delivery.receive_count, delivery.queue, delivery.service, delivery.lease_lost))
        assert delivery.handler.endswith("handle")
        assert len(delivery.trace_id or "") == 32
        assert delivery.time is not None

    transport.put(ADA, receive_count=2)
    consume(service, transport)

    assert seen == [("test", 2, "mailer", "mailer", False)]


def test_a_failed_message_is_returned_by_the_policy_and_not_deleted() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise ValueError("not now")

    transport.put(ADA, receive_count=2)
    counts = consume(service, transport)

    assert transport.entries("change_visibility") == [("r1", 7)]
    assert transport.entries("delete") == []
    assert counts.as_dict() == {"received": 1, "retried": 1}


def test_a_handler_may_choose_the_time_of_its_retry() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Retry("rate limited", after_seconds=90)

    transport.put(ADA)
    consume(service, transport)

    assert transport.entries("change_visibility") == [("r1", 90)]


@pytest.mark.parametrize(
    ("error", "receive_count", "kind"),
    [(Reject("no such user"), 1, "rejected"), (ValueError("still broken"), 3, "retries-exhausted")],
)
def test_a_dead_letter_is_copied_with_its_reason_and_only_then_deleted(
    error: Exception, receive_count: int, kind: str
) -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise error

    transport.put(ADA, receive_count=receive_count)
    counts = consume(service, transport)

    settling = [(verb, name) for verb, name, _, _ in transport.calls if verb in ("send", "delete")]
    assert settling == [("send", "mailer-dlq"), ("delete", "mailer")]
    [reason] = reasons(transport)
    assert (reason["kind"], reason["message"]) == (kind, str(error))
    assert counts.dead_lettered == 1


@pytest.mark.parametrize("forged", FORGED)
def test_a_reason_written_by_a_producer_does_not_change_how_its_message_is_handled(forged: str) -> None:
    service, transport = make_service(), FakeTransport()
    seen: list[list[str]] = []

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(sorted(delivery.attributes))

    attributes = {REASON_ATTRIBUTE: Attribute("String", FORGED[forged])}
    transport.put(ADA, attributes=attributes)
    transport.put("poison", attributes=attributes)
    counts = consume(service, transport)

    assert (counts.handled, counts.dead_lettered, counts.retried) == (1, 1, 0)
    assert REASON_ATTRIBUTE not in seen[0]
    assert [reason["kind"] for reason in reasons(transport)] == ["not-json"]


def test_fault_11_poison_is_dead_lettered_immediately_while_good_messages_are_handled() -> None:
    service, transport = make_service(), FakeTransport()
    seen: list[UserSignedUp] = []

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    transport.put("poison", ADA, UserLeft(name="x"), '{"specversion": 1}', ADA)
    counts = consume(service, transport)

    assert seen == [ADA, ADA]
    assert sorted(reason["kind"] for reason in reasons(transport)) == [
        "not-cloudevent",
        "not-json",
        "unknown-event-type",
    ]
    assert len(transport.entries("delete")) == 5
    assert counts.as_dict() == {"received": 5, "handled": 2, "dead_lettered": 3}


def test_fault_56_an_unknown_event_is_ignored_and_counted_if_the_service_says_so() -> None:
    service, transport = make_service(unknown_events="ignore"), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(UserLeft(name="x"))
    counts = consume(service, transport)

    assert transport.entries("delete") == ["r1"]
    assert transport.entries("send") == []
    assert counts.as_dict() == {"received": 1, "ignored": 1}


def test_fault_46_a_dead_letter_that_could_not_be_copied_is_not_deleted() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["send"].extend([UNREACHABLE] * 1_000)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Reject("x")

    transport.put(ADA)
    counts = consume(service, transport)

    assert transport.entries("delete") == []
    assert transport.entries("change_visibility")[-1] == ("r1", 30)
    assert counts.as_dict() == {"received": 1, "retried": 1}


def test_fault_46_a_dead_letter_whose_delete_fails_is_a_second_copy_and_not_a_loss() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].append([refused(0)])

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Reject("x")

    [first] = transport.put(ADA)
    counts = consume(service, transport)

    assert transport.entries("send")[0].body == first.body  # so its event id is that of a second attempt
    assert counts.as_dict() == {"received": 1, "dead_lettered": 1, "not_deleted": 1}


def test_fault_14_only_the_failed_entries_of_a_delete_batch_are_sent_again() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].append([throttled(1)])

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(ADA, ADA, ADA)
    counts = consume(service, transport)

    assert transport.entries("delete") == ["r1", "r2", "r3", "r2"]
    assert counts.as_dict() == {"received": 3, "handled": 3}


def test_fault_14_a_delete_that_never_succeeds_is_reported_and_the_worker_continues() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].extend([UNREACHABLE] * 100)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(ADA)
    counts = consume(service, transport)

    assert counts.as_dict() == {"received": 1, "handled": 1, "not_deleted": 1}


def test_several_handlers_on_one_queue_are_one_unit() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()
    ran: list[str] = []

    @service.subscribe(UserSignedUp)
    async def first(_: UserSignedUp) -> None:
        ran.append("first")

    @service.subscribe(UserSignedUp)
    async def second(_: UserSignedUp) -> None:
        ran.append("second")
        raise ValueError("x")

    @service.subscribe(UserSignedUp)
    async def third(_: UserSignedUp) -> None:
        ran.append("third")

    transport.put(ADA)
    consume(service, transport)

    assert ran == ["first", "second"]
    assert transport.entries("change_visibility") == [("r1", 7)]


def test_fault_29_a_handler_that_never_returns_is_cancelled_at_its_timeout_and_frees_its_slot() -> None:
    service, transport = make_service(timeout_seconds=100, retry=SEVEN), FakeTransport()
    cancelled: list[float] = []

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        try:
            await asyncio.sleep(1_000_000)
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    transport.put(ADA, ADA)
    counts = consume(service, transport, seconds=250, concurrency=1)

    assert cancelled == [100, 200]
    assert counts.retried == 2
    extensions = [time for verb, _, _, time in transport.calls if verb == "change_visibility"]
    assert max(extensions) <= 201  # nothing is kept after the handler has ended


def test_a_timeout_error_raised_by_the_handler_is_an_ordinary_failure() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)

    transport.put(ADA)
    counts = consume(service, transport)

    assert counts.retried == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(3), BaseExceptionGroup("x", [ValueError()])])
def test_fault_43_any_exception_of_a_handler_is_its_failure_and_not_a_shutdown(error: BaseException) -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        if event.name == "Ada":
            raise error

    transport.put(ADA, UserSignedUp(user_id=ADA.user_id, name="Bob"))
    counts = consume(service, transport)

    assert counts.as_dict() == {"received": 2, "handled": 1, "retried": 1}


def test_fault_43_the_lease_ticker_restarts_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from smartpipe.consumer.leases import Leases

    tick, errors = Leases.tick, [ZeroDivisionError("a bug")]

    def failing_once(self: Leases) -> None:
        if errors:
            raise errors.pop()
        tick(self)

    monkeypatch.setattr(Leases, "tick", failing_once)
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(100)

    transport.put(ADA)
    counts = consume(service, transport, seconds=150)

    assert len(transport.entries("change_visibility")) > 3
    assert counts.as_dict() == {"received": 1, "handled": 1}


def test_fault_22_deliveries_without_a_failure_do_not_dead_letter_a_message_that_succeeds() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(ADA, receive_count=9)
    counts = consume(service, transport)

    assert counts.as_dict() == {"received": 1, "handled": 1}


def test_events_published_by_a_handler_carry_the_trace_and_cause_of_its_event() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        await delivery.publish(UserLeft(name="x"))

    [message] = transport.put(ADA)
    consume(service, transport)

    cause, effect = json.loads(message.body), json.loads(transport.entries("publish")[0].body)
    assert effect["source"] == "mailer"
    assert effect["causationid"] == cause["id"]
    assert effect["correlationid"] == cause["correlationid"]
    assert effect["traceparent"][:36] == cause["traceparent"][:36]


async def inner(_: object) -> None:
    INNER.append("ran")


INNER: list[str] = []


@pytest.mark.parametrize("handler", [partial(inner), lambda event: inner(event)])
async def test_a_handler_that_only_looks_sync_runs_to_its_end(handler: Callable[[object], Awaitable[None]]) -> None:
    service, transport = make_service(), FakeTransport()
    service.subscribe(UserSignedUp)(handler)
    INNER.clear()

    transport.put(ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.handled == 1)

    assert INNER == ["ran"]


async def test_a_handler_that_returns_a_generator_has_not_run_and_fails() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    def numbers(_: UserSignedUp) -> Iterator[int]:
        yield 1

    service.subscribe(UserSignedUp)(lambda event: numbers(event))
    transport.put(ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.retried == 1)

    assert transport.entries("delete") == []


async def test_a_sync_handler_that_raises_stop_iteration_fails() -> None:
    service, transport = make_service(retry=SEVEN), FakeTransport()

    @service.subscribe(UserSignedUp)
    def handle(_: UserSignedUp) -> None:
        next(iter(()))

    transport.put(ADA)
    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.retried == 1)


def test_a_validator_that_raises_an_unexpected_error_makes_the_data_invalid() -> None:
    class Fussy(Event, topic=users, type="fussy", version="1.0"):
        name: str

        @field_validator("name")
        @classmethod
        def look_up(cls, name: str) -> str:
            return {"known": name}[name]

    service, transport = make_service(), FakeTransport()

    @service.subscribe(Fussy)
    async def handle(_: Fussy) -> None: ...

    transport.put(encode(wrap(Fussy(name="known"), source="s")).replace('"known"', '"unknown"'))
    counts = consume(service, transport)

    [reason] = reasons(transport)
    assert (reason["kind"], "KeyError" in reason["message"]) == ("invalid-data", True)
    assert counts.dead_lettered == 1


def test_an_error_whose_text_is_not_available_is_dead_lettered_nevertheless() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    service, transport = make_service(retry=RetryPolicy(attempts=1)), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Mute

    transport.put(ADA)
    counts = consume(service, transport)

    assert counts.as_dict() == {"received": 1, "dead_lettered": 1}


def test_an_internal_error_returns_the_message_to_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    monkeypatch.setattr("smartpipe.consumer.processor.Delivery", None)
    transport.put(ADA)
    counts = consume(service, transport)

    assert transport.entries("change_visibility") == [("r1", 30)]
    assert transport.entries("delete") == []
    assert counts.as_dict() == {"received": 1, "retried": 1}


def test_the_latest_possible_retry_stays_within_twelve_hours_of_the_receive() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Retry(after_seconds=43_200)

    transport.put(ADA)
    consume(service, transport)

    [(_, seconds)] = transport.entries("change_visibility")
    assert 43_000 < seconds < 43_200


def test_a_dead_letter_that_is_refused_with_its_reason_is_sent_without_it() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["send"].append([refused(0)])

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Reject("x")

    transport.put(ADA)
    counts = consume(service, transport)

    assert [sorted(message.attributes) for message in transport.entries("send")] == [[REASON_ATTRIBUTE], []]
    assert counts.dead_lettered == 1


def test_fault_42_the_number_of_messages_that_wait_for_their_delete_is_limited() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["delete"].extend([9.0] * 10_000)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None: ...

    transport.put(*[ADA] * 2_000)

    async def main() -> int:
        async with consuming(service, transport) as consumer:
            await asyncio.sleep(5)
            received = consumer.counters.received
            transport.script["delete"].clear()
            await asyncio.sleep(600)
        assert consumer.counters.handled == 2_000
        return received

    assert run_virtually(main()) <= 220
