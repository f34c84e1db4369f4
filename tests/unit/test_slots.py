from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import pytest

from smartpipe.errors import TransportError
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe import Service
    from smartpipe.consumer.consumer import Consumer


def observe(service: Service, transport: FakeTransport, look: Callable[[Consumer], object], **when: int) -> object:
    """Return the value of *look* after ``seconds`` of consuming with ``concurrency``."""

    async def main() -> object:
        async with consuming(service, transport, concurrency=when["concurrency"]) as consumer:
            await asyncio.sleep(when["seconds"])
            return look(consumer)

    return run_virtually(main())


def service_that_takes(seconds: float) -> Service:
    service = make_service(timeout_seconds=None)

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        await asyncio.sleep(0 if event.name == "quick" else seconds)

    return service


def test_an_idle_consumer_has_one_open_receive_call() -> None:
    transport = FakeTransport()

    seen = observe(service_that_takes(1), transport, lambda c: c.open_calls, seconds=610, concurrency=100)

    assert seen == 1
    assert set(transport.asked) == {10}
    assert len(transport.asked) <= 32  # one receive call in 20 s


def test_no_receive_call_asks_for_more_messages_than_there_are_free_slots() -> None:
    transport = FakeTransport()
    transport.put(*[ADA] * 50)

    seen = observe(service_that_takes(1_000), transport, lambda c: c.in_flight, seconds=10, concurrency=14)

    assert seen == 14
    assert transport.asked == [10, 4]


def test_without_free_slots_there_is_no_receive_call_and_the_consumer_counts_as_alive() -> None:
    transport = FakeTransport()
    transport.put(*[ADA] * 3)

    def look(consumer: Consumer) -> tuple[int, float]:
        return consumer.open_calls, consumer.seconds_since_success()

    assert observe(service_that_takes(5_000), transport, look, seconds=2_000, concurrency=3) == (0, 0)


def test_several_receive_calls_are_open_while_they_come_back_full() -> None:
    transport = FakeTransport()
    transport.script["receive"].extend([0.05] * 1_000)
    transport.put(*[ADA] * 600)
    most = 0

    async def main() -> None:
        nonlocal most
        async with consuming(service_that_takes(0.001), transport, concurrency=100, prefetch=False):
            for _ in range(100):
                await asyncio.sleep(0.01)
                most = max(most, transport.open_receives)
            await asyncio.sleep(60)
            assert transport.open_receives == 1

    run_virtually(main())

    assert 3 <= most <= 10


def test_fault_21_one_slow_message_does_not_block_the_slots_of_the_others() -> None:
    transport = FakeTransport()
    quick = UserSignedUp(user_id=ADA.user_id, name="quick")
    transport.put(ADA, *[quick] * 99)

    counts = observe(service_that_takes(1_000), transport, lambda c: c.counters.handled, seconds=5, concurrency=10)

    assert counts == 99


@pytest.mark.parametrize("error", [UNREACHABLE, ValueError("truncated JSON"), OSError("reset"), TimeoutError()])
def test_fault_05_receiving_survives_any_error_backs_off_and_recovers(error: Exception) -> None:
    transport = FakeTransport()
    transport.script["receive"].extend([error] * 20)
    transport.put(ADA)

    service, handled = make_service(), asyncio.Event()

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        handled.set()

    async def main() -> tuple[float, int]:
        async with consuming(service, transport):
            await handled.wait()
            return asyncio.get_running_loop().time(), len(transport.asked)

    seconds, calls = run_virtually(main())

    assert calls == 21
    assert 20 < seconds < 20 * 30


def test_fault_05_a_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    denied = TransportError("AccessDenied", "needs sqs:ReceiveMessage", retryable=False)
    transport.script["receive"].extend([UNREACHABLE] * 5 + [denied] * 5)

    with caplog.at_level(logging.INFO, "smartpipe.poller"):
        observe(service_that_takes(0), transport, lambda _: None, seconds=600, concurrency=10)

    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "could not connect" in messages[0]
    assert "needs sqs:ReceiveMessage" in messages[1]
    assert "again after 10 failed calls" in messages[2]


def test_fault_05_the_time_since_the_last_success_grows_while_receive_calls_fail() -> None:
    transport = FakeTransport()
    transport.script["receive"].extend([UNREACHABLE] * 10_000)

    def look(consumer: Consumer) -> tuple[bool, bool]:
        return consumer.failing, consumer.seconds_since_success() > 590

    assert observe(service_that_takes(0), transport, look, seconds=600, concurrency=10) == (True, True)


def test_fault_16_a_missing_queue_is_retried_slowly_and_found_again() -> None:
    transport = FakeTransport()
    gone = TransportError("QueueDoesNotExist", "run `smartpipe topology apply`", retryable=False)
    transport.script["receive"].extend([gone] * 1_000)

    seen = observe(service_that_takes(0), transport, lambda c: c.failing, seconds=3_600, concurrency=10)

    assert seen is True
    assert len(transport.asked) < 3_600 / 5  # waits are 15 s on average once they have reached the maximum


@pytest.mark.parametrize("concurrency", [2, 10, 25])
def test_with_a_backlog_a_receive_call_brings_more_than_one_message(concurrency: int) -> None:
    """Otherwise, handlers that end one after the other would make a receive call for each slot."""
    service, transport, chance = make_service(), FakeTransport(), random.Random(0)
    transport.put(*[ADA] * 1_000)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(chance.uniform(0.0, 0.1))

    async def main() -> float:
        async with consuming(service, transport, concurrency=concurrency) as consumer:
            while consumer.counters.handled < 1_000:  # noqa: ASYNC110 - counters have no event
                await asyncio.sleep(0.01)
            return asyncio.get_running_loop().time()

    seconds = run_virtually(main())

    assert 1_000 / len(transport.asked) >= {2: 0.9, 10: 2.5, 25: 4.0}[concurrency]
    assert seconds * concurrency <= 1_000 * 0.05 * 1.2  # the share of the slots' time that lingering costs
