"""Checked by mypy, never run: the state of a service has its type, and a wrong context of an event is a type error.

No type checker checks the arguments of a class statement, such as topic="users", if the class has a metaclass, and
Pydantic's models have one. They are checked when the module is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_type

from smartpipe import Batch, BatchDelivery, Delivery, Event, Publisher, Service, Topic

if TYPE_CHECKING:
    from datetime import datetime

    from smartpipe.outbox import Outbox

users = Topic("users")


class Right(Event, topic=users, type="right", version="1.0", key="name"):
    name: str


class RightWithOptionsOfPydantic(Event, topic=users, type="right.config", version="1.0", title="Right", extra="forbid"):
    name: str


@dataclass
class State:
    limit: int


service = Service("typed")


@service.subscribe(Right)
async def with_state(event: Right, delivery: Delivery[State]) -> None:
    assert_type(delivery.state, State)
    assert_type(delivery.state.limit, int)
    delivery.state.limits  # type: ignore[attr-defined]  # noqa: B018


@service.subscribe(Right)
async def without_state(event: Right, delivery: Delivery) -> None:
    assert_type(delivery.state, Any)


@service.subscribe(Right, batch=Batch())
async def batch_with_state(events: list[Right], batch: BatchDelivery[State]) -> None:
    assert_type(batch.state, State)
    assert_type(batch.deliveries[0].state, State)


async def contexts(publisher: Publisher, delivery: Delivery, outbox: Outbox, connection: Any, now: datetime) -> None:
    event = Right(name="Ada")
    await publisher.publish(event, event_id="1", time=now, traceparent=None, correlation_id="2", causation_id="3")
    await delivery.publish(event, event_id="1", time=now)
    await outbox.publish(event, connection=connection, event_id="1", correlation_id="2")
    await publisher.publish_many([event], time=now, traceparent=None, correlation_id="2")
    await publisher.publish_many([event], event_id="1")  # type: ignore[call-arg]
    await publisher.publish(event, time="now")  # type: ignore[arg-type]
    await publisher.publish(event, event_id=7)  # type: ignore[arg-type]
    await publisher.publish(event, correlationid="2")  # type: ignore[call-arg]


class Upcast(Event, topic=users, type="upcast", version="3.0"):
    name: str


@Upcast.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return data


@Upcast.upcast(from_version="2", to_version="3", topic=users)
def _(data: dict[str, Any]) -> dict[str, Any]:
    return data


@Upcast.upcast(from_version="1")
def named(data: dict[str, Any]) -> dict[str, Any]:
    return data


assert_type(named({}), dict[str, Any])


@Upcast.upcast(from_version=1)  # type: ignore[arg-type]
def with_number(data: dict[str, Any]) -> dict[str, Any]:
    return data


@Upcast.upcast(from_version="1")  # type: ignore[type-var]
async def is_async(data: dict[str, Any]) -> dict[str, Any]:
    return data


@Upcast.upcast(from_version="1")  # type: ignore[type-var]
def takes_event(event: Right) -> dict[str, Any]:
    return {}


@Upcast.upcast(from_version="1")  # type: ignore[type-var]
def returns_event(data: dict[str, Any]) -> Right:
    return Right(name="")
