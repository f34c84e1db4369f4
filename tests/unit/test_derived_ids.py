"""What a handler publishes has the same ids at every attempt, so consumers recognise it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from smartpipe import (
    Batch,
    BatchDelivery,
    Delivery,
    Event,
    Idempotency,
    Publisher,
    PublishError,
    Queue,
    RetryPolicy,
    Service,
    Topic,
)
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.ids import DerivedIds, current_cause
from smartpipe.testing import MemoryBroker
from smartpipe.testing.records import Published
from tests.support.fakes import FakeTransport, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.envelope import Envelope


class Asked(Event, topic=Topic("derived"), type="derived.asked", version="1.0"):
    order_id: str = "1"


class Charged(Event, topic=Topic("derived"), type="derived.charged", version="1.0"):
    attempt: int = 0


class Mailed(Event, topic=Topic("derived"), type="derived.mailed", version="1.0", key="address"):
    address: str
    attempt: int = 0


class Booked(Event, topic=Topic("derived-ledger", fifo=True), type="derived.booked", version="1.0", key="account"):
    account: str = "a"


def service_of(*functions: Callable[..., Any], name: str = "billing", **options: Any) -> Service:
    service = Service(name, retry=RetryPolicy(attempts=5, base_seconds=0), unknown_events="ignore")
    for function in functions:
        service.subscribe(Asked, **options)(function)
    return service


def ids(broker: MemoryBroker, event: type[Event]) -> list[str | None]:
    return [one.event_id for one in broker.transport.records if isinstance(one, Published) and type(one.event) is event]


async def play(*services: Service, body: str | None = None) -> MemoryBroker:
    """Let the services handle one event."""
    async with MemoryBroker(*services) as broker:
        for service in services:
            await broker.send(service.queue.name, body or encode(wrap(Asked(), source="shop")))
        await broker.drain()
        broker.assert_nothing_dead_lettered()
    return broker


def failing(times: int) -> Callable[[], None]:
    """Return what raises the first times that it is called."""
    calls: list[None] = []

    def fail() -> None:
        calls.append(None)
        if len(calls) <= times:
            raise ValueError("not yet")

    return fail


@pytest.mark.parametrize("idempotent", [True, False])
async def test_an_event_that_is_published_before_each_of_three_failures_has_one_id(idempotent: bool) -> None:
    fail = failing(3)

    async def charge(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged(attempt=delivery.receive_count))
        fail()

    broker = await play(service_of(charge, idempotent=idempotent))

    assert len(ids(broker, Charged)) == 4
    assert len(set(ids(broker, Charged))) == 1


async def test_an_equal_event_published_because_of_another_event_has_another_id() -> None:
    async def charge(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged())

    service = service_of(charge)
    async with MemoryBroker(service) as broker:
        await broker.publish(Asked())
        await broker.publish(Asked())
        await broker.drain()

        assert len(set(ids(broker, Charged))) == 2


@pytest.mark.parametrize("idempotent", [True, False])
async def test_handlers_services_and_queues_derive_ids_of_their_own(idempotent: bool) -> None:
    async def one(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged())
        await delivery.publish(Charged())

    async def other(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged())

    billing = service_of(one, other, idempotent=idempotent)
    billing.subscribe(Asked, queue="urgent", idempotent=idempotent)(one)
    mailing = service_of(one, name="mailing", idempotent=idempotent)
    body = encode(wrap(Asked(), source="shop"))
    async with MemoryBroker(billing, mailing) as broker:
        for queue in ("billing", "urgent", "mailing"):
            await broker.send(queue, body)
        await broker.drain()

        assert len(ids(broker, Charged)) == 7
        assert len(set(ids(broker, Charged))) == 7


async def test_handlers_of_one_name_derive_ids_of_their_own() -> None:
    def forwarding(attempt: int) -> Callable[..., Awaitable[None]]:
        async def forward(_: Asked, delivery: Delivery) -> None:
            await delivery.publish(Charged(attempt=attempt))

        return forward

    broker = await play(service_of(forwarding(1), forwarding(2)))

    assert len(set(ids(broker, Charged))) == 2


async def test_ids_depend_on_type_key_and_queue_and_not_on_the_order_between_them() -> None:
    fail = failing(4)
    seen: list[dict[str, str]] = []

    async def mail(_: Asked, delivery: Delivery) -> None:
        found = {}
        publishing = [
            ("charged", Charged(attempt=delivery.receive_count), None),
            ("queued", Charged(attempt=delivery.receive_count), "elsewhere"),
            *((name, Mailed(address=name, attempt=delivery.receive_count), None) for name in "abc"),
        ]
        random.shuffle(publishing)

        async def publish(name: str, event: Event, queue: str | None) -> None:
            found[name] = await delivery.publish(event, queue=queue)

        await asyncio.gather(*(publish(*one) for one in publishing))
        seen.append(found)
        fail()

    async def ignore(_: Charged) -> None: ...

    elsewhere = Service("elsewhere", queue=Queue("elsewhere", direct=True))
    elsewhere.subscribe(Charged)(ignore)
    async with MemoryBroker(service_of(mail), elsewhere) as broker:
        await broker.publish(Asked())
        await broker.drain()

    assert len(seen) == 5
    assert all(found == seen[0] for found in seen)
    assert len(set(seen[0].values())) == 5


async def test_a_publisher_in_a_handler_and_publish_many_derive_too() -> None:
    fail = failing(2)
    seen: list[list[str]] = []

    async def charge(_: Asked) -> None:
        async with Publisher("elsewhere") as publisher:
            report = await publisher.publish_many([Charged(), Charged(), Mailed(address="a")])
            seen.append([*report.event_ids, await publisher.publish(Charged())])
        fail()

    await play(service_of(charge))

    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 4


async def test_a_middleware_that_retries_publishes_the_same_ids_again_and_its_own_ids_differ() -> None:
    fail = failing(2)

    async def again(delivery: Delivery, call_next: Callable[[Delivery], Awaitable[None]]) -> None:
        await delivery.publish(Charged(attempt=-1))
        while True:
            try:
                return await call_next(delivery)
            except ValueError:
                continue

    async def charge(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged(attempt=1))
        fail()

    service = Service("billing", middleware=[again])
    service.subscribe(Asked)(charge)
    broker = await play(service)
    before, *rest = ids(broker, Charged)

    assert len(rest) == 3
    assert len(set(rest)) == 1
    assert before not in rest


async def test_an_event_handled_again_after_its_claim_expired_leads_to_new_ids() -> None:
    """As with one mail an hour for each order: consumers remember for longer, and would drop the second."""

    async def charge(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Charged())

    service = service_of(charge, idempotent=Idempotency(key="order_id", ttl_seconds=3_600))
    async with MemoryBroker(service) as broker:
        for _ in range(3):
            await broker.publish(Asked())
            await broker.publish(Asked())
            await broker.drain()
            await asyncio.sleep(3_700)

        assert len(ids(broker, Charged)) == 3
        assert len(set(ids(broker, Charged))) == 3


@pytest.mark.parametrize("idempotent", [True, False])
async def test_an_item_publishes_the_same_ids_in_every_batch_that_it_is_part_of(idempotent: bool) -> None:
    batches: list[dict[str, str]] = []
    sizes: list[int] = []

    async def charge(events: list[Asked], batch: BatchDelivery) -> None:
        sizes.append(len(events))
        batches.append({item.event_id: await item.publish(Charged()) for item in batch.deliveries})
        if len(batches) < 4:
            for index in range(len(events) - 1):  # all but the last come again
                batch.fail(index, ValueError("not yet"))

    service = Service("billing", retry=RetryPolicy(base_seconds=0, attempts=9))
    service.subscribe(Asked, batch=Batch(size=5, linger_seconds=1), idempotent=idempotent)(charge)
    async with MemoryBroker(service) as broker:
        for _ in range(5):
            await broker.publish(Asked())
        await broker.drain()

    assert len(set(sizes)) > 1
    found: dict[str, set[str]] = {}
    for one in batches:
        for event_id, published in one.items():
            found.setdefault(event_id, set()).add(published)
    assert [len(published) for published in found.values()] == [1] * 5
    assert len(set.union(*found.values())) == 5


async def test_a_batch_publishes_the_same_ids_if_the_same_events_are_batched_again() -> None:
    seen: list[tuple[frozenset[str], str, str]] = []

    async def charge(_: list[Asked], batch: BatchDelivery) -> None:
        async with Publisher("ambient") as publisher:
            ambient = await publisher.publish(Charged())
        together = frozenset(item.event_id for item in batch.deliveries)
        seen.append((together, ambient, await batch.publish(Charged())))
        if len(seen) < 3:
            raise ValueError("not yet")
        if len(seen) == 3:
            batch.fail(0, ValueError("this one alone"))

    service = Service("billing", retry=RetryPolicy(base_seconds=0, attempts=9))
    service.subscribe(Asked, batch=Batch(size=3, linger_seconds=1))(charge)
    async with MemoryBroker(service, shuffle=True) as broker:
        for _ in range(3):
            await broker.publish(Asked())
        await broker.drain()

    assert [len(together) for together, *_ in seen] == [3, 3, 3, 1]
    assert seen[0] == seen[1] == seen[2]
    assert len({seen[0][1], seen[0][2], seen[3][1], seen[3][2]}) == 4


async def test_a_fifo_topic_drops_the_event_published_again_at_the_second_attempt() -> None:
    fail, booked = failing(2), []

    async def charge(_: Asked, delivery: Delivery) -> None:
        await delivery.publish(Booked())
        fail()

    async def book(event: Booked) -> None:
        booked.append(event)

    ledger = Service("ledger", queue=Queue("ledger", fifo=True))
    ledger.subscribe(Booked)(book)
    async with MemoryBroker(service_of(charge), ledger) as broker:
        await broker.publish(Asked())
        await broker.drain()

        assert len(ids(broker, Booked)) == 3
    assert len(booked) == 1


async def of(cause: Envelope) -> str:
    """Return the id of what is published by a handler of *cause*."""
    found: list[str] = []

    async def charge(_: Asked, delivery: Delivery) -> None:
        found.append(await delivery.publish(Charged()))

    await play(service_of(charge), body=encode(cause))
    return found[0]


async def test_a_derived_id_is_a_uuid_version_8_that_keeps_the_time_of_its_cause() -> None:
    cause = wrap(Asked(), source="shop")
    derived = await of(cause)
    of_derived = await of(cause._replace(id=derived))

    for one in (derived, of_derived):
        assert UUID(one).version == 8
        assert UUID(one).variant == "specified in RFC 4122"
        assert one[:13] == cause.id[:13]
    assert derived != of_derived


@pytest.mark.parametrize("foreign", ["4711", "", "../x", "é", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "x" * 256])
async def test_a_cause_with_any_id_always_leads_to_the_same_uuid(foreign: str) -> None:
    cause = wrap(Asked(), source="a|b")._replace(id=foreign or "0")

    first, second = await of(cause), await of(cause)

    assert first == second
    assert UUID(first).version == 8


async def test_events_published_outside_of_handlers_have_new_ids_each_time() -> None:
    async with MemoryBroker() as broker:
        first, second = await broker.publish(Charged()), await broker.publish(Charged())

    assert first != second
    assert UUID(first).version == UUID(second).version == 7


class Copy:
    """A delivery of one event, of which there are several at once."""

    def __init__(self) -> None:
        self.calls = 1
        self.ids: DerivedIds | None = None

    def derive_ids(self) -> DerivedIds:
        return DerivedIds("one event", call=self.calls)


async def test_of_two_events_with_one_id_in_a_request_only_the_refused_one_fails() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(1)])

    async def publish(publisher: Publisher) -> str:
        current_cause.set(Copy())
        return await publisher.publish(Charged())

    async with Publisher("test", transport=transport) as publisher:
        one, other = await asyncio.gather(publish(publisher), publish(publisher), return_exceptions=True)

    assert isinstance(other, PublishError)
    assert [failure.event_id for failure in other.failures] == [one]
