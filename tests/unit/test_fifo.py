"""FIFO queues: groups run in parallel, each in order, also after failures."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import wait_fixed

from smartpipe import ConfigError, Event, Queue, Reject, RetryPolicy, Service
from smartpipe.consumer.history import MAX_REMEMBERED, DeliveryHistory, remember
from smartpipe.consumer.leases import Lease
from smartpipe.testing import MemoryBroker
from tests.support.consumers import consuming
from tests.support.events import ADA, Clicked, Paid, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.message import Message

LEDGER = Queue("ledger", fifo=True)
FIVE = RetryPolicy(attempts=3, wait=wait_fixed(5))


def payments(accounts: str, count: int) -> list[Paid]:
    return [Paid(account=account, number=number) for number in range(count) for account in accounts]


def ledger(handle: Callable[[Paid], Any], retry: RetryPolicy = FIVE, *, idempotent: bool = False) -> Service:
    service = Service("ledger", queue=LEDGER, retry=retry)

    @service.subscribe(Paid, idempotent=idempotent)
    async def book(event: Paid) -> None:
        await handle(event)

    return service


async def test_each_group_is_handled_in_order_and_groups_run_in_parallel() -> None:
    done: defaultdict[str | None, list[int]] = defaultdict(list)
    running: set[str | None] = set()
    most = 0

    async def handle(event: Paid) -> None:
        nonlocal most
        assert event.account not in running, "two of one group at once"
        running.add(event.account)
        most = max(most, len(running))
        await asyncio.sleep(1)
        running.discard(event.account)
        done[event.account].append(event.number)

    async with MemoryBroker(ledger(handle), concurrency=30) as broker:
        await broker.transport.publish("ledger.fifo", [])
        for payment in payments("abc", 7):
            await broker.publish(payment)
        await broker.drain()

    assert done == {account: list(range(7)) for account in "abc"}
    assert most == 3


async def test_fault_06_messages_behind_a_failure_are_released_with_it_and_never_overtake_it() -> None:
    transport = FakeTransport()
    ran: list[int] = []

    async def handle(event: Paid) -> None:
        ran.append(event.number)
        if event.number == 2:
            raise OSError("down")

    async def main() -> None:
        async with consuming(ledger(handle), transport):
            transport.put(*payments("a", 4)[1:], group_id="a")
            await asyncio.sleep(3)

    await asyncio.to_thread(run_virtually, main())

    assert ran == [1, 2]
    assert transport.entries("delete") == ["r1"]
    released = [entries for verb, _, entries, _ in transport.calls if verb == "change_visibility"]
    assert released == [[("r2", 5), ("r3", 5)]]


async def test_a_group_continues_where_it_stopped_and_does_not_delay_other_groups() -> None:
    ran: list[tuple[str | None, int, float]] = []
    failures = iter([True, True, False])

    async def handle(event: Paid) -> None:
        ran.append((event.account, event.number, asyncio.get_running_loop().time()))
        if event == Paid(account="a", number=1) and next(failures):
            raise OSError("down")

    async with MemoryBroker(ledger(handle)) as broker:
        for payment in payments("ab", 3):
            await broker.publish(payment)
        await broker.drain()

        assert [number for account, number, _ in ran if account == "a"] == [0, 1, 1, 1, 2]
        assert [number for account, number, _ in ran if account == "b"] == [0, 1, 2]
        assert [retried.after_seconds for retried in broker.retried(Paid)] == [5, 5]
        b_done = max(moment for account, _, moment in ran if account == "b")
        a_again = min(moment for account, number, moment in ran if (account, number) == ("a", 1)) + 5
        assert b_done < a_again


async def test_fault_24_poison_is_dead_lettered_and_its_group_continues() -> None:
    ran: list[int] = []

    async def handle(event: Paid) -> None:
        ran.append(event.number)
        if event.number == 1:
            raise OSError("poison")

    async with MemoryBroker(ledger(handle)) as broker:
        for payment in payments("a", 3):
            await broker.publish(payment)
        await broker.drain()

        assert ran == [0, 1, 1, 1, 2]
        assert broker.assert_dead_lettered(Paid, number=1).kind == "retries-exhausted"
        [dead] = broker.transport.queue("ledger-dlq.fifo").contents()
        assert dead.content.group_id == "a"


async def test_messages_behind_poison_keep_their_own_attempts() -> None:
    attempts: defaultdict[int, int] = defaultdict(int)

    async def handle(event: Paid) -> None:
        attempts[event.number] += 1
        raise OSError("all of them")

    async with MemoryBroker(ledger(handle)) as broker:
        for payment in payments("a", 10):
            await broker.publish(payment)
        await broker.drain()

        assert attempts == dict.fromkeys(range(10), 3)
        assert [dead.kind for dead in broker.dead_lettered(Paid)] == ["retries-exhausted"] * 10


@pytest.mark.parametrize("idempotent", [False, True])
async def test_fault_24_a_halted_group_waits_and_logs_errors_until_it_can_continue(
    caplog: pytest.LogCaptureFixture,
    idempotent: bool,
) -> None:
    ran: list[tuple[str | None, int]] = []
    broken = True
    halting = RetryPolicy(attempts=2, wait=wait_fixed(1), max_seconds=60, on_exhausted="halt")

    async def handle(event: Paid) -> None:
        ran.append((event.account, event.number))
        if broken and event == Paid(account="a", number=0):
            raise OSError("poison")

    async with MemoryBroker(ledger(handle, halting, idempotent=idempotent)) as broker:
        for payment in payments("ab", 2):
            await broker.publish(payment)
        with pytest.raises(AssertionError, match=r"services have not finished after 3600 s: ledger.fifo has"):
            await broker.drain(limit_seconds=3_600)

        assert ("a", 1) not in ran
        assert ("b", 1) in ran
        assert 55 <= ran.count(("a", 0)) <= 65
        assert broker.dead_lettered() == []
        assert "Group a is halted (retries-exhausted), will retry in 60 s: OSError: poison" in caplog.messages
        assert not [message for message in caplog.messages if "more often than failures explain" in message]
        broken = False
        await broker.drain()

    assert ran[-1] == ("a", 1)


@pytest.mark.parametrize("on_service", [True, False])
async def test_an_unreadable_message_halts_its_group_by_the_policy_of_the_service_alone(on_service: bool) -> None:
    halting = RetryPolicy(on_exhausted="halt")
    service = Service("ledger", queue=LEDGER, retry=halting if on_service else FIVE)

    @service.subscribe(Paid, retry=halting)
    async def book(event: Paid) -> None: ...

    async with MemoryBroker(service) as broker:
        await broker.send("ledger.fifo", "not json", group_id="a")
        if on_service:
            with pytest.raises(AssertionError, match="services have not finished"):
                await broker.drain(limit_seconds=3_600)
            broker.assert_nothing_dead_lettered()
        else:
            await broker.drain()
            assert [one.kind for one in broker.dead_lettered()] == ["not-json"]


async def test_a_rejected_message_does_not_halt_its_group() -> None:
    async def handle(event: Paid) -> None:
        if event.number == 0:
            raise Reject("not ours")

    async with MemoryBroker(ledger(handle, RetryPolicy(on_exhausted="halt"))) as broker:
        for payment in payments("a", 2):
            await broker.publish(payment)
        await broker.drain()

        broker.assert_dead_lettered(Paid, number=0, kind="rejected")
        broker.assert_handled(Paid, number=1)


async def test_leases_of_the_whole_received_group_are_extended_while_its_first_message_is_handled() -> None:
    """Three messages of a group, each handled for longer than the visibility timeout."""
    ran: list[int] = []

    async def handle(event: Paid) -> None:
        await asyncio.sleep(50)
        ran.append(event.number)

    async with MemoryBroker(ledger(handle)) as broker:
        for payment in payments("a", 3):
            await broker.publish(payment)
        await broker.drain()

        assert ran == [0, 1, 2]
        assert [record.receive_count for record in broker.transport.records if hasattr(record, "receive_count")] == [
            1,
            1,
            1,
        ]


async def test_fault_41_tenants_of_a_standard_queue_are_handled_in_parallel() -> None:
    service = Service("clicks")
    running = most = 0

    @service.subscribe(Clicked)
    async def count(event: Clicked) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    async with MemoryBroker(service) as broker:
        await asyncio.gather(*(broker.publish(Clicked(shop="loud", number=number)) for number in range(10)))
        await broker.drain()

    assert most == 10


async def test_a_drain_returns_the_messages_behind_the_running_one_in_order() -> None:
    transport = FakeTransport()
    ran: list[int] = []

    async def handle(event: Paid) -> None:
        ran.append(event.number)
        await asyncio.sleep(30)

    async def main() -> dict[str, int]:
        async with consuming(ledger(handle), transport, poll_seconds=1) as consumer:
            transport.put(*payments("a", 3), group_id="a")
            await asyncio.sleep(5)
        return consumer.counters.as_dict()

    counts = await asyncio.to_thread(run_virtually, main())

    assert ran == [0]
    assert counts == {"received": 3, "handled": 1, "released": 2}
    last = [entries for verb, _, entries, _ in transport.calls if verb == "change_visibility"][-1]
    assert last == [("r2", 0), ("r3", 0)]


async def test_no_message_of_a_group_begins_once_its_lease_is_lost() -> None:
    transport = FakeTransport()
    ran: list[int] = []

    async def handle(event: Paid) -> None:
        ran.append(event.number)
        for lease in leases:
            lease.lose()

    async def main() -> None:
        async with consuming(ledger(handle), transport) as consumer:
            leases.clear()
            consumer.leases.hold = keep(consumer.leases.hold)  # type: ignore[method-assign, assignment]
            transport.put(*payments("a", 3), group_id="a")
            await asyncio.sleep(5)

    leases: list[Lease] = []

    def keep(hold: Callable[[Sequence[Message]], list[Lease]]) -> Callable[[Sequence[Message]], list[Lease]]:
        def holding(messages: Sequence[Message]) -> list[Lease]:
            held = hold(messages)
            leases.extend(held)
            return held

        return holding

    await asyncio.to_thread(run_virtually, main())

    assert ran == [0]


async def test_the_history_of_returned_messages_is_limited() -> None:
    history, transport = DeliveryHistory(), FakeTransport()

    def recalled(message: Message) -> Lease:
        lease = Lease(message, math.inf, math.inf, lambda: 0)
        history.recall(lease)
        return lease

    first, second = transport.put("x", "y", group_id="a")
    history.record_return(recalled(first))
    history.record_skip(recalled(second))
    assert (recalled(first).skipped, recalled(first).returned) == (0, 1)
    assert (recalled(second).skipped, recalled(second).returned) == (1, 1)

    for _ in range(MAX_REMEMBERED + 1):
        history.record_skip(recalled(transport.message("x", group_id="a")))

    assert (recalled(second).skipped, recalled(second).returned) == (0, 0)


def test_a_fifo_queue_and_a_standard_topic_cannot_be_connected() -> None:
    service = Service("ledger", queue=LEDGER)

    with pytest.raises(ConfigError, match=r"queue 'ledger.fifo' is FIFO and topic 'users' is not"):
        service.subscribe(UserSignedUp)(accept)


def test_halt_is_only_for_fifo_queues() -> None:
    with pytest.raises(ConfigError, match="'mailer' is a standard queue and has no groups"):
        Service("mailer", retry=RetryPolicy(on_exhausted="halt")).subscribe(UserSignedUp)(accept)


async def accept(_: Event) -> None: ...


def test_a_queue_that_halts_has_the_largest_receive_limit_of_sqs() -> None:
    service = ledger(accept, RetryPolicy(on_exhausted="halt"))

    assert service.bindings[0].attempts == 1_000
    assert ADA


def lease_of(message_id: str) -> Lease:
    return Lease(FakeTransport().message("{}")._replace(message_id=message_id), math.inf, math.inf, lambda: 0.0)


def test_the_history_counts_returned_and_skipped_deliveries_of_each_message() -> None:
    history = DeliveryHistory()

    def recall(message_id: str) -> tuple[int, int]:
        lease = lease_of(message_id)
        history.recall(lease)
        return lease.returned, lease.skipped

    for count in (1, 2, 3):
        lease = lease_of("a")
        history.recall(lease)
        if count == 2:
            history.record_skip(lease)
        else:
            history.record_return(lease)
        assert recall("a") == (count, int(count >= 2))
    assert recall("b") == (0, 0)
    history.forget(lease_of("b"))
    assert recall("a") == (3, 1)
    history.forget(lease_of("a"))
    assert recall("a") == (0, 0)
    assert (history.returned, history.skipped) == ({}, {})


def test_the_history_remembers_ten_thousand_messages_and_forgets_the_oldest() -> None:
    counts: dict[str, int] = {}
    for number in range(10_000):
        remember(counts, str(number), 1)
    remember(counts, "0", 2)
    assert len(counts) == 10_000
    assert counts["0"] == 2

    remember(counts, "new", 1)

    assert len(counts) == 10_000
    assert "0" not in counts
    assert {"1", "new"} <= set(counts)
