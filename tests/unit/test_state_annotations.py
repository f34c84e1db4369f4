"""``Delivery[State]``: the annotation that gives type checkers the type of ``delivery.state``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import pytest

from smartpipe import Batch, BatchDelivery, ConfigError, Delivery, Service
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    class OnlyForTypeCheckers: ...


class State:
    limit = 7


async def lifespan() -> AsyncIterator[State]:
    yield State()


async def plain(event: UserSignedUp, delivery: Delivery[State]) -> None:
    assert delivery.state.limit == 7


async def swapped(delivery: Delivery[State], event: UserSignedUp) -> None:
    assert delivery.state.limit == 7


async def optional(event: UserSignedUp, delivery: Optional[Delivery[State]]) -> None:  # noqa: UP045 - both forms
    assert delivery is not None
    assert delivery.state.limit == 7


async def union(event: UserSignedUp, delivery: Delivery[State] | None) -> None:
    assert delivery is not None
    assert delivery.state.limit == 7


async def unknown(event: UserSignedUp, delivery: Delivery[OnlyForTypeCheckers]) -> None:
    assert isinstance(delivery.state, State)


async def with_a_dependency(event: UserSignedUp, delivery: Delivery[State], state: State) -> None:
    assert delivery.state is state


def in_a_thread(event: UserSignedUp, delivery: Delivery[State]) -> None:
    assert delivery.state.limit == 7


async def batch(events: list[UserSignedUp], batch: BatchDelivery[State]) -> None:
    assert batch.state.limit == 7
    assert batch.deliveries[0].state.limit == 7


HANDLERS = [plain, swapped, optional, union, unknown, with_a_dependency, in_a_thread, batch]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_parameter_with_the_type_of_the_state_takes_the_delivery(handler: Any) -> None:
    service = Service("mailer", lifespan=lifespan)
    options: dict[str, Any] = {"batch": Batch(size=1)} if handler is batch else {}
    service.subscribe(UserSignedUp, **options)(handler)

    async with MemoryBroker(service) as broker:
        await broker.publish(ADA)
        await broker.drain()

        broker.assert_nothing_dead_lettered()
        assert len(broker.handled(UserSignedUp)) == 1


def test_the_wrong_kind_of_delivery_is_refused_with_a_type_argument_too() -> None:
    service = Service("mailer", lifespan=lifespan)
    subscribe: Any = service.subscribe

    async def one(event: UserSignedUp, delivery: BatchDelivery[State]) -> None: ...

    async def many(events: list[UserSignedUp], delivery: Delivery[State]) -> None: ...

    with pytest.raises(ConfigError, match="only a batch handler takes a BatchDelivery"):
        subscribe(UserSignedUp)(one)
    with pytest.raises(ConfigError, match="a batch handler takes a BatchDelivery"):
        subscribe(UserSignedUp, batch=Batch())(many)
