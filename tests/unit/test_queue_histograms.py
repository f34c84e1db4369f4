"""Times and attempts of messages, as a consumer records them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Idempotency, Reject, Retry, RetryPolicy
from smartpipe.envelope import encode, wrap
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.telemetry.queue_histograms import EventTimes, QueueHistograms
from tests.support.consumers import drain, make_consumer, make_service
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe import Event, Service
    from smartpipe.telemetry.histograms import Histogram

NOW = 1_700_000_000.0
TYPE = "member.signed_up"


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the wall clock of the consumer stand still; its monotonic clock goes on."""
    monkeypatch.setattr("smartpipe.consumer.settle.time", SimpleNamespace(time=lambda: NOW))


def body_of(event: Event, age_seconds: float) -> str:
    time = datetime.fromtimestamp(NOW, UTC) - timedelta(seconds=age_seconds)
    return encode(wrap(event, source="test")._replace(time=time))


def handle_one(service: Service, body: str, *, sent_seconds: float | None = None, **fields: Any) -> QueueHistograms:
    """Return the histograms of a consumer that has received one message, which was sent *sent_seconds* ago."""
    transport = FakeTransport()
    sent_at = None if sent_seconds is None else NOW - sent_seconds
    transport.put(body, sent_at=sent_at, **fields)

    async def main() -> QueueHistograms:
        consumer = make_consumer(service, transport)
        consumer.start()
        await asyncio.sleep(1)
        await drain(consumer)
        assert consumer.counters.histograms is not None
        consumer.counters.histograms.fold()
        return consumer.counters.histograms

    return run_virtually(main())


def service_of(handle: Callable[[UserSignedUp], Awaitable[None]], **options: Any) -> Service:
    service = make_service(**options)
    service.subscribe(UserSignedUp)(handle)
    return service


async def succeed(_: UserSignedUp) -> None:
    pass


async def reject(_: UserSignedUp) -> None:
    raise Reject("no")


async def retry(_: UserSignedUp) -> None:
    raise Retry


async def fail(_: UserSignedUp) -> None:
    raise OSError("broken")


async def hang(_: UserSignedUp) -> None:
    await asyncio.sleep(1_000)


def critical_times(histograms: QueueHistograms) -> tuple[int, float]:
    one = histograms.types[TYPE].critical_time
    one.fold()
    return one.count, one.sum


@pytest.mark.parametrize("handle", [succeed, reject])
def test_the_critical_time_of_an_event_ends_when_it_is_handled_or_dead_lettered(
    handle: Callable[[UserSignedUp], Awaitable[None]],
) -> None:
    assert critical_times(handle_one(service_of(handle), body_of(ADA, 100))) == (1, 100)


@pytest.mark.parametrize("handle", [retry, fail])
def test_a_delivery_that_will_be_repeated_has_no_critical_time(
    handle: Callable[[UserSignedUp], Awaitable[None]],
) -> None:
    assert critical_times(handle_one(service_of(handle), body_of(ADA, 100))) == (0, 0)


def test_an_event_from_the_future_has_a_critical_time_of_0_and_is_counted() -> None:
    histograms = handle_one(service_of(succeed), body_of(ADA, -3))

    assert critical_times(histograms) == (1, 0)
    assert histograms.future_events == 1
    assert handle_one(service_of(succeed), body_of(ADA, 0)).future_events == 0


def test_the_queue_time_is_that_of_first_deliveries() -> None:
    def queue_time(**fields: Any) -> Histogram:
        times = handle_one(service_of(succeed), body_of(ADA, 100), **fields).types[TYPE].queue_time
        times.fold()
        return times

    first = queue_time(sent_seconds=40)
    assert first.count == 1
    assert first.sum == pytest.approx(40, abs=0.5)  # less the time that the handler took
    assert queue_time(sent_seconds=-40).sum == 0
    assert queue_time(sent_seconds=40, receive_count=2).count == 0
    assert queue_time().count == 0


@pytest.mark.parametrize("handle", [retry, fail, reject])
def test_the_queue_time_of_a_first_delivery_counts_whatever_its_outcome_is(
    handle: Callable[[UserSignedUp], Awaitable[None]],
) -> None:
    times = handle_one(service_of(handle), body_of(ADA, 100), sent_seconds=40).types[TYPE].queue_time

    times.fold()
    assert times.count == 1
    assert times.sum == pytest.approx(40, abs=0.5)


def test_a_slow_dead_letter_queue_does_not_lengthen_the_queue_time() -> None:
    transport = FakeTransport()
    transport.script["send"].append(2.0)
    transport.put(body_of(ADA, 100), sent_at=NOW - 40)

    async def main() -> QueueHistograms:
        consumer = make_consumer(service_of(reject), transport)
        consumer.start()
        await asyncio.sleep(5)
        await drain(consumer)
        assert consumer.counters.histograms is not None
        consumer.counters.histograms.fold()
        return consumer.counters.histograms

    times = run_virtually(main()).types[TYPE]
    assert (times.queue_time.count, times.critical_time.count) == (1, 1)


def test_a_handler_that_does_not_end_has_timed_out_once() -> None:
    async def ignore(_: UserSignedUp) -> None:
        until = asyncio.get_running_loop().time() + 100
        while asyncio.get_running_loop().time() < until:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    transport = FakeTransport()
    transport.put(ADA)

    async def main() -> dict[str, Histogram]:
        consumer = make_consumer(service_of(ignore, timeout_seconds=1), transport)
        consumer.start()
        await asyncio.sleep(200)
        await drain(consumer)
        assert consumer.counters.not_ended == 1
        assert consumer.counters.histograms is not None
        (calls,) = consumer.counters.histograms.handlers.values()
        return calls

    assert {name: one.count for name, one in run_virtually(main()).items() if one.count} == {"timed_out": 1}


def test_the_receive_count_is_that_of_handled_messages() -> None:
    handled = handle_one(service_of(succeed), body_of(ADA, 1), receive_count=3).receive_counts
    handled.fold()
    assert (handled.count, handled.sum) == (1, 3)

    assert handle_one(service_of(reject), body_of(ADA, 1), receive_count=3).receive_counts.count == 0


@pytest.mark.parametrize(
    ("handle", "outcome", "seconds"),
    [(succeed, "handled", 0), (reject, "failed", 0), (retry, "failed", 0), (fail, "failed", 0), (hang, "timed_out", 0)],
)
def test_a_call_of_a_handler_is_recorded_by_its_outcome(
    handle: Callable[[UserSignedUp], Awaitable[None]], outcome: str, seconds: float
) -> None:
    (calls,) = handle_one(service_of(handle, timeout_seconds=0.5), body_of(ADA, 1)).handlers.values()

    assert {name: one.count for name, one in calls.items() if one.count} == {outcome: 1}
    calls[outcome].fold()
    assert calls[outcome].sum >= seconds


def test_a_call_that_waits_for_another_worker_is_deferred() -> None:
    transport = FakeTransport()
    transport.put(ADA, ADA)

    async def slow(_: UserSignedUp) -> None:
        await asyncio.sleep(0.5)

    service = make_service()
    service.subscribe(UserSignedUp, idempotent=Idempotency(key="user_id"))(slow)

    async def main() -> QueueHistograms:
        consumer = make_consumer(service, transport, claims=Claims(MemoryStore()))
        consumer.start()
        await asyncio.sleep(1)
        await drain(consumer)
        assert consumer.counters.histograms is not None
        consumer.counters.histograms.fold()
        return consumer.counters.histograms

    (calls,) = run_virtually(main()).handlers.values()

    assert {name: one.count for name, one in calls.items() if one.count} == {"handled": 1, "deferred": 1}


def test_a_dead_letter_is_counted_by_its_reason() -> None:
    assert handle_one(service_of(reject), body_of(ADA, 1)).dead_letters == {"rejected": 1}
    exhausted = service_of(fail, retry=RetryPolicy(attempts=1))
    assert handle_one(exhausted, body_of(ADA, 1)).dead_letters == {"retries-exhausted": 1}


def test_unknown_types_and_unreadable_messages_share_a_label() -> None:
    for body in (body_of(UserLeft(name="Ada"), 9), "not json"):
        histograms = handle_one(service_of(succeed), body, sent_seconds=9)

        assert list(histograms.types) == [TYPE]
        assert isinstance(histograms.other, EventTimes)
        assert histograms.other.queue_time.count == 1
        assert histograms.types[TYPE].queue_time.count == 0


def test_metrics_that_are_turned_off_record_nothing() -> None:
    transport = FakeTransport()

    async def main() -> None:
        consumer = make_consumer(service_of(succeed), transport, metrics=False)
        consumer.start()
        transport.put(ADA)
        await asyncio.sleep(1)
        await drain(consumer)
        assert consumer.counters.handled == 1
        assert consumer.counters.histograms is None

    run_virtually(main())
