from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from smartpipe import Retry
from smartpipe.consumer.leases import DONE, OVERDUE, RECEIVED, RUNNING, SETTLING, Leases
from smartpipe.counters import Counters
from smartpipe.message import Failure, Message
from tests.support.consumers import VISIBILITY_SECONDS, consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import UNREACHABLE, FakeTransport, throttled
from tests.support.virtual_time import VirtualTimeLoop, run_virtually

if TYPE_CHECKING:
    from smartpipe import Delivery, Service
    from smartpipe.consumer.leases import Lease
    from smartpipe.errors import TransportError

LOST = Failure(0, "MessageNotInflight", "gone", retryable=False)


def slow_service(seconds: float, lost: list[bool] | None = None, *, timeout_seconds: float | None = None) -> Service:
    service = make_service(timeout_seconds=timeout_seconds)

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        await asyncio.sleep(seconds)
        if lost is not None:
            lost.append(delivery.lease_lost)

    return service


def consume(service: Service, transport: FakeTransport, seconds: float) -> Counters:
    async def main() -> Counters:
        async with consuming(service, transport, concurrency=30) as consumer:
            await asyncio.sleep(seconds)
        return consumer.counters

    return run_virtually(main())


def test_fault_01_a_message_stays_invisible_while_its_handler_runs() -> None:
    transport = FakeTransport()
    transport.put(ADA)

    counts = consume(slow_service(3 * VISIBILITY_SECONDS), transport, 200)

    extended = [at for verb, _, _, at in transport.calls if verb == "change_visibility"]
    gaps = [later - earlier for earlier, later in zip([0, *extended], extended, strict=False)]
    assert max(gaps) <= VISIBILITY_SECONDS / 2
    assert 6 <= len(extended) <= 9
    assert set(transport.entries("change_visibility")) == {("r1", VISIBILITY_SECONDS)}
    assert counts.as_dict() == {"received": 1, "handled": 1}
    assert max(extended) <= 90


def test_leases_are_extended_ten_to_a_call() -> None:
    transport = FakeTransport()
    transport.put(*[ADA] * 25)

    consume(slow_service(VISIBILITY_SECONDS / 2), transport, 60)

    assert sorted(transport.batches("change_visibility")) == [5, 10, 10]


def test_fault_30_a_handler_can_see_its_lost_lease_and_the_others_stay_extended() -> None:
    transport, lost = FakeTransport(), list[bool]()
    transport.script["change_visibility"].append([LOST])
    transport.put(*[ADA] * 10)

    counts = consume(slow_service(60, lost), transport, 100)

    assert sorted(lost) == [False] * 9 + [True]
    assert counts.lease_lost == 1
    last_batches = transport.batches("change_visibility")[1:]
    assert set(last_batches) == {9} or set(last_batches) == {10}  # a lost lease is not extended any more


def test_an_extension_with_a_temporary_failure_is_repeated_at_the_next_tick() -> None:
    transport, lost = FakeTransport(), list[bool]()
    transport.script["change_visibility"].extend([UNREACHABLE, [throttled(0)]])
    transport.put(ADA)

    counts = consume(slow_service(60, lost), transport, 100)

    assert lost == [False]
    assert counts.lease_lost == 0


def test_a_lease_that_could_not_be_extended_is_lost_when_its_timeout_ends() -> None:
    transport, lost = FakeTransport(), list[bool]()
    transport.script["change_visibility"].extend([UNREACHABLE] * 100)
    transport.put(ADA)

    counts = consume(slow_service(60, lost), transport, 100)

    assert lost == [True]
    assert counts.lease_lost == 1


@pytest.mark.parametrize(("answer", "reason"), [(UNREACHABLE, str(UNREACHABLE)), (1_000.0, "no answer")])
def test_the_reason_why_leases_cannot_be_extended_is_logged_once_in_each_outage(
    answer: TransportError | float, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].extend([answer, [], answer])
    transport.put(ADA)

    consume(slow_service(3 * VISIBILITY_SECONDS), transport, 100)

    logged = [message for message in caplog.messages if message.startswith("Cannot extend visibility timeouts")]
    assert logged == [f"Cannot extend visibility timeouts on queue mailer, retrying: {reason}"] * 2


def test_fault_54_a_lease_is_never_extended_beyond_twelve_hours() -> None:
    transport = FakeTransport()
    transport.put(ADA)

    counts = consume(slow_service(50_000), transport, 60_000)

    asked = [(at, entries[0][1]) for verb, _, entries, at in transport.calls if verb == "change_visibility"]
    assert all(at + seconds <= 43_200 for at, seconds in asked)
    assert max(at + seconds for at, seconds in asked) > 43_000
    assert counts.as_dict() == {"received": 1, "retried": 1}  # cancelled while the message could still be returned
    assert len(asked) < 43_200 / 10


def test_fault_54_a_handler_that_runs_longer_than_twelve_hours_can_see_its_lost_lease() -> None:
    transport, lost = FakeTransport(), list[bool]()
    transport.put(ADA)

    counts = consume(slow_service(43_190, lost, timeout_seconds=43_200), transport, 60_000)

    asked = [(at, entries[0][1]) for verb, _, entries, at in transport.calls if verb == "change_visibility"]
    assert max(at + seconds for at, seconds in asked) <= 43_200
    assert lost == [True]
    assert counts.lease_lost == 1


def test_fault_09_a_blocked_loop_is_logged_and_its_leases_count_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()

    async def main() -> tuple[bool, Counters]:
        counts = Counters()
        visibility = Leases("q", transport, visibility_timeout_seconds=1, counters=counts)
        ticker = asyncio.create_task(visibility.run())
        lease = visibility.hold([Message("m", "r", "b", received_at=asyncio.get_running_loop().time())])[0]
        lease.begin("app.block")
        await asyncio.sleep(0.05)
        time.sleep(1.2)  # noqa: ASYNC251 - the mistake under test
        lost_at_once = lease.lost
        await asyncio.sleep(0.3)
        ticker.cancel()
        return lost_at_once, counts

    with caplog.at_level(logging.WARNING, "smartpipe.visibility"):
        lost_at_once, counts = asyncio.run(main())

    assert lost_at_once
    assert counts.lease_lost == 1
    assert any("event loop was blocked" in r.getMessage() and "app.block" in r.getMessage() for r in caplog.records)


def test_one_extension_that_hangs_leaves_time_for_another() -> None:
    transport, lost = FakeTransport(), list[bool]()
    transport.script["change_visibility"].append(1_000.0)
    transport.put(ADA)

    counts = consume(slow_service(60, lost), transport, 100)

    assert lost == [False]
    assert counts.lease_lost == 0


def test_an_extension_in_flight_does_not_undo_a_release() -> None:
    service, transport = make_service(), FakeTransport()
    transport.script["change_visibility"].append(4.0)  # the first extension, at 10 s

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        await asyncio.sleep(11)
        raise Retry(after_seconds=300)

    transport.put(ADA)
    consume(service, transport, 100)

    calls = [(entries, at) for verb, _, entries, at in transport.calls if verb == "change_visibility"]
    assert [entries for entries, _ in calls] == [[("r1", 30)], [("r1", 300)]]
    assert calls[1][1] >= calls[0][1] + 4


def test_fault_09_a_response_that_a_blocked_loop_read_late_is_not_a_fresh_lease() -> None:
    transport = FakeTransport()

    async def main() -> bool:
        visibility = Leases("q", transport, visibility_timeout_seconds=1, counters=Counters())
        ticker = asyncio.create_task(visibility.run())
        await asyncio.sleep(0.05)
        time.sleep(2.5)  # noqa: ASYNC251 - meanwhile the response waits in the socket
        lease = visibility.hold([Message("m", "r", "b", received_at=asyncio.get_running_loop().time())])[0]
        ticker.cancel()
        return lease.lost

    assert asyncio.run(main())


async def hold_one(transport: FakeTransport, seconds: float = 60) -> tuple[Leases, Lease, Counters]:
    """Start to extend one lease of *seconds* that began now."""
    counts = Counters()
    leases = Leases("q", transport, visibility_timeout_seconds=seconds, counters=counts)
    [lease] = leases.hold([Message("m", "r", "b", received_at=asyncio.get_running_loop().time())])
    return leases, lease, counts


def test_a_lease_is_extended_when_less_than_two_thirds_are_left_and_for_its_full_time() -> None:
    transport = FakeTransport()

    async def main() -> list[float]:
        leases, lease, _ = await hold_one(transport)
        left = []
        for _ in range(9):
            leases.tick()
            await asyncio.sleep(1)
            left.append(lease.deadline - asyncio.get_running_loop().time())
            await asyncio.sleep(9)
        return left

    assert run_virtually(main()) == [59, 49, 59, 49, 59, 49, 59, 49, 59]
    assert [at for *_, at in transport.calls] == [20, 40, 60, 80]


def test_a_lease_ends_at_its_deadline_and_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Counters:
        leases, lease, counts = await hold_one(FakeTransport())
        await asyncio.sleep(59.9)
        assert not lease.lost
        await asyncio.sleep(0.1)
        assert lease.lost
        for _ in range(3):
            leases.tick()
        lease.extend(1_000)
        assert lease.lost
        return counts

    assert run_virtually(main()).lease_lost == 1
    assert len(caplog.records) == 1


def test_a_message_is_held_for_twelve_hours_less_a_minute() -> None:
    async def main() -> tuple[float, float]:
        _, lease, _ = await hold_one(FakeTransport())
        left = lease.seconds_left
        await asyncio.sleep(50_000)
        return left, lease.seconds_left

    assert run_virtually(main()) == (43_140, 0)


@pytest.mark.parametrize("end", ["dropped", "returned"])
def test_a_settled_message_is_not_extended_any_more(end: str) -> None:
    transport = FakeTransport()

    async def main() -> Counters:
        leases, lease, counts = await hold_one(transport)
        if end == "dropped":
            leases.drop([lease])
            leases.drop([lease])
        else:
            lease.start_return()
        for _ in range(3):
            leases.tick()
            await asyncio.sleep(15)
        return counts

    assert run_virtually(main()).lease_lost == 0
    assert transport.calls == []


@pytest.mark.parametrize(
    ("failure", "deleting", "lost"), [(LOST, False, True), (LOST, True, False), (throttled(0), False, False)]
)
def test_only_a_refusal_of_a_message_that_is_not_being_deleted_loses_its_lease(
    failure: Failure, deleting: bool, lost: bool
) -> None:
    transport = FakeTransport()

    async def main() -> tuple[bool, int]:
        leases, lease, counts = await hold_one(transport)
        transport.script["change_visibility"].append([failure])
        if deleting:
            lease.start_delete()
        await asyncio.sleep(20)
        leases.tick()
        await asyncio.sleep(1)
        assert lease.extension is None
        return lease.lost, counts.lease_lost

    assert run_virtually(main()) == (lost, int(lost))


def test_extensions_that_fail_are_logged_once_until_one_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].extend([UNREACHABLE, UNREACHABLE, [], UNREACHABLE])

    async def main() -> None:
        leases, lease, _ = await hold_one(transport, 600)
        for tick in range(9):
            leases.tick()
            await asyncio.sleep(100)
            assert not lease.lost, tick

    run_virtually(main())

    assert [record.getMessage() for record in caplog.records] == [
        f"Cannot extend visibility timeouts on queue q, retrying: {UNREACHABLE}"
    ] * 2


def test_only_one_extension_of_a_lease_is_under_way_and_a_call_that_hangs_ends_at_the_next_tick() -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].append(1_000.0)

    async def main() -> None:
        leases, lease, _ = await hold_one(transport)
        await asyncio.sleep(20)
        leases.tick()
        await asyncio.sleep(5)
        leases.tick()
        await asyncio.sleep(4.9)
        assert lease.extension is not None
        assert len(transport.calls) == 1
        await asyncio.sleep(0.2)
        assert lease.extension is None
        leases.tick()
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert len(transport.calls) == 2
        assert lease.deadline == pytest.approx(30.1 + 60)

    run_virtually(main())


def test_a_lease_records_the_handler_that_was_called_last_and_its_progress_only_grows() -> None:
    async def main() -> None:
        _, lease, _ = await hold_one(FakeTransport())
        states = [lease.state]
        for step in (partial(lease.begin, "a"), lease.mark_overdue, partial(lease.begin, "b"), lease.start_delete):
            step()
            states.append(lease.state)
        lease.end_delete()
        assert states == [RECEIVED, RUNNING, OVERDUE, OVERDUE, SETTLING]
        assert lease.state is DONE
        assert lease.handler == "b"

    run_virtually(main())


def block(seconds: float) -> None:
    """Let the clock of the loop go on, as while a handler blocks the loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop._virtual_selector.now += seconds


@pytest.mark.parametrize(
    ("timeout_seconds", "seconds", "lag"),
    [(60, 19.9, None), (60, 20.1, "10.1"), (600, 199, None), (600, 201, "101.0"), (3, 1.4, None), (3, 1.6, "1.1")],
)
def test_a_loop_that_was_blocked_for_an_interval_of_ticks_or_a_second_is_logged(
    timeout_seconds: float, seconds: float, lag: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        leases, _, _ = await hold_one(FakeTransport(), timeout_seconds)
        ticker = asyncio.create_task(leases.run())
        await asyncio.sleep(0)
        block(seconds)
        await asyncio.sleep(timeout_seconds)
        ticker.cancel()

    with caplog.at_level(logging.WARNING, "smartpipe.visibility"):
        run_virtually(main())

    blocked = [message for message in caplog.messages if message.startswith("The event loop was blocked for ")]
    assert [message.split()[6] for message in blocked] == ([] if lag is None else [lag])
    assert all(message.endswith("Running handlers: none") for message in blocked)


def test_a_blocked_loop_is_logged_with_each_handler_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        leases = Leases("q", FakeTransport(), visibility_timeout_seconds=600, counters=Counters())
        messages = [Message(f"m{number}", f"r{number}", "b") for number in range(4)]
        for lease, handler in zip(leases.hold(messages), ("app.b", "app.a", "app.b", ""), strict=True):
            if handler:
                lease.begin(handler)
        ticker = asyncio.create_task(leases.run())
        await asyncio.sleep(0)
        block(300)
        await asyncio.sleep(1)
        ticker.cancel()

    with caplog.at_level(logging.WARNING, "smartpipe.visibility"):
        run_virtually(main())

    [line] = caplog.messages
    assert line.endswith("Running handlers: app.a, app.b")


@pytest.mark.parametrize(
    ("blocked_seconds", "read_after", "begins"),
    [
        (20.9, 0, 20.9),  # the loop was busy, but the next tick is not late enough
        (21.1, 0, 0),  # nothing ran since the tick at 0
        (50, 0, 0),
        (50, 0.9, 0),  # the tick after it has noticed the pause, and the response may have lain there
        (50, 1.1, 51.1),  # a response read later is a new one
    ],
)
def test_a_response_that_lay_unread_in_a_blocked_loop_counts_from_the_tick_before(
    blocked_seconds: float, read_after: float, begins: float
) -> None:
    async def main() -> float:
        leases = Leases("q", FakeTransport(), visibility_timeout_seconds=60, counters=Counters())
        ticker = asyncio.create_task(leases.run())
        await asyncio.sleep(0)
        block(blocked_seconds)
        if read_after:
            await asyncio.sleep(read_after)
        [lease] = leases.hold([Message("m", "r", "b", received_at=asyncio.get_running_loop().time())])
        ticker.cancel()
        assert lease.ceiling - lease.deadline == 43_200 - 60 - 60
        return lease.deadline - 60

    assert run_virtually(main()) == pytest.approx(begins)


@pytest.mark.parametrize(("timeout_seconds", "cut_off"), [(60, 10.0), (3, 1.0)])
def test_a_call_that_extends_leases_may_take_an_interval_of_ticks_but_at_least_a_second(
    timeout_seconds: float, cut_off: float, caplog: pytest.LogCaptureFixture
) -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].append(1_000.0)

    async def main() -> None:
        leases, lease, _ = await hold_one(transport, timeout_seconds)
        await asyncio.sleep(timeout_seconds / 3)
        leases.tick()
        await asyncio.sleep(cut_off - 0.01)
        assert lease.extension is not None
        await asyncio.sleep(0.02)
        assert lease.extension is None

    run_virtually(main())
    assert caplog.messages == ["Cannot extend visibility timeouts on queue q, retrying: no answer"]


def test_sixteen_calls_that_extend_leases_are_open_at_most() -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].extend([1.0] * 100)

    async def main() -> None:
        leases = Leases("q", transport, visibility_timeout_seconds=60, counters=Counters())
        held = leases.hold([Message(f"m{number}", f"r{number}", "b") for number in range(170)])
        await asyncio.sleep(20)
        leases.tick()
        await asyncio.sleep(1.5)
        held[-1].start_return()
        await asyncio.sleep(5)

    run_virtually(main())
    assert [at for *_, at in transport.calls] == [20] * 16 + [21]
    assert transport.batches("change_visibility") == [10] * 17


def test_a_message_that_was_returned_while_its_extension_waited_is_not_extended() -> None:
    transport = FakeTransport()
    transport.script["change_visibility"].extend([1.0] * 100)

    async def main() -> None:
        leases = Leases("q", transport, visibility_timeout_seconds=60, counters=Counters())
        held = leases.hold([Message(f"m{number}", f"r{number}", "b") for number in range(162)])
        await asyncio.sleep(20)
        leases.tick()
        await asyncio.sleep(0.5)
        held[160].start_return()
        await asyncio.sleep(5)
        assert (held[160].deadline, held[161].deadline) == (60, 81)  # counted from the call, and not from the tick

    run_virtually(main())
    assert [entry for *_, entries, _ in transport.calls[16:] for entry in entries] == [("r161", 60)]
