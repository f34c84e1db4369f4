"""What every transport has to do with a topic: copy each message to the queues whose filter it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Event, FilterPolicy, Publisher, Queue, Service, TransportError
from smartpipe.message import OutgoingMessage
from tests.support.events import ADA, Clicked, OrderPlaced, Paid, UserLeft, UserSignedUp

if TYPE_CHECKING:
    from smartpipe.message import Message
    from tests.conformance.conftest import Bus


async def handle(_: Event) -> None: ...


def service(name: str, *events: type[Event], fifo: bool = False) -> Service:
    made = Service(name, queue=Queue(name, fifo=fifo))
    for event in events:
        made.subscribe(event)(handle)
    return made


async def take(bus: Bus, queue: str, *, wait_seconds: int = 2) -> list[Message]:
    found: list[Message] = []
    while messages := await bus.transport.receive(
        queue, max_messages=10, wait_seconds=wait_seconds, visibility_timeout_seconds=30
    ):
        found += messages
        await bus.transport.delete(queue, [message.receipt_handle for message in messages])
        wait_seconds = 1
    return found


async def publish(bus: Bus, *events: Event, **options: Any) -> list[str]:
    async with Publisher("test", transport=bus.transport) as publisher:
        return (await publisher.publish_many(events, **options)).event_ids


async def test_an_event_is_copied_to_every_queue_that_wants_its_type_and_to_no_other(bus: Bus) -> None:
    await bus.provision(
        service("a", UserSignedUp), service("b", UserSignedUp, UserLeft), service("c", UserLeft, OrderPlaced)
    )

    await publish(bus, ADA)

    assert [len(await take(bus, name)) for name in "abc"] == [1, 1, 0]


async def test_a_body_arrives_raw_with_its_type_and_attributes(bus: Bus) -> None:
    await bus.provision(service("a", UserSignedUp))

    [event_id] = await publish(bus, ADA, attributes={"tenant": "zoë"})

    [message] = await take(bus, "a")
    assert f'"id":"{event_id}"' in message.body
    assert {name: value.value for name, value in message.attributes.items()} == {
        "type": "member.signed_up",
        "tenant": "zoë",
    }


async def test_a_fifo_topic_keeps_the_order_of_each_key(bus: Bus) -> None:
    await bus.provision(service("ledger", Paid, fifo=True))

    await publish(bus, *(Paid(account=account, number=number) for number in range(4) for account in "ab"))

    messages = await take(bus, "ledger.fifo")
    for account in "ab":
        mine = [message.body for message in messages if message.group_id == account]
        assert [body.rpartition('"number":')[2] for body in mine] == [f"{number}}}}}" for number in range(4)]


async def test_a_fifo_topic_also_feeds_standard_queues(bus: Bus) -> None:
    await bus.provision(service("ledger", Paid, fifo=True), service("audit", Paid))

    await publish(bus, Paid(account="a"))

    assert [len(await take(bus, name)) for name in ("ledger.fifo", "audit")] == [1, 1]


@pytest.mark.differs(ministack="its PublishBatch drops the group on standard topics")
async def test_a_tenant_arrives_as_the_group_of_a_standard_queue(bus: Bus) -> None:
    await bus.provision(service("clicks", Clicked))

    await publish(bus, Clicked(shop="shop-1"))

    [message] = await take(bus, "clicks")
    assert message.group_id == "shop-1"


async def test_an_event_sent_to_one_queue_reaches_only_that(bus: Bus) -> None:
    await bus.provision(service("a", UserSignedUp), service("b", UserSignedUp))

    await publish(bus, ADA, queue="b")

    assert [len(await take(bus, name)) for name in "ab"] == [0, 1]


async def test_a_topic_that_does_not_exist_is_an_error_of_one_name(bus: Bus) -> None:
    with pytest.raises(TransportError) as caught:
        await bus.transport.publish("nowhere", [OutgoingMessage("{}", 2)])

    assert (caught.value.code, caught.value.retryable) == ("NotFound", False)


async def test_a_message_without_a_group_on_a_fifo_topic_is_refused_and_would_be_again(bus: Bus) -> None:
    await bus.provision(service("ledger", Paid, fifo=True))

    try:
        failures = await bus.transport.publish("ledger.fifo", [OutgoingMessage("{}", 2, deduplication_id="1")])
    except TransportError as error:
        assert not error.retryable  # noqa: PT017 - a broker may refuse the whole call
    else:
        assert [failure.retryable for failure in failures] == [False]
    assert await take(bus, "ledger.fifo", wait_seconds=1) == []


async def receive_filtered(bus: Bus, conditions: dict[str, Any], *published: dict[str, Any]) -> list[str]:
    """Publish an event with each set of attributes; return the attribute ``amount`` of those that arrive."""
    filtered = Service("a", queue=Queue("a", filter_policy=FilterPolicy(conditions)))
    filtered.subscribe(UserSignedUp)(handle)
    await bus.provision(filtered)
    for attributes in published:
        await publish(bus, ADA, attributes=attributes)
    return sorted(str(message.attributes["amount"].value) for message in await take(bus, "a"))


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"amount": [{"numeric": ["<", 20]}]}, ["12.5"]),
        ({"amount": [{"numeric": [">=", 12.5, "<=", 20]}]}, ["12.5", "20"]),
        ({"amount": [20]}, ["20"]),
        ({"tags": ["b"]}, ["12.5"]),
        ({"tags": ["missing"]}, []),
    ],
    ids=str,
)
async def test_filters_compare_numbers_and_the_elements_of_lists(
    bus: Bus, conditions: dict[str, Any], expected: list[str]
) -> None:
    cheap, dear = {"amount": 12.5, "tags": ["a", "b"]}, {"amount": 20, "tags": ["a", "cc"]}

    assert await receive_filtered(bus, conditions, cheap, dear) == expected


@pytest.mark.differs(moto="it does not look for prefixes in lists")
async def test_an_operator_is_met_by_any_element_of_a_list(bus: Bus) -> None:
    one, other = {"amount": 1, "tags": ["a", "bb"]}, {"amount": 2, "tags": ["a", "cc"]}

    assert await receive_filtered(bus, {"tags": [{"prefix": "c"}]}, one, other) == ["2"]


@pytest.mark.differs(ministack="it reads text as a number")
async def test_a_text_is_no_number_to_a_filter(bus: Bus) -> None:
    found = await receive_filtered(bus, {"amount": [{"numeric": ["<", 20]}]}, {"amount": "12.5"}, {"amount": 7})

    assert found == ["7"]


async def test_numbers_and_lists_arrive_with_their_types_from_topics_and_queues(bus: Bus) -> None:
    await bus.provision(service("a", UserSignedUp))
    attributes = {"amount": 12.5, "tags": ["ü", 1, True, None]}

    await publish(bus, ADA, attributes=attributes)
    await publish(bus, ADA, attributes=attributes, queue="a")

    for message in await take(bus, "a"):
        assert {name: message.attributes[name].parsed for name in attributes} == attributes
