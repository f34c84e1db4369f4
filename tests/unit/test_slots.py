from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.consumer.slots import LINGER_SECONDS, MAX_CALLS, MAX_CALLS_AHEAD, MAX_UNSETTLED, Slots
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


async def ask(slots: Slots, seconds: float = 0.0) -> int | None:
    """Return what ``acquire`` returns within *seconds*, or None if it still waits."""
    asking = asyncio.create_task(slots.acquire())
    await asyncio.sleep(seconds)
    if asking.done():
        return asking.result()
    asking.cancel()
    await asyncio.wait([asking])
    return None


def answer(slots: Slots, asked: int, received: int) -> None:
    """End a receive call, and handle its messages."""
    slots.return_unused(asked, received)
    slots.end_call()
    for _ in range(received):
        slots.release()


async def count_calls(slots: Slots) -> int:
    """End all receive calls; return how many are made afterwards."""
    for _ in range(slots.open_calls):
        slots.end_call()
    while await ask(slots, 2 * LINGER_SECONDS):
        pass
    return slots.open_calls


async def count_free(slots: Slots) -> int:
    """Return the number of free slots, up to 10."""
    asked = await ask(slots, 2 * LINGER_SECONDS)
    if asked:
        slots.return_unused(asked, 0)
        slots.end_call()
    return asked or 0


class FakeGate:
    """A gate that admits *limit* messages in all, and asks to be asked again after *seconds*."""

    def __init__(self, limit: int, *, passive: bool = False, seconds: float | None = None) -> None:
        self.limit, self.passive, self.seconds = limit, passive, seconds
        self.reserved = self.asked = self.handled = 0
        self.wake: Callable[[], None] | None = None

    def admit(self, wanted: int) -> int:
        self.asked += 1
        admitted = min(wanted, self.limit - self.reserved)
        self.reserved += admitted
        return admitted

    def end_call(self, admitted: int, received: int) -> None:
        self.reserved -= admitted - received

    def end_messages(self, count: int) -> None:
        self.handled += count

    def seconds_until_open(self) -> float | None:
        return self.seconds

    def on_open(self, wake: Callable[[], None]) -> None:
        self.wake = wake


def test_each_full_response_adds_a_call_a_partial_one_takes_one_away_and_an_empty_one_all_but_one() -> None:
    async def main() -> None:
        slots = Slots(10_000)
        assert await count_calls(slots) == 1
        for received, calls in (
            *((10, number) for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10)),
            *((9, 9), (1, 8), (0, 1), (4, 1), (0, 1), (10, 2), (10, 3), (0, 1)),
        ):
            answer(slots, 10, received)
            assert await count_calls(slots) == calls

    run_virtually(main())


@pytest.mark.parametrize(
    ("ahead", "calls"), [(90, MAX_CALLS), (91, 11), (150, 16), (1_270, 128), (2_000, MAX_CALLS_AHEAD)]
)
def test_many_messages_ahead_allow_more_calls(ahead: int, calls: int) -> None:
    async def main() -> None:
        slots = Slots(10)
        slots.receive_ahead(ahead)
        for _ in range(200):
            slots.return_unused(10, 10)

        assert await count_calls(slots) == calls

    run_virtually(main())


@pytest.mark.parametrize("ahead", [0, 30])
def test_while_too_many_messages_are_unsettled_no_slot_becomes_free(ahead: int) -> None:
    async def main() -> None:
        slots = Slots(3)
        slots.receive_ahead(ahead)
        while await ask(slots, 2 * LINGER_SECONDS):
            slots.return_unused(1, 1)
            slots.end_call()
        slots.unsettled = MAX_UNSETTLED + ahead - 1
        slots.release()
        assert await count_free(slots) == 1
        slots.unsettled += 1
        slots.release()
        slots.release()
        assert await count_free(slots) == 1
        slots.unsettled += 1
        slots.record_settled(1)
        assert await count_free(slots) == 1
        slots.record_settled(1)
        assert await count_free(slots) == 3
        slots.record_settled(1)
        assert await count_free(slots) == 3
        assert slots.ended == 3

    run_virtually(main())


def test_with_a_backlog_a_call_waits_a_moment_for_five_slots_each_time_anew() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        slots = Slots(10)
        assert await slots.acquire() == 10
        slots.return_unused(10, 10)
        slots.end_call()

        slots.release()
        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0.004)
        for _ in range(3):
            slots.release()
            await asyncio.sleep(0.001)
        assert not asking.done()
        slots.release()
        assert await asking == 5
        assert loop.time() == pytest.approx(0.007)  # the fifth slot ended the wait

        for _ in range(2):
            slots.end_call()
            slots.release()
            began = loop.time()
            assert await slots.acquire() == 1
            assert loop.time() == pytest.approx(began + LINGER_SECONDS)

        slots.return_unused(10, 9)  # no backlog any more
        assert await ask(slots) is None
        slots.end_call()
        assert await ask(slots) == 1

    run_virtually(main())


def test_the_end_of_a_call_lets_the_next_one_begin() -> None:
    async def main() -> None:
        slots = Slots(100)
        assert await slots.acquire() == 10
        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(60)
        assert not asking.done()
        slots.return_unused(10, 3)
        slots.end_call()
        assert await asking == 10

    run_virtually(main())


def test_with_ten_messages_ahead_a_call_waits_for_ten_slots() -> None:
    async def main() -> list[int]:
        asked = []
        for ahead in (9, 10):
            slots = Slots(20)
            slots.receive_ahead(ahead)
            slots._wanted_calls = 9
            while await ask(slots, 2 * LINGER_SECONDS):
                pass
            for count in range(1, 11):
                slots.release()
                if await ask(slots):
                    asked.append(count)
                    break
        return asked

    assert run_virtually(main()) == [5, 10]


def test_a_call_asks_for_what_every_gate_admits_and_each_reserves_no_more() -> None:
    async def main() -> None:
        wide, narrow, passive = FakeGate(8), FakeGate(3), FakeGate(0, passive=True)
        slots = Slots(10, [wide, passive, narrow])

        assert await slots.acquire() == 3
        assert (wide.reserved, narrow.reserved, passive.asked) == (3, 3, 0)
        slots.return_unused(3, 2)
        slots.end_call()
        assert (wide.reserved, narrow.reserved, passive.reserved) == (2, 2, 0)
        slots.release()
        assert (wide.handled, narrow.handled, passive.handled) == (1, 1, 0)

        assert await ask(slots) == 1
        slots.end_call()
        behind = FakeGate(10)
        slots._gates = [wide, narrow, behind]
        assert await ask(slots) is None
        assert (wide.reserved, narrow.reserved, behind.asked) == (3, 3, 0)
        assert slots.open_calls == 0

    run_virtually(main())


def test_a_closed_gate_is_asked_again_at_the_time_it_named_last_or_when_it_opens() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        gate = FakeGate(0, seconds=5)
        slots = Slots(10, [gate])
        assert gate.wake is not None
        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(1)
        gate.seconds = 10
        gate.wake()
        await asyncio.sleep(8)
        assert gate.asked == 2  # the first time has passed, and does not count any more
        gate.limit = 4
        assert await asking == 4
        assert loop.time() == 11

        slots.end_call()
        gate.seconds = None
        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(600)
        assert (gate.asked, asking.done()) == (4, False)
        gate.limit = 5
        gate.wake()
        assert await asking == 1

    run_virtually(main())


def test_a_pause_and_a_close_hold_receive_calls_back_and_end_the_wait_for_one() -> None:
    async def main() -> None:
        slots = Slots(10)
        slots.pause()
        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(60)
        assert not asking.done()
        slots.resume()
        assert await asking == 10

        asking = asyncio.create_task(slots.acquire())
        await asyncio.sleep(60)
        slots.close()
        assert await asking == 0
        assert await ask(slots) == 0

    run_virtually(main())


@pytest.mark.parametrize("stop", ["gate", "pause", "close"])
def test_receive_calls_flow_until_a_gate_a_pause_or_a_close_stops_them(stop: str) -> None:
    async def main() -> None:
        gates = [FakeGate(0, passive=True), FakeGate(0, passive=True)]
        slots = Slots(10, gates)
        assert slots.flowing
        if stop == "gate":
            gates[0].passive = False
        else:
            getattr(slots, stop)()
        assert not slots.flowing

    run_virtually(main())


def test_closed_slots_leave_no_timer_behind() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        gate = FakeGate(0, seconds=500)
        for slots in (Slots(10, [gate]), Slots(10)):
            if slots._gates:
                asking = asyncio.create_task(slots.acquire())
            else:  # with a backlog, a call lingers
                assert await slots.acquire() == 10
                slots.return_unused(10, 10)
                slots.release()
                asking = asyncio.create_task(slots.acquire())
            await asyncio.sleep(0)
            assert [timer for timer in loop._scheduled if not timer.cancelled()]
            slots.close()
            assert await asking == 0
            assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    run_virtually(main())
