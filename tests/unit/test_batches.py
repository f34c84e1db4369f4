from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import Batch, BatchDelivery, CircuitBreaker, ConfigError, Delivery, Queue, Reject, RetryPolicy, Service
from smartpipe.testing import MemoryBroker
from tests.support.consumers import consuming, drain, make_consumer
from tests.support.events import ADA, Paid, UserLeft, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

THREE = RetryPolicy(attempts=3, wait=wait_fixed(5))


def leavers(count: int, start: int = 0) -> list[UserLeft]:
    return [UserLeft(name=str(number)) for number in range(start, start + count)]


async def publish(broker: MemoryBroker, events: list[UserLeft]) -> None:
    await asyncio.gather(*map(broker.publish, events))


async def test_a_batch_collects_the_messages_of_several_receive_calls_until_it_is_full() -> None:
    service, sizes = Service("index"), list[int]()

    @service.subscribe(UserLeft, batch=Batch(size=25, linger_seconds=1))
    async def index(events: list[UserLeft]) -> None:
        sizes.append(len(events))

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(60))
        await broker.drain()

        assert sorted(sizes) == [10, 25, 25]
        assert len(broker.handled(UserLeft)) == 60


async def test_a_batch_that_does_not_fill_up_is_started_after_its_linger() -> None:
    service, calls = Service("index"), list[tuple[int, float]]()

    @service.subscribe(UserLeft, batch=Batch(size=100, linger_seconds=7))
    async def index(events: list[UserLeft]) -> None:
        calls.append((len(events), asyncio.get_running_loop().time()))

    async with MemoryBroker(service) as broker:
        started = asyncio.get_running_loop().time()
        await publish(broker, leavers(3))
        await broker.drain()

    [(size, moment)] = calls
    assert size == 3
    assert moment - started == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize("filled", [False, True])
async def test_each_batch_has_a_linger_of_its_own(filled: bool) -> None:
    service, calls = Service("index"), list[tuple[int, float]]()

    @service.subscribe(UserLeft, batch=Batch(size=2, linger_seconds=7))
    async def index(events: list[UserLeft]) -> None:
        calls.append((len(events), asyncio.get_running_loop().time()))

    async with MemoryBroker(service) as broker:
        started = asyncio.get_running_loop().time()
        await publish(broker, leavers(2 if filled else 1))
        await asyncio.sleep(5 if filled else 8)
        await publish(broker, leavers(1, 2))
        await broker.drain()

    first, second = calls
    assert (first[0], second[0]) == (2 if filled else 1, 1)
    assert first[1] - started == pytest.approx(0 if filled else 7, abs=0.5)
    assert second[1] - started == pytest.approx(12 if filled else 15, abs=0.5)


async def test_after_a_call_that_failed_or_timed_out_the_next_batch_has_its_turn() -> None:
    service, calls = Service("index", retry=RetryPolicy(attempts=1)), 0

    @service.subscribe(UserLeft, batch=Batch(size=1), concurrency=1, timeout_seconds=5)
    async def index(events: list[UserLeft]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError
        if calls == 2:
            await asyncio.sleep(60)

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(4))
        await broker.drain()

        assert (calls, len(broker.handled(UserLeft)), len(broker.dead_lettered(UserLeft))) == (4, 2, 2)


async def test_each_item_is_settled_by_its_own_receive_count() -> None:
    service = Service("index", retry=THREE)
    calls: list[list[str]] = []

    @service.subscribe(UserLeft, batch=Batch(size=10, linger_seconds=0.1))
    async def index(events: list[UserLeft], batch: BatchDelivery) -> None:
        calls.append([event.name for event in events])
        for number, event in enumerate(events):
            if event.name == "1":
                batch.fail(number, ValueError("not today"))
            if event.name == "2":
                batch.fail(number, Reject("never"))

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(4))
        await broker.drain()

        assert calls == [["0", "1", "2", "3"], ["1"], ["1"]]
        assert sorted(event.name for event in broker.handled(UserLeft)) == ["0", "3"]
        assert broker.assert_dead_lettered(UserLeft, name="1").kind == "retries-exhausted"
        assert broker.assert_dead_lettered(UserLeft, name="2").kind == "rejected"


async def test_an_exception_of_the_whole_batch_fails_every_item() -> None:
    service = Service("index", retry=THREE)

    @service.subscribe(UserLeft, batch=Batch(size=10, linger_seconds=0.1))
    async def index(events: list[UserLeft], batch: BatchDelivery) -> None:
        batch.fail(0, Reject("forgotten, as the whole has failed"))
        raise ConnectionError("no index")

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(4))
        await broker.drain()

        assert {dead.kind for dead in broker.dead_lettered(UserLeft)} == {"retries-exhausted"}
        assert len(broker.dead_lettered(UserLeft)) == 4


async def test_a_sync_batch_handler_runs_in_a_thread() -> None:
    service, seen = Service("index"), list[int]()

    @service.subscribe(UserLeft, batch=Batch(size=5, linger_seconds=0.1))
    def index(events: list[UserLeft]) -> None:
        seen.append(len(events))

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(5))
        await broker.drain()

    assert seen == [5]


async def test_a_batch_that_runs_too_long_fails_and_its_linger_does_not_count() -> None:
    service = Service("index", retry=RetryPolicy(attempts=1))
    slow = True

    @service.subscribe(UserLeft, batch=Batch(size=5, linger_seconds=20), timeout_seconds=10)
    async def index(events: list[UserLeft]) -> None:
        await asyncio.sleep(60 if slow else 5)

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(2))
        await broker.drain()
        assert {dead.reason for dead in broker.dead_lettered(UserLeft)} == {"it ran longer than 10 s"}

        slow = False
        await publish(broker, leavers(2, start=7))
        await broker.drain()
        assert len(broker.handled(UserLeft)) == 2


async def test_single_and_batch_handlers_of_one_event_are_one_unit_in_their_order() -> None:
    service, seen = Service("mailer"), list[Any]()

    @service.subscribe(UserLeft)
    async def one(event: UserLeft) -> None:
        seen.append(event.name)

    @service.subscribe(UserLeft, batch=Batch(size=2, linger_seconds=0.1))
    async def many(events: list[UserLeft]) -> None:
        seen.append([event.name for event in events])

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(2))
        await broker.drain()

    assert seen == ["0", "1", ["0", "1"]]


async def test_events_published_by_a_batch_have_no_cause_and_those_of_its_deliveries_have() -> None:
    service = Service("index")

    @service.subscribe(UserLeft, batch=Batch(size=2, linger_seconds=0.1))
    async def index(events: list[UserLeft], batch: BatchDelivery) -> None:
        await batch.publish(ADA)
        await batch.deliveries[1].publish(ADA)

    async with MemoryBroker(service) as broker:
        ids = await asyncio.gather(*map(broker.publish, leavers(2)))
        await broker.drain()

        bodies = [record.body for record in broker.transport.records if record.event == ADA]
    assert "causationid" not in bodies[0]
    assert f'"causationid":"{ids[1]}"' in bodies[1]


async def test_a_fifo_queues_batch_has_one_event_of_each_group() -> None:
    service, batches = Service("ledger", queue=Queue("ledger", fifo=True)), list[list[tuple[str | None, int]]]()

    @service.subscribe(Paid, batch=Batch(size=10, linger_seconds=1))
    async def book(events: list[Paid]) -> None:
        batches.append([(event.account, event.number) for event in events])

    async with MemoryBroker(service) as broker:
        for number in range(3):
            for account in "ab":
                await broker.publish(Paid(account=account, number=number))
        await broker.drain()

    assert [sorted(batch) for batch in batches] == [[("a", n), ("b", n)] for n in range(3)]


def test_a_drain_does_not_wait_for_the_linger() -> None:
    service, transport, seen = Service("index"), FakeTransport(), list[int]()

    @service.subscribe(UserLeft, batch=Batch(size=10, linger_seconds=300))
    async def index(events: list[UserLeft]) -> None:
        seen.append(len(events))

    async def main() -> float:
        async with consuming(service, transport, poll_seconds=1):
            transport.put(*leavers(3))
            await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 30
    assert seen == [3]
    assert len(transport.entries("delete")) == 3


def test_a_batch_that_outlasts_the_drain_is_cancelled_and_every_item_returned() -> None:
    service, transport, fate = Service("index"), FakeTransport(), list[str]()

    @service.subscribe(UserLeft, batch=Batch(size=3, linger_seconds=1))
    async def index(events: list[UserLeft]) -> None:
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            fate.append("cancelled")
            raise

    async def main() -> dict[str, int]:
        consumer = make_consumer(service, transport, poll_seconds=1)
        consumer.start()
        transport.put(*leavers(3))
        await asyncio.sleep(5)
        await drain(consumer, budget_seconds=10)
        assert fate == ["cancelled"]  # and not only when the loop ended
        return consumer.counters.as_dict()

    assert run_virtually(main()) == {"received": 3, "cancelled": 3}
    released = [receipt for receipt, seconds in transport.entries("change_visibility") if seconds == 0]
    assert sorted(released) == ["r1", "r2", "r3"]


async def test_the_concurrency_of_a_batch_handler_counts_batches() -> None:
    service = Service("index")
    running = most = 0

    @service.subscribe(UserLeft, batch=Batch(size=5, linger_seconds=0.1), concurrency=2)
    async def index(events: list[UserLeft]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(40))
        await broker.drain()

    assert most == 2


def test_fail_checks_its_arguments() -> None:
    batch = BatchDelivery([None], None)  # type: ignore[list-item, arg-type]

    with pytest.raises(IndexError, match="items 0 to 0"):
        batch.fail(1, ValueError())
    with pytest.raises(TypeError, match="the first argument is the item's index, 0 to 0"):
        batch.fail("x", ValueError())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an exception"):
        batch.fail(0, "bad")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "errors"),
    [
        ({"size": 0}, ["Batch: size=0 must be 1 to 1,000"]),
        ({"size": 1_001}, ["Batch: size=1001 must be 1 to 1,000"]),
        ({"linger_seconds": -1}, ["Batch: linger_seconds=-1 must be 0 to 300"]),
        (
            {"size": -1, "linger_seconds": 301},
            ["Batch: size=-1 must be 1 to 1,000", "Batch: linger_seconds=301 must be 0 to 300"],
        ),
    ],
)
def test_a_batch_size_or_linger_out_of_range_is_rejected(options: dict[str, Any], errors: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        Batch(**options)

    assert list(raised.value.problems) == errors


@pytest.mark.parametrize("options", [{"size": 1}, {"size": 1_000}, {"linger_seconds": 0}, {"linger_seconds": 300}])
def test_a_batch_size_or_linger_at_its_limit_is_accepted(options: dict[str, Any]) -> None:
    Batch(**options)


async def single(event: UserSignedUp) -> None: ...
async def wrong_context(events: list[UserSignedUp], delivery: Delivery) -> None: ...
async def wrong_items(events: list[UserLeft]) -> None: ...
async def bare_list(events: list) -> None: ...  # type: ignore[type-arg]


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (single, r"takes a list of events; write list\[UserSignedUp\]"),
        (wrong_context, "a batch handler takes a BatchDelivery"),
        (wrong_items, "takes UserLeft, but the handler is subscribed to UserSignedUp"),
        (bare_list, r"write list\[UserSignedUp\]"),
    ],
)
def test_a_batch_handlers_signature_is_checked(function: Callable[..., Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Service("index").subscribe(UserSignedUp, batch=Batch())(function)


def test_a_list_parameter_without_batch_is_rejected_and_the_error_says_how_to_fix_it() -> None:
    with pytest.raises(ConfigError, match=r"subscribe it with batch=Batch\(\.\.\.\)"):
        Service("index").subscribe(UserSignedUp)(wrong_items)  # type: ignore[arg-type]


async def test_a_handler_that_cancels_itself_fails_its_items() -> None:
    service = Service("index", retry=RetryPolicy(attempts=2, base_seconds=1))

    @service.subscribe(UserLeft, batch=Batch(size=2, linger_seconds=0.1))
    async def index(events: list[UserLeft]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(2))
        await broker.drain()

        assert [dead.kind for dead in broker.dead_lettered(UserLeft)] == ["retries-exhausted"] * 2


class Falsy(Exception):
    def __len__(self) -> int:
        return 0


async def test_an_exception_whose_truth_value_is_false_is_a_failure() -> None:
    service = Service("index", retry=RetryPolicy(attempts=1))

    @service.subscribe(UserLeft, batch=Batch(size=2, linger_seconds=0.1))
    async def index(events: list[UserLeft]) -> None:
        raise Falsy

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(2))
        await broker.drain()

        assert len(broker.dead_lettered(UserLeft)) == 2


async def test_a_circuit_counts_calls_and_not_items() -> None:
    service = Service("index", retry=RetryPolicy(attempts=2, base_seconds=1))
    calls = 0

    @service.subscribe(
        UserLeft, batch=Batch(size=20, linger_seconds=0.1), breaker=CircuitBreaker(failures=2, reset_seconds=600)
    )
    async def index(events: list[UserLeft], batch: BatchDelivery) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("once")
        for number in range(len(events) - 1):
            batch.fail(number, ValueError("a bad row, or many"))

    async with MemoryBroker(service) as broker:
        await publish(broker, leavers(20))
        await broker.drain(limit_seconds=60)  # with an open circuit it would take longer

        assert len(broker.dead_lettered(UserLeft)) == 19


def test_every_item_of_a_batch_can_be_failed_and_the_last_reason_counts() -> None:
    batch = BatchDelivery([None, None, None], None)  # type: ignore[list-item, arg-type]
    first, last = ValueError("first"), Reject("last")
    batch.fail(0, first)
    batch.fail(2, first)
    batch.fail(2, last)

    assert (len(batch), batch.calls) == (3, 0)
    assert [batch.failure(index) for index in range(3)] == [first, None, last]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"fail\({index}, ...\): the batch has items 0 to 2"):
            batch.fail(index, first)
    with pytest.raises(TypeError, match="0 to 2"):
        batch.fail(1.0, first)  # type: ignore[arg-type]


def test_a_batch_has_a_hundred_events_and_a_second_by_default() -> None:
    assert (Batch().size, Batch().linger_seconds) == (100, 1.0)
