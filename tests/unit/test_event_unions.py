"""One handler for several events: a union of them, or their base class."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any, Generic, TypeVar, Union

import pytest

from smartpipe import (
    Batch,
    CircuitBreaker,
    ConfigError,
    Delivery,
    Event,
    Idempotency,
    Queue,
    Retry,
    RetryPolicy,
    Service,
)
from smartpipe.cli.targets import load_events
from smartpipe.consumer.handlers import handlers_by_event
from smartpipe.events import declared_events
from smartpipe.testing import MemoryBroker
from smartpipe.topology.derive import derive
from smartpipe.topology.export.asyncapi import build_document
from smartpipe.transports.memory.transport import NAMING
from tests.support.events import Paid, UserLeft, UserSignedUp, orders

T = TypeVar("T")


class OrderEvent(Event, topic=orders, key="order_id"):
    order_id: str


class Placed(OrderEvent, type="unions.placed", version="1.0"):
    pass


class PlacedAgain(OrderEvent, type="unions.placed", version="2.0"):
    pass


class Cancelled(OrderEvent, type="unions.cancelled", version="1.0"):
    pass


class Renamed(Placed, type="unions.renamed", version="1.0"):
    pass


class Unused(Event, topic=orders):
    pass


class Changed(Event, Generic[T], topic=orders):
    value: T


class PriceChanged(Changed[int], type="unions.price_changed", version="1.0"):
    pass


class NameChanged(Changed[str], type="unions.name_changed", version="1.0"):
    pass


async def take_order(event: OrderEvent) -> None: ...
async def takes_any(event: Event) -> None: ...


def subscribed(event: Any, function: Any = take_order, **options: Any) -> Service:
    service = Service("sales")
    service.subscribe(event, **options)(function)
    return service


def events_of(service: Service) -> list[type[Event]]:
    return list(handlers_by_event(service.handlers))


@pytest.mark.parametrize(("subscription", "events"), [
    (Placed | Cancelled, [Placed, Cancelled]),
    (Cancelled | Placed | Cancelled, [Cancelled, Placed]),
    (Union[Placed, Cancelled], [Placed, Cancelled]),  # noqa: UP007 - an older way to write it
    (OrderEvent, [Cancelled, Placed, PlacedAgain, Renamed]),  # by type and major version
    (Cancelled | OrderEvent, [Cancelled, Placed, PlacedAgain, Renamed]),
    (Placed, [Placed]),  # it declares a type, so the events that extend it are not meant
])  # fmt: skip
def test_a_handler_takes_each_event_of_a_union_or_of_a_base_class(subscription: Any, events: list[type[Event]]) -> None:
    service = subscribed(subscription)

    assert events_of(service) == events
    assert [binding.contracts for binding in service.bindings] == [tuple(event.__contract__ for event in events)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type X = ...` is a statement of Python 3.12")
def test_a_union_may_have_a_name() -> None:
    names: dict[str, Any] = {"Placed": Placed, "Cancelled": Cancelled}
    exec("type Inner = Placed | Cancelled\ntype Named = Inner | Placed", names)

    assert events_of(subscribed(names["Named"])) == [Placed, Cancelled]


def test_an_event_that_is_declared_after_the_handler_is_handled() -> None:
    class Late(Event, topic=orders): ...

    service = subscribed(Late, takes_any)

    class First(Late, type="unions.late", version="1.0"): ...

    assert events_of(service) == [First]
    assert declared_events(Late) == (First,)


def test_the_filter_policy_and_the_documents_name_every_event() -> None:
    service = subscribed(Placed | Cancelled)

    [subscription] = derive([service], NAMING).subscriptions.values()
    assert subscription["FilterPolicy"] == {"type": ["unions.cancelled", "unions.placed"]}
    document = str(build_document([service], prefix="", application="shop"))
    assert "unions.cancelled" in document
    assert "unions.placed" in document


@pytest.mark.parametrize(("subscription", "sentence"), [
    (Placed | None, "write @service.subscribe(UserSignedUp)"),
    (Placed | int, "write @service.subscribe(UserSignedUp)"),
    ([Placed], "write @service.subscribe(UserSignedUp)"),
    (Event, "subscribe(Event) would depend on the modules that a process has imported"),
    (Placed | Event, "subscribe(Event) would depend on"),
])  # fmt: skip
def test_anything_else_is_refused(subscription: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        subscribed(subscription)

    assert sentence in str(caught.value)


def test_a_base_class_of_no_event_is_reported_when_the_service_is_used() -> None:
    service = subscribed(Unused, takes_any)

    with pytest.raises(ConfigError, match="Unused is the base class of no event: declare a subclass"):
        _ = service.bindings


def test_the_topic_of_each_event_must_fit_the_queue() -> None:
    class Late(Event): ...

    queue = Queue("sales", fifo=True)
    with pytest.raises(ConfigError, match=r"queue 'sales.fifo' is FIFO and topic 'users' is not"):
        subscribed(Paid | UserLeft, takes_any, queue=queue)
    service = subscribed(Late, takes_any, queue=queue)

    class Standard(Late, topic=orders, type="unions.standard", version="1.0"): ...

    with pytest.raises(ConfigError, match=r"queue 'sales.fifo' is FIFO and topic 'orders' is not"):
        _ = service.bindings


async def takes_placed(event: Placed) -> None: ...
async def takes_union(event: Placed | Cancelled, delivery: Delivery) -> None: ...
async def takes_list(events: list[Placed | Cancelled]) -> None: ...
async def takes_list_of_base(events: list[OrderEvent]) -> None: ...
async def takes_nothing() -> None: ...
async def takes_changed(event: Changed[Any]) -> None: ...
async def takes_price(event: Changed[int]) -> None: ...


@pytest.mark.parametrize(("subscription", "function", "error"), [
    (Placed | Cancelled, takes_union, None),
    (Placed | Cancelled, take_order, None),
    (Placed | Cancelled, takes_placed, "takes Placed, but the handler is subscribed to Placed | Cancelled"),
    (OrderEvent, takes_placed, "takes Placed, but the handler is subscribed to OrderEvent"),
    (OrderEvent, takes_union, "takes Placed | Cancelled, but the handler is subscribed to OrderEvent"),
    (Placed | Cancelled, takes_nothing, "takes no event; write (event: Placed | Cancelled)"),
    (Placed | Cancelled, takes_list, "subscribe it with batch=Batch(...)"),
    (Changed, takes_changed, None),
    (Changed[int], takes_changed, None),
    (Changed[int], takes_price, None),
    (PriceChanged, takes_changed, None),
    (PriceChanged | NameChanged, takes_changed, None),
    (Changed, takes_price, "but the handler is subscribed to Changed"),
    (NameChanged, takes_price, "takes Changed[int], but the handler is subscribed to NameChanged"),
])  # fmt: skip
def test_the_parameter_must_take_every_event(subscription: Any, function: Any, error: str | None) -> None:
    if error is None:
        subscribed(subscription, function)
        return
    with pytest.raises(ConfigError) as caught:
        subscribed(subscription, function)

    assert error in str(caught.value)


@pytest.mark.parametrize(("subscription", "function", "error"), [
    (Placed | Cancelled, takes_list, None),
    (Placed | Cancelled, takes_list_of_base, None),
    (OrderEvent, takes_list_of_base, None),
    (OrderEvent, takes_list, "takes Placed | Cancelled, but the handler is subscribed to OrderEvent"),
    (Placed | Cancelled, takes_union, "write list[Placed | Cancelled]"),
])  # fmt: skip
def test_the_list_of_a_batch_handler_must_take_every_event(subscription: Any, function: Any, error: str | None) -> None:
    if error is None:
        subscribed(subscription, function, batch=Batch())
        return
    with pytest.raises(ConfigError) as caught:
        subscribed(subscription, function, batch=Batch())

    assert error in str(caught.value)


@pytest.mark.parametrize("subscription", [Placed | Cancelled, OrderEvent])
async def test_one_handler_handles_each_of_the_events(subscription: Any) -> None:
    service, seen = Service("sales"), list[str]()

    async def take(event: OrderEvent, delivery: Delivery) -> None:
        seen.append(f"{type(event).__name__} {delivery.handler.rpartition('.')[2]}")

    service.subscribe(subscription)(take)
    async with MemoryBroker(service) as broker:
        await broker.publish(Placed(order_id="1"))
        await broker.publish(Cancelled(order_id="1"))
        await broker.drain()

        assert [len(broker.handled(event)) for event in (Placed, Cancelled, OrderEvent)] == [1, 1, 2]
    assert sorted(seen) == ["Cancelled take", "Placed take"]


async def test_the_subclasses_of_a_generic_event_have_one_handler() -> None:
    service, seen = Service("prices"), list[object]()

    @service.subscribe(Changed)
    async def take(event: Changed[Any]) -> None:
        seen.append(event.value)

    async with MemoryBroker(service) as broker:
        await broker.publish(PriceChanged(value=5))
        await broker.publish(NameChanged(value="x"))
        await broker.drain()

    assert sorted(seen, key=str) == [5, "x"]


async def test_the_events_of_a_handler_share_its_concurrency() -> None:
    service, running, most = Service("sales"), 0, 0

    @service.subscribe(Placed | Cancelled, concurrency=2)
    async def take(event: OrderEvent) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    assert service.slots(10) == 2
    async with MemoryBroker(service) as broker:
        for number in range(4):
            await broker.publish(Placed(order_id=str(number)))
            await broker.publish(Cancelled(order_id=str(number)))
        await broker.drain()

    assert most == 2


def test_the_slots_of_a_handler_count_once_and_those_of_others_beside_it() -> None:
    service = subscribed(Placed | Cancelled, concurrency=3)
    service.subscribe(Placed, concurrency=5)(takes_placed)
    assert service.slots(10) == 3 + 5  # five calls for Placed, and three for Cancelled

    batches = subscribed(Placed | Cancelled, takes_list, batch=Batch(size=50), concurrency=2)
    assert batches.slots(10) == 100


async def test_a_batch_has_events_of_several_classes() -> None:
    service, batches = Service("sales"), list[list[str]]()

    @service.subscribe(Placed | Cancelled, batch=Batch(size=4, linger_seconds=5))
    async def take(events: list[Placed | Cancelled]) -> None:
        batches.append(sorted(type(event).__name__ for event in events))

    async with MemoryBroker(service) as broker:
        for number in range(2):
            await broker.publish(Placed(order_id=str(number)))
            await broker.publish(Cancelled(order_id=str(number)))
        await broker.drain()

    assert batches == [["Cancelled", "Cancelled", "Placed", "Placed"]]


async def test_the_events_of_a_handler_share_its_breaker() -> None:
    service, calls = Service("sales", retry=RetryPolicy(attempts=10)), Counter[str]()

    @service.subscribe(Placed | Cancelled, breaker=CircuitBreaker(failures=2, reset_seconds=60))
    async def take(event: OrderEvent) -> None:
        calls[type(event).__name__] += 1
        raise ConnectionError

    async with MemoryBroker(service) as broker:
        await broker.publish(Placed(order_id="1"))
        await broker.publish(Cancelled(order_id="1"))
        await asyncio.sleep(30)

    assert calls == {"Placed": 1, "Cancelled": 1}  # one failure each has opened the circuit


async def test_each_event_has_claims_of_its_own() -> None:
    service, seen = Service("sales"), list[str]()

    @service.subscribe(OrderEvent, idempotent=Idempotency(key="order_id"))
    async def take(event: OrderEvent) -> None:
        seen.append(type(event).__name__)

    async with MemoryBroker(service) as broker:
        for event in (Placed(order_id="1"), Cancelled(order_id="1"), Placed(order_id="1")):
            await broker.publish(event)
            await broker.drain()

    assert seen == ["Placed", "Cancelled"]


async def test_a_second_handler_of_one_of_the_events_runs_after_the_first() -> None:
    service, seen = Service("sales"), list[str]()

    @service.subscribe(Placed | Cancelled)
    async def first(event: OrderEvent) -> None:
        seen.append(f"first {type(event).__name__}")

    @service.subscribe(Placed)
    async def second(event: Placed, delivery: Delivery) -> None:
        seen.append("second Placed")
        if delivery.receive_count == 1:
            raise Retry(after_seconds=1)

    async with MemoryBroker(service) as broker:
        await broker.publish(Placed(order_id="1"))
        await broker.drain()

    assert seen == ["first Placed", "second Placed"] * 2


@pytest.mark.parametrize(("one", "other"), [
    (OrderEvent, Placed), (Placed, OrderEvent), (Placed | UserLeft, Placed | Cancelled), (OrderEvent, OrderEvent)
])  # fmt: skip
def test_an_idempotent_function_cannot_be_subscribed_twice_to_an_event(one: Any, other: Any) -> None:
    service = subscribed(one, takes_any, idempotent=True)

    with pytest.raises(ConfigError, match="already has a handler of this name for"):
        service.subscribe(other, idempotent=True)(takes_any)
    service.subscribe(UserSignedUp, idempotent=True)(takes_any)


def test_an_idempotent_function_may_be_subscribed_to_an_event_and_to_one_that_extends_it() -> None:
    service = subscribed(Placed, idempotent=True)
    service.subscribe(Renamed, idempotent=True)(take_order)

    assert [len(handlers) for handlers in handlers_by_event(service.handlers).values()] == [1, 1]


def test_a_function_that_is_subscribed_twice_to_an_event_gets_a_number() -> None:
    service = subscribed(OrderEvent)
    service.subscribe(Placed)(take_order)
    service.subscribe(Placed | Cancelled)(take_order)
    service.subscribe(UserSignedUp)(takes_any)

    assert [handler.name.rpartition(".")[2] for handler in service.handlers] == [
        "take_order", "take_order#2", "take_order#3", "takes_any",
    ]  # fmt: skip


def test_one_function_of_two_base_classes_must_not_get_an_event_twice() -> None:
    class One(Event, topic=orders): ...

    class Two(Event, topic=orders): ...

    service = subscribed(One, takes_any)
    service.subscribe(Two)(takes_any)

    class InBoth(One, Two, type="unions.in_both", version="1.0"): ...

    with pytest.raises(ConfigError, match=r"two base classes of .*InBoth, and would handle it twice"):
        _ = service.bindings


def test_a_targets_events_are_those_of_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "service", subscribed(OrderEvent), raising=False)

    expected = [Cancelled, Placed, PlacedAgain, Renamed]
    assert load_events([f"{__name__}:service"]) == load_events([f"{__name__}:OrderEvent"]) == expected
    with pytest.raises(ConfigError, match=":Event has no events"):
        load_events([f"{__name__}:Event"])


async def test_the_parameters_of_a_lifespan_are_found_beside_a_union() -> None:
    seen = list[object]()

    async def lifespan() -> Any:
        yield {"limit": 5}

    service = Service("sales", lifespan=lifespan)

    @service.subscribe(Placed | Cancelled)
    async def take(event: Placed | Cancelled, limit: int) -> None:
        seen.append((event.order_id, limit))

    async with MemoryBroker(service) as broker:
        await broker.publish(Placed(order_id="1"))
        await broker.drain()

    assert seen == [("1", 5)]
