"""The services under test. Their effects are rows in a table, and a file can hold handlers at certain points."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from smartpipe import Batch, BatchDelivery, Delivery, Event, Queue, RetryPolicy, Service, Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = """
CREATE TABLE chaos_effects (
    place bigint GENERATED ALWAYS AS IDENTITY, service text NOT NULL, handler text NOT NULL, event_id text NOT NULL,
    account text NOT NULL, number int NOT NULL
)
"""
EFFECT = "INSERT INTO chaos_effects (service, handler, event_id, account, number) VALUES ($1, $2, $3, $4, $5)"
DIRECTORY = Path(os.environ.get("CHAOS_DIR", "."))
LEASE_SECONDS = 5

events = Topic("chaos")
ordered_events = Topic("chaos", fifo=True)


class ChaosEvent(Event):
    number: int
    account: str
    seconds: float = 0.0


class Booked(ChaosEvent, topic=events, type="chaos.booked", version="1.0"): ...


class Mailed(ChaosEvent, topic=events, type="chaos.mailed", version="1.0"): ...


class BookedInOrder(ChaosEvent, topic=ordered_events, type="chaos.booked_in_order", version="1.0", key="account"): ...


class MailedInOrder(ChaosEvent, topic=ordered_events, type="chaos.mailed_in_order", version="1.0", key="account"): ...


class Form(NamedTuple):
    """Services, and the events that they handle.

    Args:
        services: The services by their attributes in *module*. In the crash matrix, each handles every event.
    """

    services: dict[str, Service]
    booked: type[ChaosEvent]
    mailed: type[ChaosEvent]
    module: str = __name__


def make_service(name: str, *publishes: type[ChaosEvent], fifo: bool = False) -> Service:
    return Service(
        name,
        queue=Queue(name, visibility_timeout_seconds=LEASE_SECONDS, fifo=fifo),
        retry=RetryPolicy(attempts=20, base_seconds=0.5, max_seconds=3),
        publishes=publishes,
    )


single = make_service("chaos", Booked, Mailed)
batch = make_service("chaos", Booked, Mailed)
fifo = make_service("chaos", BookedInOrder, MailedInOrder, fifo=True)
twin = make_service("chaos-twin", Booked, Mailed)
BATCH = Batch(size=10, linger_seconds=0.2)
FORMS = {
    "single": Form({"single": single}, Booked, Mailed),
    "batch": Form({"batch": batch}, Booked, Mailed),
    "fifo": Form({"fifo": fifo}, BookedInOrder, MailedInOrder),
    "twins": Form({"single": single, "twin": twin}, Booked, Mailed),
}


async def book(event: ChaosEvent, delivery: Delivery) -> None:
    """Insert a row in the transaction of the claim."""
    async with delivery.transaction() as connection:
        await connection.execute(
            EFFECT, delivery.service, "transaction", delivery.event_id, event.account, event.number
        )
        await asyncio.sleep(event.seconds)
        await wait_while_held("before")
    await wait_while_held("after")


async def mail(event: ChaosEvent, delivery: Delivery) -> None:
    """Insert a row on a separate connection."""
    await asyncio.sleep(event.seconds)
    await wait_while_held("before")
    connection = await asyncpg.connect(os.environ["CHAOS_DATABASE_URL"])
    try:
        await connection.execute(EFFECT, delivery.service, "plain", delivery.event_id, event.account, event.number)
    finally:
        await connection.close(timeout=5)
    await wait_while_held("after")


for service in (single, twin):
    service.subscribe(Booked, idempotent=True)(book)
    service.subscribe(Mailed, idempotent=True)(mail)
fifo.subscribe(BookedInOrder, idempotent=True)(book)
fifo.subscribe(MailedInOrder, idempotent=True)(mail)


@batch.subscribe(Booked, batch=BATCH, idempotent=True)
async def book_all(events: Sequence[Booked], deliveries: BatchDelivery) -> None:
    for event, delivery in zip(events, deliveries.deliveries, strict=True):
        await book(event, delivery)


@batch.subscribe(Mailed, batch=BATCH, idempotent=True)
async def mail_all(events: Sequence[Mailed], deliveries: BatchDelivery) -> None:
    for event, delivery in zip(events, deliveries.deliveries, strict=True):
        await mail(event, delivery)


async def wait_while_held(point: str) -> None:
    """Wait while the file for *point* exists, and create a file that reports this process."""
    hold = DIRECTORY / f"hold-{point}"
    if hold.exists():
        (DIRECTORY / f"at-{point}-{os.getpid()}").touch()
    while hold.exists():  # noqa: ASYNC110 - another process deletes the file
        await asyncio.sleep(0.02)
