from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.consumer.capacity import (
    MAX_PAUSE_SECONDS,
    MIN_OVERDUE,
    QUIET_SECONDS,
    RESTART_AFTER_SECONDS,
    Capacity,
)
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtually(test())

    run.__name__ = test.__name__
    return run


@pytest.mark.parametrize(("slots", "limit"), [(1, MIN_OVERDUE), (2, 2), (10, 10)])
async def test_as_many_calls_as_slots_may_be_overdue_and_two_with_a_single_slot(slots: int, limit: int) -> None:
    capacity, woken = Capacity(slots), list[str]()
    capacity.on_open(lambda: woken.append("woken"))

    gate = capacity.gate()
    for call in range(limit):
        assert capacity.ready
        assert gate.admit(7) == 7
        capacity.add(call, "slow" if call else "slower")
    assert (capacity.ready, capacity.alive, gate.admit(7), capacity.overdue) == (False, False, 0, limit)
    assert gate.seconds_until_open() is None
    assert "slow (" in capacity.reasons[0]
    assert "slower (1)" in capacity.reasons[0]

    assert capacity.remove(0)
    assert not capacity.remove(0)
    assert (capacity.ready, capacity.alive, capacity.reasons, woken) == (True, True, [], ["woken"])


async def test_a_few_overdue_handlers_are_named_and_the_others_counted() -> None:
    capacity = Capacity(9)
    for call in range(9):
        capacity.add(call, f"handler{call}")

    assert capacity.reasons[0].endswith("and 4 more handlers")


@virtually
async def test_a_shortage_stops_receive_calls_for_longer_each_time_and_then_lets_one_message_through() -> None:
    capacity, pauses = Capacity(10), list[float]()
    gate = capacity.gate()
    for _ in range(8):
        capacity.record_shortage("memory")
        capacity.record_shortage("memory")  # another message reports the same shortage
        assert gate.admit(5) == 0
        seconds = gate.seconds_until_open()
        assert seconds is not None
        pauses.append(seconds)
        await asyncio.sleep(seconds)
        assert gate.admit(5) == 1
        assert gate.admit(5) == 0
        gate.end_call(1, 1)
        assert gate.admit(5) == 0
        gate.end_messages(1)

    assert pauses == [1, 2, 4, 8, 16, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS]


@virtually
async def test_each_success_allows_one_more_message_and_the_next_shortage_halves_the_number() -> None:
    capacity, woken = Capacity(10), list[str]()
    gate = capacity.gate()
    capacity.on_open(lambda: woken.append("woken"))
    capacity.record_shortage("memory")
    capacity.record_success()  # it may have begun, and had the memory, before the shortage
    assert not capacity.ready
    assert gate.admit(5) == 0

    await asyncio.sleep(1)
    for _ in range(5):
        capacity.record_success()
    assert capacity.ready
    assert gate.admit(9) == 6
    gate.end_call(6, 0)

    capacity.record_shortage("memory")
    assert gate.seconds_until_open() == 1
    await asyncio.sleep(1)
    assert gate.admit(9) == 3
    assert woken == []

    for _ in range(8):
        capacity.record_success()
    assert woken == ["woken"]
    assert gate.admit(9) == 9


@virtually
async def test_each_queue_has_its_own_probe_so_that_an_idle_queue_does_not_starve_others() -> None:
    capacity = Capacity(10)
    idle, busy = capacity.gate(), capacity.gate()
    capacity.record_shortage("memory")
    await asyncio.sleep(1)

    assert (idle.admit(5), busy.admit(5)) == (1, 1)


@virtually
async def test_a_resource_without_a_shortage_for_a_minute_counts_as_available() -> None:
    capacity = Capacity(10)
    gate = capacity.gate()
    capacity.record_shortage("memory")
    await asyncio.sleep(QUIET_SECONDS + 1)

    assert gate.admit(5) == 5
    assert capacity.ready


@virtually
async def test_a_resource_that_keeps_running_out_fails_liveness_and_a_success_restores_it() -> None:
    capacity = Capacity(10)
    capacity.record_shortage("memory")
    await asyncio.sleep(RESTART_AFTER_SECONDS - 1)
    capacity.record_shortage("file descriptors (EMFILE)")
    assert capacity.alive
    await asyncio.sleep(1)
    capacity.record_shortage("file descriptors (EMFILE)")
    assert not capacity.alive
    assert capacity.reasons == ["this process has run out of file descriptors (EMFILE)"]

    await asyncio.sleep(MAX_PAUSE_SECONDS)
    capacity.record_success()
    assert capacity.alive


def test_calls_that_keep_ending_late_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        capacity = Capacity(2)
        for _ in range(100):
            for call in (1, 2):
                capacity.add(call, "slow")
            capacity.remove(1)
            capacity.remove(2)
            await asyncio.sleep(1)

    with caplog.at_level(logging.INFO):
        run_virtually(main())

    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO] * 2


async def test_as_many_handlers_as_fit_are_named_without_counting_others() -> None:
    capacity = Capacity(5)
    for call in range(5):
        capacity.add(call, f"handler{call}")

    assert capacity.reasons[0].endswith("handler4 (1)")
    assert "5 handler calls have not ended after their timeout, and 5 are allowed" in capacity.reasons[0]


@virtually
async def test_all_gates_of_the_process_hold_back_and_let_go_together() -> None:
    capacity = Capacity(2)
    gates = [capacity.gate(), capacity.gate()]

    def passive() -> list[bool]:
        return [*(gate.passive for gate in [*gates, capacity.gate()]), capacity.passive]

    assert passive() == [True] * 4
    capacity.add(1, "slow")
    assert passive() == [True] * 4
    capacity.add(2, "slow")
    assert passive() == [False] * 4
    capacity.record_shortage("memory")
    assert gates[0].seconds_until_open() is None  # no time opens it, but the end of an overdue call
    assert len(capacity.reasons) == 2
    capacity.remove(1)
    assert passive() == [False] * 4
    assert gates[0].seconds_until_open() == 1
    await asyncio.sleep(1)
    assert gates[0].seconds_until_open() is None
    capacity.record_success()
    assert passive() == [False] * 4
    capacity.record_success()
    assert passive() == [True] * 4


@virtually
async def test_a_gate_counts_the_messages_in_flight_of_one_shortage() -> None:
    capacity, woken = Capacity(10), list[str]()
    gate = capacity.gate()
    gate.on_open(lambda: woken.append("woken"))
    assert gate.admit(4) == 4
    capacity.record_shortage("memory")
    await asyncio.sleep(1)
    for _ in range(5):
        capacity.record_success()

    assert gate.admit(4) == 4  # those before the shortage do not count
    gate.end_call(4, 1)
    assert gate.admit(9) == 5
    gate.end_messages(2)
    assert gate.admit(9) == 2
    gate.end_messages(7)  # also of messages that were received before the shortage
    gate.end_call(9, 0)
    assert gate.admit(9) == 6

    await asyncio.sleep(QUIET_SECONDS)
    assert gate.admit(9) == 9
    assert woken == ["woken"]
    capacity.record_shortage("memory")
    assert gate.seconds_until_open() == 1
    await asyncio.sleep(1)
    assert gate.admit(9) == 1


@virtually
async def test_a_shortage_after_a_quiet_minute_is_a_new_one() -> None:
    capacity = Capacity(10)
    for _ in range(2):
        for seconds in (1, 2, 4):
            capacity.record_shortage("memory")
            assert capacity.seconds_until_open() == seconds
            await asyncio.sleep(seconds)
        await asyncio.sleep(QUIET_SECONDS)
        capacity.record_shortage("memory")
        assert capacity.alive
        assert capacity.seconds_until_open() == 1
        await asyncio.sleep(QUIET_SECONDS + 1)

    capacity.record_success()
    assert capacity.shortages == 4


@virtually
async def test_a_success_begins_the_time_anew_after_which_a_shortage_fails_liveness() -> None:
    capacity = Capacity(10)
    for _ in range(3):
        capacity.record_shortage("memory")
        await asyncio.sleep(RESTART_AFTER_SECONDS - 1)
        capacity.record_shortage("memory")
        assert capacity.alive
        await asyncio.sleep(MAX_PAUSE_SECONDS)
        capacity.record_success()
        assert capacity.ready


async def test_a_function_in_a_thread_is_overdue_until_it_ends() -> None:
    capacity, future = Capacity(2), Future[None]()
    capacity.abandon(future, "slow")
    assert capacity.overdue == 1

    await asyncio.to_thread(future.set_result, None)
    await asyncio.sleep(0)

    assert capacity.overdue == 0


def test_a_resource_that_runs_out_and_comes_back_is_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        capacity = Capacity(2)
        for _ in range(3):
            capacity.record_shortage("memory")
            await asyncio.sleep(1)
        await asyncio.sleep(2)
        for _ in range(9):
            capacity.record_success()

    with caplog.at_level(logging.INFO):
        run_virtually(main())

    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]
    assert "run out of memory" in caplog.messages[0]
