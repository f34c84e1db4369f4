"""Dead-letter messages sent back over the transport of every broker, which use only its five methods."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smartpipe import Queue, Service
from smartpipe.dlq.messages import Selection
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.dlq.redrive import Redrive, RemovalResult, Remover, scan
from smartpipe.message import OutgoingMessage
from tests.support.events import OrderPlaced, Paid

if TYPE_CHECKING:
    from smartpipe.message import Message
    from tests.conformance.conftest import Bus


def redriven(*, fifo: bool) -> Service:
    service = Service("redriven", queue=Queue("redriven", fifo=fifo))
    if fifo:

        @service.subscribe(Paid)
        async def book(event: Paid) -> None: ...

    else:

        @service.subscribe(OrderPlaced)
        async def bill(event: OrderPlaced) -> None: ...

    return service


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
async def test_all_are_moved_once_and_the_order_of_a_group_is_kept(bus: Bus, fifo: bool) -> None:
    service = redriven(fifo=fifo)
    await bus.provision(service)
    queue, transport, stop = service.queue, bus.transport, asyncio.Event()
    for number in range(23):
        group, deduplication = (f"g{number % 2}", f"d{number}") if fifo else (None, None)
        copy = OutgoingMessage(str(number), 2, group_id=group, deduplication_id=deduplication)
        assert await transport.send(queue.dead_letter_name, [copy]) == []
    processed_events, everything, result = ProcessedEvents(service.handlers, None), Selection(), RemovalResult()

    scanned = await scan(transport, queue, everything, processed_events, stop)
    remover = Remover(transport, queue, rate_per_second=None, stop=stop, on_progress=lambda _: None)
    await remover.remove(scanned, everything, Redrive(transport, queue, processed_events, force=False), result)

    assert result == RemovalResult(done=23)
    moved = await _taken(bus, queue.name)
    assert sorted(int(message.body) for message in moved) == list(range(23))
    if fifo:
        for group in ("g0", "g1"):
            numbers = [int(message.body) for message in moved if message.group_id == group]
            assert numbers == sorted(numbers)
    assert await _taken(bus, queue.dead_letter_name) == []


async def _taken(bus: Bus, queue: str) -> list[Message]:
    """Receive and delete everything."""
    taken: list[Message] = []
    while messages := await bus.transport.receive(
        queue, max_messages=10, wait_seconds=1, visibility_timeout_seconds=30
    ):
        await bus.transport.delete(queue, [message.receipt_handle for message in messages])
        taken += messages
    return taken
