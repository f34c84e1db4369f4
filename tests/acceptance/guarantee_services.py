"""Services of ``test_guarantees.py``, which run in worker processes. They append each step to a file."""

from __future__ import annotations

import asyncio
import os
import time

from smartpipe import Delivery, Event, Queue, RetryPolicy, Service, Topic
from tests.acceptance.services import note

LEASE_SECONDS = int(os.environ.get("ACCEPTANCE_LEASE", "30"))
guarantees = Topic("guarantees")


class Ordered(Event, topic=guarantees, type="guarantee.ordered", version="1.0"):
    """Its handler works for *seconds*, blocks the event loop for *blocks*, publishes, and fails *fails* times."""

    name: str
    seconds: float = 0.0
    blocks: float = 0.0
    fails: int = 0
    publishes: bool = False


class Followed(Event, topic=guarantees, type="guarantee.followed", version="1.0"):
    name: str


class Moved(Event, topic=Topic("guarantees", fifo=True), type="guarantee.moved", version="1.0", key="account"):
    """Its handler fails *fails* times."""

    account: str
    number: int
    fails: int = 0


def make_service(name: str, *, fifo: bool = False) -> Service:
    return Service(
        name,
        queue=Queue(name, visibility_timeout_seconds=LEASE_SECONDS, fifo=fifo),
        retry=RetryPolicy(attempts=3, base_seconds=0),
        publishes=[Ordered, Followed, Moved],
    )


service = make_service("guarantees")
claiming = make_service("guarantees-claiming")
ordering = make_service("guarantees-ordering", fifo=True)
SERVICES = (service, claiming, ordering)


@service.subscribe(Ordered)
async def work(event: Ordered, delivery: Delivery) -> None:
    note(f"begun {event.name} {delivery.event_id} {delivery.receive_count}")
    if event.publishes:
        await delivery.publish(Followed(name=event.name))
    if delivery.receive_count <= event.fails:
        raise ValueError(f"{event.name} fails")
    time.sleep(event.blocks)  # noqa: ASYNC251 - some tests are about this
    await asyncio.sleep(event.seconds)
    note(f"done {event.name} {delivery.event_id} {delivery.receive_count}")


@claiming.subscribe(Ordered, idempotent=True)
async def work_once(event: Ordered, delivery: Delivery) -> None:
    note(f"claimed {event.name} {delivery.event_id}")


@ordering.subscribe(Moved)
async def move(event: Moved, delivery: Delivery) -> None:
    if delivery.receive_count <= event.fails:
        raise ValueError(f"{event.number} fails")
    note(f"moved {event.account} {event.number}")
