"""Limits, rates and circuits after their first use: the second burst, the second probe, and the end of a long rest."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe import CircuitBreaker
from smartpipe.consumer.breaker import Circuit
from smartpipe.consumer.handler_limits import HandlerLimit, TokenBucket
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_a_holder_that_would_stop_when_closed_waits_while_the_limit_is_open() -> None:
    limit = HandlerLimit(1)
    assert await limit.acquire("first", stop_when_closed=True)
    second = asyncio.create_task(limit.acquire("second", stop_when_closed=True))
    await asyncio.sleep(0)
    assert not second.done()

    limit.release("first")
    assert await second


async def test_a_turn_that_is_passed_on_does_not_make_room_for_another_holder() -> None:
    limit = HandlerLimit(1)
    assert await limit.acquire("first", stop_when_closed=False)
    waiting = [asyncio.create_task(limit.acquire(name, stop_when_closed=False)) for name in ("second", "third")]
    await asyncio.sleep(0)
    for released, done in (("first", [True, False]), ("second", [True, True])):
        limit.release(released)
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == done
        late = asyncio.create_task(limit.acquire("late", stop_when_closed=True))
        await asyncio.sleep(0)
        assert not late.done()
        late.cancel()
        await asyncio.wait([late])


@pytest.mark.parametrize("size", [1, 3])
async def test_a_handler_limit_never_has_more_holders_than_its_size_and_loses_no_turn(size: int) -> None:
    random, limit = Random(size), HandlerLimit(size)
    holders: set[int] = set()
    most = 0

    async def visit(name: int) -> None:
        nonlocal most
        if not await limit.acquire(name, stop_when_closed=False):
            return
        holders.add(name)
        most = max(most, len(holders))
        try:
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
        finally:
            holders.discard(name)
            limit.release(name)
            limit.release(name)

    for burst in range(20):
        visits = [asyncio.create_task(visit(100 * burst + number)) for number in range(30)]
        for task in random.sample(visits, 10):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(visits)

    assert most == size
    turns = [asyncio.create_task(limit.acquire(name, stop_when_closed=True)) for name in range(size + 1)]
    await asyncio.sleep(0)
    assert [turn.done() for turn in turns] == [True] * size + [False]
    turns[-1].cancel()


def test_messages_that_wait_for_their_handlers_limit_are_not_returned_to_the_queue() -> None:
    service, transport, at_once = make_service(), FakeTransport(), list[int]()
    running = 0

    @service.subscribe(UserSignedUp, concurrency=2)
    async def work(_: UserSignedUp) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(2)
        running -= 1

    async def main() -> dict[str, int]:
        async with consuming(service, transport) as consumer:
            for _ in range(3):  # bursts, with rests between them
                transport.put(*[ADA] * 8)
                await asyncio.sleep(60)
        return consumer.counters.as_dict()

    assert run_virtually(main()) == {"received": 24, "handled": 24}
    assert max(at_once) == 2
    assert transport.entries("change_visibility") == []


class Clock:
    """A clock that a test moves, with timers like those of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers.append((self.now + seconds, call))
        return cast("asyncio.TimerHandle", None)

    def move(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, call in due:
            call()


def test_a_bucket_admits_after_every_long_rest_no_more_than_one_seconds_messages() -> None:
    clock = Clock()
    bucket = TokenBucket(5, clock)
    for _ in range(3):
        admitted = [bucket.admit(10), bucket.admit(10)]
        assert admitted == [5, 0]
        bucket.end_call(5, 5)
        clock.move(3_600)


@pytest.mark.parametrize("rate", [0.5, 3.0, 40.0])
def test_a_bucket_admits_over_any_time_its_rate_and_one_seconds_messages_at_most(rate: float) -> None:
    random = Random(1)
    for _ in range(300):
        clock = Clock()
        bucket, received = TokenBucket(rate, clock), 0
        open_calls: list[int] = []
        for _ in range(10):
            open_calls.append(bucket.admit(random.randrange(1, 11)))
            clock.move(random.choice([0.0, 0.01, 0.2, 1.0, 2.0]))
            if random.random() < 0.5:
                admitted = open_calls.pop(random.randrange(len(open_calls)))
                came = random.randrange(admitted + 1)
                received += came
                bucket.end_call(admitted, came)
            assert received + sum(open_calls) <= rate * clock.now + max(1.0, rate) + 1e-3


@pytest.mark.parametrize("rate", [0.5, 2.5, 3.0, 100.0])
def test_a_bucket_opens_exactly_when_it_says_in_every_round(rate: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    for _ in range(5):
        while admitted := bucket.admit(7):
            bucket.end_call(admitted, admitted)
        wait = bucket.seconds_until_open()
        assert wait > 0
        clock.move(wait * 0.99)
        assert bucket.admit(10) == 0
        clock.move(wait * 0.01)
        admitted = bucket.admit(10)
        assert admitted >= 1
        bucket.end_call(admitted, admitted)


def test_a_bucket_gets_back_the_tokens_of_calls_that_brought_nothing_in_every_round() -> None:
    bucket = TokenBucket(5, Clock())
    for _ in range(10):
        assert bucket.admit(10) == 5
        bucket.end_call(5, 0)


class CircuitUnderTest:
    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.woken = 0
        self.circuit = Circuit("handler", CircuitBreaker(**options), call_later=self.clock.call_later)
        self.circuit.on_open(self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.circuit.record_failure()

    def admit_probe(self) -> None:
        """Check that one message, and only one, is admitted."""
        assert self.circuit.admit(10) == 1
        assert [self.circuit.admit(10) for _ in range(3)] == [0, 0, 0]


def test_a_half_open_circuit_admits_one_message_at_a_time_in_every_round() -> None:
    one = CircuitUnderTest(failures=2, reset_seconds=10, max_reset_seconds=35)
    assert one.circuit.admit(10) == 10
    one.fail(2)
    for reset_seconds in (10, 20, 35, 35):
        assert one.circuit.admit(10) == 0
        one.clock.move(reset_seconds - 1)
        assert (one.circuit.state, one.circuit.admit(10)) == ("open", 0)
        one.clock.move(1)
        assert one.circuit.state == "half-open"
        one.admit_probe()
        one.circuit.end_call(1, 0)  # no message came
        one.admit_probe()
        one.circuit.end_call(1, 1)
        assert one.circuit.admit(10) == 0  # while it is being handled
        one.circuit.end_messages(1)  # it was for another handler
        one.admit_probe()
        one.fail()
        one.circuit.end_messages(1)
    assert one.woken == 4


def test_a_circuit_that_has_closed_opens_again_only_after_all_its_failures_and_at_its_first_wait() -> None:
    one = CircuitUnderTest(failures=3, reset_seconds=10)
    for _ in range(3):
        one.fail(2)
        one.circuit.record_success()
        one.fail(2)
        assert one.circuit.state == "closed"
        one.fail()
        assert one.circuit.reset_seconds == 10
        one.clock.move(10)
        one.fail()
        assert one.circuit.reset_seconds == 20
        one.clock.move(20)
        woken = one.woken
        one.circuit.record_success()
        assert (one.circuit.state, one.circuit.admit(10), one.woken) == ("closed", 10, woken + 1)


def test_a_circuit_that_opens_again_admits_its_next_probe_even_if_the_last_one_was_never_settled() -> None:
    one = CircuitUnderTest(failures=1, reset_seconds=10)
    one.fail()
    for reset_seconds in (10, 20, 40):
        one.clock.move(reset_seconds)
        one.admit_probe()
        one.fail()  # its message is not settled yet when the circuit is half-open again


def test_a_message_that_began_before_the_circuit_opened_does_not_close_it() -> None:
    one = CircuitUnderTest(failures=1, reset_seconds=10)
    one.fail()
    one.circuit.record_success()
    assert (one.circuit.state, one.circuit.admit(10)) == ("open", 0)
    one.fail(5)
    assert one.circuit.reset_seconds == 10
    one.clock.move(10)
    assert one.circuit.state == "half-open"
