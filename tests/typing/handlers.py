"""Checked by mypy, never run: each ``type: ignore`` stands where a user's mistake must be a type error.

mypy warns of an ignore that is not needed, so that ``make check`` fails when the mistake passes.
"""

from __future__ import annotations

from smartpipe import Delivery, Event, Publisher, Service
from tests.support.events import ADA, UserLeft, UserSignedUp

service = Service("typed")


@service.subscribe(UserSignedUp)
async def right(event: UserSignedUp) -> None: ...


@service.subscribe(UserSignedUp)
async def right_with_delivery(event: UserSignedUp, delivery: Delivery) -> None:
    event_id: str = await delivery.publish(UserLeft(name=event.name))
    assert event_id


@service.subscribe(UserSignedUp)
def right_and_sync(event: Event) -> int:
    return 5


@service.subscribe(UserSignedUp)  # type: ignore[arg-type]
async def wrong_event(event: UserLeft) -> None: ...


@service.subscribe(UserSignedUp)  # type: ignore[arg-type]
async def no_event() -> None: ...


async def publishing(publisher: Publisher) -> None:
    event_id: str = await publisher.publish(ADA)
    ids: list[str] = (await publisher.publish_many([ADA, UserLeft(name=event_id)])).event_ids
    assert ids
    await publisher.publish({"name": "Ada"})  # type: ignore[arg-type]
