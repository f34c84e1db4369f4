"""The memory transport in virtual time."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from smartpipe import ConfigError, Event, Queue, Service, TransportError
from smartpipe.message import Attribute, Message, OutgoingMessage
from smartpipe.topology.derive import derive
from smartpipe.topology.resources import Topology
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.events import Paid, UserSignedUp
from tests.support.virtual_time import run_virtually


async def handle(_: Event) -> None: ...


def test_no_call_takes_time_except_a_poll_that_finds_nothing() -> None:
    async def main() -> None:
        service = Service("mailer")
        service.subscribe(UserSignedUp)(handle)
        transport = MemoryTransport()
        transport.apply(derive([service], NAMING))
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def receive() -> list[str]:
            found = await transport.receive("mailer", max_messages=10, wait_seconds=9, visibility_timeout_seconds=30)
            return [message.receipt_handle for message in found]

        await transport.publish("users", [OutgoingMessage("a", 1, {"type": Attribute("String", "member.signed_up")})])
        await transport.send("mailer", [OutgoingMessage("b", 1)])
        first, second = await receive()
        await transport.change_visibility("mailer", [(first, 0)])
        [again] = await receive()
        await transport.delete("mailer", [again, second])
        assert loop.time() == began

        assert await receive() == []
        assert loop.time() == began + 9

    run_virtually(main())


def test_a_poll_ends_as_soon_as_the_first_of_several_hidden_groups_becomes_visible() -> None:
    async def main() -> tuple[list[str], float]:
        service = Service("ledger", queue=Queue("ledger", fifo=True))
        service.subscribe(Paid)(handle)
        transport = MemoryTransport()
        transport.apply(derive([service], NAMING))
        for group in "ab":
            message = OutgoingMessage(group, 1, group_id=group, deduplication_id=group)
            await transport.send("ledger.fifo", [message])

        async def receive(wait_seconds: int) -> dict[str, str]:
            found = await transport.receive(
                "ledger.fifo", max_messages=10, wait_seconds=wait_seconds, visibility_timeout_seconds=30
            )
            return {message.body: message.receipt_handle for message in found}

        receipts = await receive(0)
        await transport.change_visibility("ledger.fifo", [(receipts["a"], 3), (receipts["b"], 8)])
        began = asyncio.get_running_loop().time()
        return list(await receive(20)), asyncio.get_running_loop().time() - began

    bodies, seconds = run_virtually(main())

    assert (bodies, round(seconds, 3)) == (["a"], 3.0)


QUEUE = NAMING.queue_arn("q")


def opened(**subscription: Any) -> MemoryTransport:
    """Return a transport with a topic, two queues, of which the first is subscribed, and a FIFO pair."""
    transport = MemoryTransport()
    topic, fifo = NAMING.topic_arn("t"), NAMING.topic_arn("t.fifo")
    transport.apply(
        Topology(
            {
                "topic": {topic: {}, fifo: {}},
                "queue": {QUEUE: {}, NAMING.queue_arn("other"): {}, NAMING.queue_arn("q.fifo"): {}},
                "subscription": {
                    (topic, QUEUE): subscription,
                    (topic, NAMING.queue_arn("missing")): {},
                    (fifo, NAMING.queue_arn("q.fifo")): {"RawMessageDelivery": "true"},
                    (fifo, NAMING.queue_arn("other")): {"RawMessageDelivery": "true"},
                },
            }
        )
    )
    return transport


async def take(transport: MemoryTransport, queue: str = "q", **options: Any) -> list[Message]:
    return await transport.receive(
        queue, **{"max_messages": 10, "wait_seconds": 0, "visibility_timeout_seconds": 30, **options}
    )


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_of_duplicates_is_below_one(share: float) -> None:
    with pytest.raises(ConfigError, match=f"duplicate_share={share} is outside"):
        MemoryTransport(duplicate_share=share)
    MemoryTransport(duplicate_share=0)
    MemoryTransport(duplicate_share=0.999)


async def test_a_topic_and_a_queue_are_found_by_name_and_by_arn() -> None:
    transport = opened()

    assert (transport.has_topic("t"), transport.has_topic("q")) == (True, False)
    assert transport.queue("q") is transport.queue(QUEUE)
    for call, code in (
        (transport.publish("none", []), "NotFound"),
        (transport.send("none", []), "QueueDoesNotExist"),
        (take(transport, "none"), "QueueDoesNotExist"),
        (transport.delete("none", []), "QueueDoesNotExist"),
        (transport.change_visibility("none", []), "QueueDoesNotExist"),
    ):
        with pytest.raises(TransportError) as caught:
            await call
        assert (caught.value.code, caught.value.retryable) == (code, False)


async def test_applying_a_topology_again_keeps_messages_and_changes_attributes() -> None:
    transport = opened()
    await transport.send("q", [OutgoingMessage("a", 1)])
    transport.apply(Topology({"queue": {QUEUE: {"DelaySeconds": "5"}}}))

    assert len(transport.queue("q")) == 1
    assert transport.queue("q").attributes == {"DelaySeconds": "5"}


async def test_a_message_is_wrapped_unless_its_subscription_is_raw() -> None:
    attributes = {"a": Attribute("String", "x"), "b": Attribute("Binary", b"\x00\xff")}
    message = OutgoingMessage("{}", 2, attributes, deduplication_id=None)
    for subscription in ({}, {"RawMessageDelivery": "false"}):
        transport = opened(**subscription)
        await transport.publish("t", [message])
        [wrapped] = await take(transport)
        fields = json.loads(wrapped.body)
        assert (fields["Type"], fields["Message"], fields["TopicArn"]) == ("Notification", "{}", NAMING.topic_arn("t"))
        assert fields["MessageAttributes"] == {
            "a": {"Type": "String", "Value": "x"},
            "b": {"Type": "Binary", "Value": "AP8="},
        }
        assert wrapped.attributes == {}
    transport = opened(RawMessageDelivery="true")
    await transport.publish("t", [message])

    [raw] = await take(transport)
    assert (raw.body, raw.attributes) == ("{}", attributes)


async def test_a_subscription_takes_only_the_messages_that_match_its_policy() -> None:
    transport = opened(RawMessageDelivery="true", FilterPolicy={"kind": ["a"]}, FilterPolicyScope="MessageAttributes")
    await transport.publish("t", [OutgoingMessage(kind, 1, {"kind": Attribute("String", kind)}) for kind in "aba"])

    assert [message.body for message in await take(transport)] == ["a", "a"]
    assert await take(transport, "other") == []


async def test_each_refused_entry_has_its_own_position() -> None:
    transport = opened()
    good, bad = OutgoingMessage("a", 1), OutgoingMessage("\0", 1)

    failures = await transport.send("q", [good, bad, good, bad])
    assert [(failure.position, failure.code) for failure in failures] == [
        (1, "InvalidMessageContents"), (3, "InvalidMessageContents"),
    ]  # fmt: skip
    receipts = [message.receipt_handle for message in await take(transport)]
    refused = await transport.delete("q", [receipts[0], "x", receipts[1], "y"])
    assert [failure.position for failure in refused] == [1, 3]
    refused = await transport.change_visibility("q", [("x", 5), (receipts[0], 5)])
    assert [(failure.position, failure.code) for failure in refused] == [
        (0, "ReceiptHandleIsInvalid"), (1, "MessageNotInflight"),
    ]  # fmt: skip


async def test_a_fifo_topic_needs_a_group_and_an_id_and_standard_queues_get_neither_order_nor_id() -> None:
    transport = opened()
    whole = OutgoingMessage("a", 1, group_id="g", deduplication_id="1")

    failures = await transport.publish(
        "t.fifo", [whole._replace(group_id=None), whole, whole._replace(deduplication_id=None)]
    )

    assert [(failure.position, failure.code) for failure in failures] == [
        (0, "InvalidParameter"), (2, "InvalidParameter"),
    ]  # fmt: skip
    assert [message.group_id for message in await take(transport, "q.fifo")] == ["g"]
    assert [message.group_id for message in await take(transport, "other")] == ["g"]
    assert transport.queue("other").contents()[0].content.deduplication_id is None


@pytest.mark.parametrize(("size", "allowed"), [(131_072, True), (131_073, False)])
async def test_a_batch_has_the_limit_of_its_topic_or_queue(size: int, allowed: bool) -> None:
    transport = opened(RawMessageDelivery="true")
    transport.apply(Topology({"queue": {QUEUE: {"MaximumMessageSize": "262144"}}}))
    messages = [OutgoingMessage("a", 131_072), OutgoingMessage("b", size)]

    for call in (transport.publish, transport.send):
        name = "t" if call == transport.publish else "q"
        if allowed:
            assert await call(name, messages) == []
        else:
            with pytest.raises(TransportError, match="the batch is longer than 262144 bytes"):
                await call(name, messages)


def test_a_poll_takes_at_most_ten_messages_and_twenty_seconds() -> None:
    async def main() -> None:
        transport, loop = opened(), asyncio.get_running_loop()
        began = loop.time()
        assert await take(transport, wait_seconds=3_600) == []
        assert loop.time() == began + 20

        await transport.send("q", [OutgoingMessage(str(number), 1) for number in range(12)])
        assert len(await take(transport, max_messages=100)) == 10
        assert len(await take(transport, max_messages=1)) == 1

    run_virtually(main())


def test_a_poll_ends_with_the_next_message_however_that_becomes_visible() -> None:
    async def main() -> list[tuple[str, float]]:
        transport, loop = opened(RawMessageDelivery="true"), asyncio.get_running_loop()
        began, seen = loop.time(), list[tuple[str, float]]()
        receipt = ""
        await transport.send("q", [OutgoingMessage("delayed", 1, delay_seconds=3)])
        for _ in range(4):
            polling = asyncio.create_task(take(transport, wait_seconds=20, visibility_timeout_seconds=20))
            await asyncio.sleep(0.5)
            if len(seen) == 1:
                await asyncio.sleep(4.5)
                await transport.publish("t", [OutgoingMessage("published", 1)])
            elif len(seen) == 2:
                await asyncio.sleep(1.5)
                await transport.change_visibility("q", [(receipt, 0)])
            [message] = await polling
            receipt = message.receipt_handle
            seen.append((message.body, loop.time() - began))
        return seen

    assert run_virtually(main()) == [("delayed", 3), ("published", 8), ("published", 10), ("delayed", 23)]


def test_times_of_a_message_are_unix_times_and_its_lease_is_on_the_clock_of_the_loop() -> None:
    async def main() -> tuple[Message, Message]:
        transport = opened()
        await transport.send("q", [OutgoingMessage("a", 1)])
        await asyncio.sleep(5)
        [first] = await take(transport, visibility_timeout_seconds=7)
        [second] = await take(transport, wait_seconds=20)
        return first, second

    first, second = run_virtually(main())

    assert first.sent_at is not None
    assert first.first_received_at is not None
    assert abs(first.sent_at - time.time()) < 600
    assert first.first_received_at == pytest.approx(first.sent_at + 5)
    assert (second.sent_at, second.first_received_at) == (first.sent_at, first.first_received_at)
    assert second.received_at == first.received_at + 7
    assert (first.receive_count, second.receive_count) == (1, 2)
