"""Limits on receiving and on handlers: rates, concurrency, pauses and circuit breakers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import Batch, CircuitBreaker, ConfigError, Queue, Reject, Retry, RetryPolicy, Service
from smartpipe.consumer.breaker import Circuit
from smartpipe.consumer.handler_limits import HandlerLimit, TokenBucket
from smartpipe.consumer.handlers import slots_for
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING
from tests.support.consumers import consuming
from tests.support.events import ADA, OrderPlaced, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from smartpipe import Event


def leavers(count: int) -> list[UserLeft]:
    return [UserLeft(name=str(number)) for number in range(count)]


async def handle(_: Event) -> None: ...


async def test_a_rate_spreads_receives_and_keeps_messages_in_the_queue() -> None:
    service, moments = Service("mailer"), list[float]()

    @service.subscribe(UserLeft, rate_per_second=5)
    async def send(event: UserLeft) -> None:
        moments.append(asyncio.get_running_loop().time())

    async with MemoryBroker(service) as broker:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*map(broker.publish, leavers(50)))
        most_in_flight = 0
        while len(moments) < 50:
            await asyncio.sleep(0.05)
            most_in_flight = max(most_in_flight, broker.transport.queue("mailer").depth.in_flight)

    assert 8.5 <= moments[-1] - started <= 11  # 50 at 5 a second, and the first five immediately
    for start in range(40):  # no second has more than a full bucket and its refill
        assert moments[start + 10] - moments[start] >= 0.99
    assert most_in_flight <= 5


def test_an_idle_queue_with_a_rate_has_no_more_receive_calls_than_others() -> None:
    service, transport = Service("mailer"), FakeTransport()
    service.subscribe(UserLeft, rate_per_second=0.5)(handle)

    async def main() -> None:
        async with consuming(service, transport):
            await asyncio.sleep(600)

    run_virtually(main())

    assert len(transport.asked) <= 31


def test_tokens_that_no_message_came_for_are_returned() -> None:
    now = 0.0
    bucket = TokenBucket(10, lambda: now)

    assert bucket.admit(10) == 10
    assert bucket.admit(1) == 0
    bucket.end_call(10, 6)
    assert bucket.admit(10) == 4
    assert bucket.seconds_until_open() == pytest.approx(0.2)
    now = 0.2
    assert bucket.admit(10) == 2


def test_an_open_receive_call_counts_against_the_bucket() -> None:
    now = 0.0
    bucket = TokenBucket(5, lambda: now)
    assert bucket.admit(10) == 5

    now = 20.0  # the receive call waited this long for its five messages
    bucket.end_call(5, 5)

    assert bucket.admit(10) == 0


@pytest.mark.parametrize(("rate", "tokens"), [(0.5, 1), (5, 1), (20, 4), (50, 10), (100, 10)])
def test_a_receive_call_waits_for_the_tokens_of_a_fifth_of_a_second(rate: float, tokens: int) -> None:
    now = 0.0
    bucket = TokenBucket(rate, lambda: now)
    assert bucket.admit(1_000) == max(1, int(rate))
    bucket.end_call(max(1, int(rate)), max(1, int(rate)))

    assert bucket.seconds_until_open() == pytest.approx(tokens / rate)
    now = tokens / rate * 0.99
    assert bucket.admit(10) == 0
    assert bucket.seconds_until_open() == pytest.approx(tokens / rate * 0.01)
    now = tokens / rate - 1e-9  # a timer may fire early by the resolution of the clock
    assert bucket.admit(1_000) == tokens
    bucket.end_call(tokens, tokens)
    now = 1_000.0
    assert bucket.admit(0) == 0
    assert bucket.seconds_until_open() == 0


async def test_a_handlers_concurrency_does_not_limit_other_handlers() -> None:
    service = Service("mailer")
    running = {"slow": 0, "free": 0}
    most = {"slow": 0, "free": 0}

    async def run(name: str) -> None:
        running[name] += 1
        most[name] = max(most[name], running[name])
        await asyncio.sleep(1)
        running[name] -= 1

    @service.subscribe(UserLeft, concurrency=2)
    async def slow(event: UserLeft) -> None:
        await run("slow")

    @service.subscribe(OrderPlaced)
    async def free(event: OrderPlaced) -> None:
        await run("free")

    async with MemoryBroker(service, concurrency=20) as broker:
        orders = [OrderPlaced(order_id=str(number)) for number in range(20)]
        await asyncio.gather(*map(broker.publish, [*leavers(6), *orders]))
        await broker.drain()

    assert most["slow"] == 2
    assert most["free"] > 2


def test_a_queue_has_the_slots_that_its_handlers_ask_for() -> None:
    service = Service("mailer")
    service.subscribe(UserLeft, concurrency=3)(handle)

    assert slots_for(service.handlers, 10) == 3
    service.subscribe(OrderPlaced, concurrency=40)(handle)
    assert slots_for(service.handlers, 10) == 43
    service.subscribe(UserSignedUp)(handle)
    assert slots_for(service.handlers, 10) == 43
    assert slots_for(service.handlers, 100) == 100


def test_handlers_of_one_event_share_their_slots_and_a_batch_has_a_slot_for_each_item() -> None:
    service = Service("mailer")

    async def handle_many(_: list[UserLeft]) -> None: ...

    service.subscribe(UserLeft, concurrency=7)(handle)
    service.subscribe(UserLeft, concurrency=2, batch=Batch(5))(handle_many)
    assert slots_for(service.handlers, 100) == 10
    service.subscribe(OrderPlaced, concurrency=4)(handle)
    assert slots_for(service.handlers, 100) == 14
    assert slots_for([], 100) == 0

    batching = Service("batching")
    batching.subscribe(UserLeft, batch=Batch(50))(handle_many)
    assert slots_for(batching.handlers, 10) == 50


def test_fault_42_the_number_of_messages_held_never_exceeds_the_slots() -> None:
    """An hour of backlog and slow handlers."""
    service, transport = Service("mailer"), FakeTransport()

    @service.subscribe(UserLeft, concurrency=4)
    async def slow(event: UserLeft) -> None:
        await asyncio.sleep(20)

    most = 0

    async def main() -> int:
        nonlocal most
        async with consuming(service, transport, concurrency=7) as consumer:
            for _ in range(3_600):
                while len(transport._inbox) < 50:
                    transport.put(ADA if len(transport._inbox) % 2 else UserLeft(name="x"))
                await asyncio.sleep(1)
                unsettled = len(consumer.leases._leases) - consumer.slots.unsettled
                most = max(most, consumer.in_flight, unsettled)
            transport._inbox.clear()
        return consumer.counters.received

    assert run_virtually(main()) > 500
    assert most == 4


def outage_service(breaker: CircuitBreaker, *, attempts: int = 3) -> tuple[Service, dict[str, bool], list[float]]:
    service = Service("mailer", retry=RetryPolicy(attempts=attempts, wait=wait_fixed(2)))
    world, calls = {"down": True}, list[float]()

    @service.subscribe(UserLeft, breaker=breaker)
    async def send(event: UserLeft) -> None:
        calls.append(asyncio.get_running_loop().time())
        if world["down"]:
            raise ConnectionError("down")

    return service, world, calls


async def test_an_outage_does_not_move_the_queues_messages_to_the_dead_letter_queue() -> None:
    service, world, calls = outage_service(CircuitBreaker(failures=5, reset_seconds=30))

    async with MemoryBroker(service, concurrency=3) as broker:
        await asyncio.gather(*map(broker.publish, leavers(40)))
        await asyncio.sleep(7_200)
        assert broker.dead_lettered() == []
        in_the_outage = len(calls)
        world["down"] = False
        await broker.drain()

        assert len(broker.handled(UserLeft)) == 40
        broker.assert_nothing_dead_lettered()
    assert in_the_outage < 40  # only occasional probes in two hours


async def test_a_single_message_survives_an_outage_of_hours_too() -> None:
    service, world, calls = outage_service(CircuitBreaker(failures=2, reset_seconds=30))

    async with MemoryBroker(service) as broker:
        await broker.publish(UserLeft(name="only"))
        await asyncio.sleep(4 * 3_600)
        world["down"] = False
        await broker.drain()

        assert broker.handled(UserLeft) == [UserLeft(name="only")]
    gaps = [later - earlier for earlier, later in pairwise(calls)]
    assert max(gaps[:-1]) < 325  # the longest reset, and a receive call


async def test_a_circuit_opens_probes_closes_and_logs_each_change(caplog: pytest.LogCaptureFixture) -> None:
    service, world, calls = outage_service(CircuitBreaker(failures=3, reset_seconds=10))

    with caplog.at_level("INFO", "smartpipe.breaker"):
        async with MemoryBroker(service, concurrency=1) as broker:
            await asyncio.gather(*map(broker.publish, leavers(5)))
            await asyncio.sleep(15)
            assert len(calls) == 4  # three failures, one probe
            world["down"] = False
            await broker.drain()

    reported = [message.partition(": ")[2] for message in caplog.messages if "opened" in message]
    assert reported == [
        "3 consecutive failures; receiving nothing from its queue for 10 s",
        "its probe failed; receiving nothing from its queue for 20 s",
    ]
    assert caplog.messages[-1].endswith("closed: its probe succeeded, receiving from its queue again")


async def test_a_circuit_opens_at_consecutive_failures_only_and_lets_one_probe_through_at_a_time() -> None:
    timers, woken = list[tuple[float, Callable[[], None]]](), list[str]()

    def call_later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        timers.append((seconds, call))
        return asyncio.TimerHandle(seconds, call, (), asyncio.get_running_loop())

    circuit = Circuit("h", CircuitBreaker(failures=2, reset_seconds=10, max_reset_seconds=25), call_later=call_later)
    circuit.on_open(lambda: woken.append("woken"))
    circuit.close()
    for _ in range(3):
        circuit.record_failure()
        circuit.record_success()
    assert (circuit.closed, circuit.passive, circuit.admit(7), woken) == (True, True, 7, [])

    circuit.record_failure()
    circuit.record_failure()
    circuit.record_failure()  # of a call that had begun before
    assert (circuit.closed, circuit.passive, circuit.admit(7), len(timers)) == (False, False, 0, 1)
    for seconds in (10, 20, 25, 25):
        assert timers[-1][0] == circuit.reset_seconds == seconds
        assert circuit.admit(7) == 0
        timers[-1][1]()
        assert (circuit.state, circuit.closed, circuit.passive) == ("half-open", False, False)
        assert circuit.admit(0) == 0
        assert circuit.admit(7) == 1
        assert circuit.admit(7) == 0
        circuit.end_call(0, 0)  # of another call, which another gate had held back
        circuit.end_call(1, 1)
        circuit.end_messages(0)
        assert circuit.admit(7) == 0
        circuit.end_call(1, 0)
        assert circuit.admit(7) == 1
        circuit.end_messages(1)
        assert circuit.admit(7) == 1
        circuit.record_failure()
    timers[-1][1]()
    assert circuit.admit(7) == 1  # the last probe, which failed, does not count any more
    assert len(woken) == 5
    circuit.record_success()
    assert (circuit.closed, circuit.admit(7), circuit.reset_seconds, len(woken)) == (True, 7, 10, 6)
    circuit.record_failure()
    assert circuit.closed
    circuit.record_failure()
    assert timers[-1][0] == 10


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        ({}, 300),
        ({"reset_seconds": 600}, 600),
        ({"max_reset_seconds": 40}, 40),
        ({"max_reset_seconds": 43_200}, 43_200),
    ],
)
def test_probes_of_an_open_circuit_come_after_five_minutes_at_most_unless_told(
    options: dict[str, float], longest: float
) -> None:
    assert CircuitBreaker(**options).longest_reset_seconds == longest  # type: ignore[arg-type]


def test_an_open_circuit_announces_no_probe_after_its_consumer_has_drained(caplog: pytest.LogCaptureFixture) -> None:
    service, _, calls = outage_service(CircuitBreaker(failures=1, reset_seconds=60))
    transport = FakeTransport()

    async def main() -> None:
        async with consuming(service, transport, poll_seconds=1):
            transport.put(UserLeft(name="one"))
            await asyncio.sleep(5)
        await asyncio.sleep(3_600)

    with caplog.at_level("INFO", "smartpipe.breaker"):
        run_virtually(main())

    assert len(calls) == 1
    [opened] = [message for message in caplog.messages if message.startswith("Circuit")]
    assert "opened: 1 consecutive failures" in opened


async def test_reject_and_retry_do_not_open_a_circuit() -> None:
    service = Service("mailer", retry=RetryPolicy(attempts=3, wait=wait_fixed(1), never_on=(KeyError,)))
    errors = [Reject("bad"), Retry("not yet"), KeyError("never")]

    @service.subscribe(UserLeft, breaker=CircuitBreaker(failures=1))
    async def send(event: UserLeft) -> None:
        raise errors[int(event.name) % 3]

    async with MemoryBroker(service) as broker:
        await asyncio.gather(*map(broker.publish, leavers(12)))
        await broker.drain(limit_seconds=60)

        assert len(broker.dead_lettered()) == 12


async def test_bad_messages_do_not_keep_a_circuit_from_probing() -> None:
    service, world, _ = outage_service(CircuitBreaker(failures=1, reset_seconds=10))

    async with MemoryBroker(service, concurrency=1) as broker:
        await broker.publish(UserLeft(name="good"))
        await asyncio.sleep(1)
        for _ in range(3):
            await broker.send("mailer", "no event")
        world["down"] = False
        await broker.drain(limit_seconds=120)

        assert [dead.kind for dead in broker.dead_lettered()] == ["not-json"] * 3
        assert broker.handled(UserLeft) == [UserLeft(name="good")]


def test_a_queue_with_a_breaker_has_a_larger_receive_limit() -> None:
    service, _, _ = outage_service(CircuitBreaker())

    [_, queue] = derive([service], NAMING).queues.values()

    assert queue["RedrivePolicy"]["maxReceiveCount"] == 100


@pytest.mark.parametrize(
    "options",
    [
        {"failures": 0},
        {"reset_seconds": 0},
        {"reset_seconds": 60, "max_reset_seconds": 30},
        {"max_reset_seconds": 43_201},
        {"reset_seconds": 43_201},
    ],
)
def test_a_breaker_out_of_range_is_rejected(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="CircuitBreaker"):
        CircuitBreaker(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, "concurrency=0 must be 1 to 10,000"),
        ({"concurrency": 10_001}, "concurrency=10001 must be 1 to 10,000"),
        ({"concurrency": "2"}, "concurrency='2' is not a number"),
        ({"breaker": 5}, r"breaker=5 is not of type CircuitBreaker: write breaker=CircuitBreaker\(...\)"),
        ({"retry": 5}, r"retry=5 is not of type RetryPolicy: write retry=RetryPolicy\(...\)"),
        ({"timeout_seconds": 0}, "timeout_seconds=0 must be above 0 and at most 43,200"),
        ({"timeout_seconds": 43_201}, "timeout_seconds=43201 must be above 0 and at most 43,200"),
        ({"rate_per_second": float("inf")}, "rate_per_second=inf must be above 0"),
        ({"rate_per_second": 0}, "rate_per_second=0 must be above 0"),
        ({"rate_per_second": float("nan")}, "rate_per_second=nan must be above 0"),
    ],
)
def test_an_option_out_of_range_is_rejected_and_the_handler_named(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=f"handler tests.unit.test_handler_limits.handle: {error}"):
        Service("mailer", queue=Queue("mailer")).subscribe(UserLeft, **options)(handle)


@pytest.mark.parametrize("seconds", [0.001, 43_200])
@pytest.mark.parametrize("concurrency", [1, 10_000])
@pytest.mark.parametrize("rate", [0.001, 1e9])
def test_an_option_at_its_limit_is_accepted(seconds: float, concurrency: int, rate: float) -> None:
    Service("mailer").subscribe(UserLeft, timeout_seconds=seconds, concurrency=concurrency, rate_per_second=rate)(
        handle
    )


def test_a_drain_returns_messages_that_wait_for_their_handlers_limit() -> None:
    service, transport, ran = Service("mailer"), FakeTransport(), list[str]()

    @service.subscribe(UserLeft, concurrency=1)
    async def slow(event: UserLeft) -> None:
        ran.append(event.name)
        await asyncio.sleep(10)

    @service.subscribe(OrderPlaced)
    async def other(event: OrderPlaced) -> None: ...

    async def main() -> dict[str, int]:
        async with consuming(service, transport, poll_seconds=1) as consumer:
            transport.put(*leavers(3))
            await asyncio.sleep(3)
        return consumer.counters.as_dict()

    assert run_virtually(main()) == {"received": 3, "handled": 1, "released": 2}
    assert ran == ["0"]
    released = {
        entries[0]: time for verb, _, pairs, time in transport.calls for entries in pairs if verb == "change_visibility"
    }
    assert released["r2"] == released["r3"] < 10  # and not when the running handler ended


async def test_a_handler_limit_serves_in_order_and_forgets_cancelled_waiters() -> None:
    limit, order = HandlerLimit(1), list[str]()

    async def visit(name: str) -> None:
        assert await limit.acquire(name, stop_when_closed=False)
        order.append(name)
        await asyncio.sleep(0)
        limit.release(name)

    assert await limit.acquire("first", stop_when_closed=True)
    visits = [asyncio.create_task(visit(name)) for name in "abc"]
    await asyncio.sleep(0)
    visits[0].cancel()
    limit.release("first")
    await asyncio.wait(visits)

    assert order == ["b", "c"]
    assert await limit.acquire("last", stop_when_closed=True)


async def test_a_turn_that_comes_after_the_cancellation_goes_to_the_next_holder() -> None:
    limit = HandlerLimit(1)
    assert await limit.acquire("first", stop_when_closed=True)
    waiting = asyncio.create_task(limit.acquire("second", stop_when_closed=True))
    await asyncio.sleep(0)
    limit.release("first")
    waiting.cancel()
    await asyncio.wait([waiting])

    assert await limit.acquire("third", stop_when_closed=True)


async def test_a_closed_handler_limit_ends_the_wait_of_holders_that_asked_for_it() -> None:
    limit = HandlerLimit(1)
    assert await limit.acquire("first", stop_when_closed=True)
    leaving, staying = (asyncio.create_task(limit.acquire(may, stop_when_closed=may)) for may in (True, False))
    await asyncio.sleep(0)
    limit.close()

    assert not await leaving
    assert not await limit.acquire("late", stop_when_closed=True)
    limit.release("first")
    assert await staying


async def test_a_second_release_by_one_holder_does_nothing() -> None:
    limit = HandlerLimit(1)
    assert await limit.acquire("first", stop_when_closed=True)
    limit.release("first")
    assert await limit.acquire("second", stop_when_closed=True)
    limit.release("first")
    limit.close()

    assert not await limit.acquire("third", stop_when_closed=True)
