"""Checked by mypy, never run: each ``type: ignore`` stands where a user's mistake must be a type error.

mypy warns of an ignore that is not needed, so that ``make check`` fails when the mistake passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe import Batch, BatchDelivery, Delivery, Event, Publisher, Service
from smartpipe.middleware import Logging, Next, Timeout
from tests.support.events import ADA, UserLeft, UserSignedUp, users

if TYPE_CHECKING:
    from smartpipe.publisher.prepare import Publication

service = Service("typed")


@service.subscribe(UserSignedUp)
async def right(event: UserSignedUp) -> None: ...


@service.subscribe(UserSignedUp)
async def right_with_delivery(event: UserSignedUp, delivery: Delivery) -> None:
    event_id: str = await delivery.publish(UserLeft(name=event.name))
    assert event_id
    await delivery.publish(UserLeft(name=event.name), queue="leavers", delay_seconds=3, attributes={"tenant": "acme"})
    await delivery.publish(UserLeft(name=event.name), delay=3)  # type: ignore[call-arg]
    await delivery.publish(UserLeft(name=event.name), queue=3)  # type: ignore[arg-type]


@service.subscribe(UserSignedUp)
def right_and_sync(event: Event) -> int:
    return 5


@service.subscribe(UserSignedUp)  # type: ignore[arg-type]
async def wrong_event(event: UserLeft) -> None: ...


@service.subscribe(UserSignedUp)  # type: ignore[arg-type]
async def no_event() -> None: ...


@service.subscribe(UserSignedUp, batch=Batch(size=5))
async def right_batch(events: list[UserSignedUp], batch: BatchDelivery) -> None:
    batch.fail(0, ValueError())
    batch.fail("first", ValueError())  # type: ignore[arg-type]


@service.subscribe(UserSignedUp, batch=Batch())  # type: ignore[arg-type]
async def wrong_batch(event: UserSignedUp) -> None: ...


@service.subscribe(UserSignedUp)  # type: ignore[arg-type]
async def batch_without_saying_so(events: list[UserSignedUp]) -> None: ...


class Member(Event, topic=users):
    name: str


class Joined(Member, type="typed.joined", version="1.0"):
    pass


@service.subscribe(Member)
async def right_base(event: Member, delivery: Delivery) -> None: ...


@service.subscribe(Member, batch=Batch())
async def right_batch_of_base(events: list[Member]) -> None: ...


@service.subscribe(Member)  # type: ignore[arg-type]
async def wrong_subclass_of_base(event: Joined) -> None: ...


@service.subscribe(Joined | UserLeft)
async def right_union(event: Joined | UserLeft, delivery: Delivery) -> str:
    return event.name


@service.subscribe(Joined | UserLeft, batch=Batch(), concurrency=3)
async def right_batch_of_union(events: list[Joined | UserLeft]) -> None: ...


@service.subscribe(Joined | UserLeft, concurrency="many")  # type: ignore[call-overload, untyped-decorator]
async def wrong_option_of_union(event: Joined | UserLeft) -> None: ...


async def call_handlers(joined: Joined, delivery: Delivery) -> None:
    name: str = await right_union(joined, delivery)
    await right_base(joined, name)  # type: ignore[arg-type]


@service.subscribe(UserSignedUp, concurrency="many")  # type: ignore[call-overload, untyped-decorator]
async def wrong_option(event: UserSignedUp) -> None: ...


async def around_handlers(delivery: Delivery, call_next: Next[Delivery, None]) -> None:
    await call_next(delivery)


async def around_publishes(publication: Publication, call_next: Next[Publication, str]) -> str:
    return await call_next(publication)


Service("wrapped", middleware=[around_handlers, Logging(), Timeout(3)])
Service("wrapped", middleware=[around_publishes])  # type: ignore[list-item]
Publisher("wrapped", middleware=[around_publishes, Logging(), Timeout(3)])


async def publishing(publisher: Publisher) -> None:
    event_id: str = await publisher.publish(ADA)
    ids: list[str] = (await publisher.publish_many([ADA, UserLeft(name=event_id)])).event_ids
    assert ids
    await publisher.publish(ADA, queue="mailer", delay_seconds=5)
    await publisher.publish({"name": "Ada"})  # type: ignore[arg-type]
