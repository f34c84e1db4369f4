"""Messages and calls that come late: into a group that is being handled, or into slots that are being closed."""

from __future__ import annotations

import asyncio

import pytest

from smartpipe import Queue, Service
from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.slots import Slots
from tests.support.consumers import consuming
from tests.support.events import Paid
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually


def test_a_message_that_arrives_while_its_group_is_handled_waits_for_all_messages_before_it() -> None:
    service, transport = Service("books", queue=Queue("books", fifo=True)), FakeTransport()
    running, order = 0, list[tuple[int, int]]()

    @service.subscribe(Paid)
    async def book(event: Paid) -> None:
        nonlocal running
        running += 1
        order.append((event.number, running))
        await asyncio.sleep(10)
        running -= 1

    async def main() -> None:
        async with consuming(service, transport) as consumer:
            numbers = iter(range(100))
            for _ in range(3):
                transport.put(*(Paid(account="a", number=next(numbers)) for _ in range(3)), group_id="a")
                await asyncio.sleep(12)  # one of them has been handled
            await asyncio.sleep(100)
        assert consumer.counters.as_dict() == {"received": 9, "handled": 9}

    run_virtually(main())
    assert order == [(number, 1) for number in range(9)]


async def test_a_caller_that_waits_for_a_slot_is_woken_when_the_slots_are_closed() -> None:
    slots = Slots(1)
    assert await slots.acquire() == 1
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()

    slots.close()

    assert await asyncio.wait_for(waiting, 5) == 0
    assert await slots.acquire() == 0


async def test_a_caller_that_waits_while_paused_is_woken_by_the_end_of_the_pause_and_by_nothing_else() -> None:
    slots = Slots(2)
    for _ in range(2):
        slots.pause()
        waiting = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        slots.wake()
        await asyncio.sleep(0)
        assert not waiting.done()

        slots.resume()

        assert await asyncio.wait_for(waiting, 5) == 2
        slots.return_unused(2, 0)
        slots.end_call()


@pytest.mark.parametrize("others", [0, 3])
async def test_a_process_short_of_a_resource_holds_no_more_messages_than_it_is_allowed_in_every_round(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.consumer.capacity.FIRST_PAUSE_SECONDS", 0.0)
    capacity = Capacity(8)
    gate = capacity.gate()
    assert gate.admit(10) == 10
    for _ in range(2):
        capacity.record_shortage("threads")
        for allowed in range(1, 9):
            admitted = gate.admit(10)
            assert admitted == allowed
            assert gate.admit(10) == 0
            gate.end_call(admitted, admitted - 1)  # one message less than admitted came
            assert gate.admit(10) == 1
            gate.end_messages(1 + others)  # those of calls before the shortage end, too
            again = gate.admit(10)
            assert again == min(allowed, 1 + others)
            gate.end_messages(allowed)
            capacity.record_success()
        assert capacity.passive
        assert gate.admit(10) == 10
