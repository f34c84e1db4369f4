"""What every transport has to do with a queue, in the words of SQS's API reference."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smartpipe import Queue, RetryPolicy, Service, TransportError
from smartpipe.message import Attribute, Message, OutgoingMessage, size_bytes
from smartpipe.transport import Depth, message_counter_of
from smartpipe.transports.memory.transport import MemoryTransport
from tests.support.events import Paid, UserSignedUp

if TYPE_CHECKING:
    from tests.conformance.conftest import Bus

QUEUE = "mailer"
LEDGER = "ledger.fifo"


async def handle(_: UserSignedUp) -> None: ...


async def pay(_: Paid) -> None: ...


@pytest.fixture
async def queue(bus: Bus) -> Bus:
    service = Service(QUEUE, queue=Queue(QUEUE, max_receive_count=2), retry=RetryPolicy(attempts=2))
    service.subscribe(UserSignedUp)(handle)
    await bus.provision(service)
    return bus


@pytest.fixture
async def fifo(bus: Bus) -> Bus:
    service = Service("ledger", queue=Queue("ledger", fifo=True))
    service.subscribe(Paid)(pay)
    await bus.provision(service)
    return bus


def text(body: str, **fields: object) -> OutgoingMessage:
    return OutgoingMessage(body, len(body.encode()), **fields)  # type: ignore[arg-type]


def ordered(body: str, group: str) -> OutgoingMessage:
    return text(body, group_id=group, deduplication_id=body)


async def receive(
    bus: Bus, queue: str = QUEUE, *, count: int = 10, wait_seconds: int = 0, hidden_seconds: int = 30
) -> list[Message]:
    return await bus.transport.receive(
        queue, max_messages=count, wait_seconds=wait_seconds, visibility_timeout_seconds=hidden_seconds
    )


def bodies(messages: list[Message]) -> list[str]:
    return [message.body for message in messages]


async def test_a_message_is_received_as_it_was_sent(queue: Bus) -> None:
    attributes = {"tenant": Attribute("String", "zoë"), "raw": Attribute("Binary", b"\x00\xff")}
    body = '{"text": "é \U0001f600 \\u0000"}'
    assert await queue.transport.send(QUEUE, [OutgoingMessage(body, size_bytes(body, attributes), attributes)]) == []

    [message] = await receive(queue)

    assert message.body == body
    assert dict(message.attributes) == attributes
    assert message.receive_count == 1
    assert message.group_id is None
    assert message.sent_at is not None
    assert message.first_received_at is not None


async def test_a_received_message_is_hidden_and_comes_back_with_a_higher_count(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("a")])
    [first] = await receive(queue, hidden_seconds=1)

    assert await receive(queue) == []
    [second] = await receive(queue, wait_seconds=5)

    assert (second.message_id, second.receive_count) == (first.message_id, 2)


async def test_messages_are_counted_by_state(queue: Bus) -> None:
    count = message_counter_of(queue.transport)
    assert count is not None
    await queue.transport.send(QUEUE, [text("a"), text("b"), text("c")])
    await queue.transport.send(QUEUE, [text("d", delay_seconds=60), text("e", delay_seconds=60)])
    await receive(queue, count=1)

    assert await count(QUEUE) == Depth(visible=2, in_flight=1, delayed=2)
    assert await count(f"{QUEUE}-dlq") == Depth(0, 0, 0)


async def test_messages_of_a_missing_queue_cannot_be_counted(queue: Bus) -> None:
    count = message_counter_of(queue.transport)
    assert count is not None
    with pytest.raises(TransportError, match="QueueDoesNotExist"):
        await count("nowhere")


async def test_a_deleted_message_does_not_come_back_and_may_be_deleted_twice(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("a")])
    [message] = await receive(queue, hidden_seconds=1)

    assert await queue.transport.delete(QUEUE, [message.receipt_handle]) == []
    assert await queue.transport.delete(QUEUE, [message.receipt_handle]) == []

    assert await receive(queue, wait_seconds=2) == []


async def test_a_released_message_is_there_at_once(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("a")])
    [message] = await receive(queue)

    assert await queue.transport.change_visibility(QUEUE, [(message.receipt_handle, 0)]) == []

    assert bodies(await receive(queue, wait_seconds=2)) == ["a"]


async def test_an_extended_message_stays_hidden(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("a")])
    [message] = await receive(queue, hidden_seconds=1)

    assert await queue.transport.change_visibility(QUEUE, [(message.receipt_handle, 20)]) == []

    assert await receive(queue, wait_seconds=2) == []


async def test_each_of_a_batch_gets_a_visibility_of_its_own(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("a"), text("b")])
    first, second = sorted(await receive_all(queue, 2), key=lambda message: message.body)

    await queue.transport.change_visibility(QUEUE, [(first.receipt_handle, 20), (second.receipt_handle, 0)])

    assert bodies(await receive(queue, wait_seconds=2)) == ["b"]


async def receive_all(bus: Bus, count: int, queue: str = QUEUE) -> list[Message]:
    """Receive until so many are here: a receive may bring fewer than there are."""
    found: list[Message] = []
    while len(found) < count:
        found += await receive(bus, queue, wait_seconds=5)
    return found


async def test_a_receive_brings_no_more_than_asked_for(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text(str(number)) for number in range(10)])

    assert len(await receive(queue, count=3)) <= 3
    assert 0 < len(await receive(queue, count=1, wait_seconds=2)) <= 1


async def test_a_long_poll_ends_with_the_first_message(queue: Bus) -> None:
    poll = asyncio.create_task(receive(queue, wait_seconds=20))
    await asyncio.sleep(0.3)

    await queue.transport.send(QUEUE, [text("a")])

    assert bodies(await asyncio.wait_for(poll, 10)) == ["a"]


async def test_what_was_received_too_often_moves_to_the_dead_letter_queue(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("poison")])
    for _ in range(2):
        [message] = await receive(queue, wait_seconds=2)
        await queue.transport.change_visibility(QUEUE, [(message.receipt_handle, 0)])

    assert await receive(queue, wait_seconds=1) == []
    [dead] = await receive(queue, f"{QUEUE}-dlq", wait_seconds=2)

    assert dead.body == "poison"
    # An emulator may leave it out; AWS says where SQS itself moved a message from, and so does the one in memory.
    assert (dead.moved_from or f":{QUEUE}").endswith(f":{QUEUE}")
    assert dead.moved_from or not isinstance(queue.transport, MemoryTransport)


async def test_a_delayed_message_is_hidden_first(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text("later", delay_seconds=2), text("now")])

    assert bodies(await receive(queue, wait_seconds=1)) == ["now"]
    assert bodies(await receive(queue, wait_seconds=5)) == ["later"]


async def test_a_queue_that_does_not_exist_is_an_error_of_one_name(bus: Bus) -> None:
    with pytest.raises(TransportError) as caught:
        await receive(bus, "nowhere")

    assert (caught.value.code, caught.value.retryable) == ("QueueDoesNotExist", False)


@pytest.mark.differs(moto="moto takes characters that SQS refuses")
async def test_an_entry_with_bad_characters_fails_alone(queue: Bus) -> None:
    failures = await queue.transport.send(QUEUE, [text("good"), text("bad \x00"), text("fine")])

    assert [(failure.position, failure.retryable) for failure in failures] == [(1, False)]
    assert sorted(bodies(await receive_all(queue, 2))) == ["fine", "good"]


async def test_fault_41_a_group_on_a_standard_queue_orders_and_blocks_nothing(queue: Bus) -> None:
    await queue.transport.send(QUEUE, [text(str(number), group_id="tenant-1") for number in range(3)])

    messages = await receive_all(queue, 3)

    assert sorted(bodies(messages)) == ["0", "1", "2"]
    assert {message.group_id for message in messages} == {"tenant-1"}


async def test_a_group_is_received_in_order(fifo: Bus) -> None:
    await fifo.transport.send(LEDGER, [ordered(str(number), "a") for number in range(5)])

    received: list[str] = []
    while len(received) < 5:
        messages = await receive(fifo, LEDGER, wait_seconds=2)
        received += bodies(messages)
        await fifo.transport.delete(LEDGER, [message.receipt_handle for message in messages])

    assert received == ["0", "1", "2", "3", "4"]


async def test_a_group_waits_for_its_message_in_flight_and_other_groups_do_not(fifo: Bus) -> None:
    await fifo.transport.send(LEDGER, [ordered("a1", "a"), ordered("a2", "a"), ordered("b1", "b")])
    [first] = await receive(fifo, LEDGER, count=1)
    assert first.body == "a1"

    assert bodies(await receive(fifo, LEDGER, wait_seconds=2)) == ["b1"]
    await fifo.transport.delete(LEDGER, [first.receipt_handle])

    assert bodies(await receive(fifo, LEDGER, wait_seconds=2)) == ["a2"]


async def test_a_poll_ends_when_the_first_of_several_hidden_groups_becomes_visible(fifo: Bus) -> None:
    await fifo.transport.send(LEDGER, [ordered("a1", "a"), ordered("b1", "b")])
    found = {message.body: message.receipt_handle for message in await receive(fifo, LEDGER, wait_seconds=2)}
    await fifo.transport.change_visibility(LEDGER, [(found["a1"], 1), (found["b1"], 40)])

    assert bodies(await receive(fifo, LEDGER, wait_seconds=10)) == ["a1"]


async def test_a_group_that_is_released_together_comes_back_in_order(fifo: Bus) -> None:
    await fifo.transport.send(LEDGER, [ordered(body, "a") for body in ("1", "2", "3")])
    messages = await receive(fifo, LEDGER)

    await fifo.transport.change_visibility(LEDGER, [(message.receipt_handle, 0) for message in messages])

    again = await receive(fifo, LEDGER, wait_seconds=2)
    assert bodies(again) == ["1", "2", "3"][: len(again)]


async def test_the_same_deduplication_id_is_one_message(fifo: Bus) -> None:
    message = ordered("a1", "a")

    assert await fifo.transport.send(LEDGER, [message]) == []
    assert await fifo.transport.send(LEDGER, [message]) == []

    assert bodies(await receive(fifo, LEDGER)) == ["a1"]
    assert await receive(fifo, LEDGER) == []


async def test_fault_57_two_messages_equal_in_body_both_arrive(fifo: Bus) -> None:
    twins = [text("same", group_id="a", deduplication_id=str(number)) for number in range(2)]

    await fifo.transport.send(LEDGER, twins)

    received: list[Message] = []
    while len(received) < 2:
        received += await receive(fifo, LEDGER, wait_seconds=2)
        await fifo.transport.delete(LEDGER, [message.receipt_handle for message in received])


@pytest.mark.differs(ministack="ministack takes the delay for nothing")
async def test_a_message_for_a_fifo_queue_has_no_delay_of_its_own(fifo: Bus) -> None:
    try:
        failures = await fifo.transport.send(LEDGER, [ordered("a", "a")._replace(delay_seconds=5)])
    except TransportError as error:
        assert not error.retryable  # noqa: PT017 - a broker may refuse the whole call
    else:
        assert [failure.retryable for failure in failures] == [False]
