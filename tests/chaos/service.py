"""The service that is hindered. Its effects are rows; at certain points its handlers can be held by a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg

from smartpipe import Delivery, Event, Queue, RetryPolicy, Service, Topic

TABLE = "CREATE TABLE chaos_effects (handler text NOT NULL, event_id text NOT NULL)"
EFFECT = "INSERT INTO chaos_effects (handler, event_id) VALUES ($1, $2)"
DIRECTORY = Path(os.environ.get("CHAOS_DIR", "."))
LEASE_SECONDS = 5

happenings = Topic("chaos")


class Booked(Event, topic=happenings, type="chaos.booked", version="1.0"):
    number: int
    seconds: float = 0.0


class Mailed(Event, topic=happenings, type="chaos.mailed", version="1.0"):
    number: int
    seconds: float = 0.0


service = Service(
    "chaos",
    queue=Queue("chaos", visibility_timeout_seconds=LEASE_SECONDS),
    retry=RetryPolicy(attempts=20, base_seconds=0.5, max_seconds=3),
    publishes=[Booked, Mailed],
)


@service.subscribe(Booked, idempotent=True)
async def book(event: Booked, delivery: Delivery) -> None:
    async with delivery.transaction() as connection:
        await connection.execute(EFFECT, "transaction", delivery.event_id)
        await asyncio.sleep(event.seconds)
        await held("before")
    await held("after")


@service.subscribe(Mailed, idempotent=True)
async def mail(event: Mailed, delivery: Delivery) -> None:
    await asyncio.sleep(event.seconds)
    await held("before")
    connection = await asyncpg.connect(os.environ["CHAOS_DATABASE_URL"])
    try:
        await connection.execute(EFFECT, "plain", delivery.event_id)
    finally:
        await connection.close(timeout=5)
    await held("after")


async def held(point: str) -> None:
    """Wait here while the driver wishes it, and tell it who is here."""
    hold = DIRECTORY / f"hold-{point}"
    if hold.exists():
        (DIRECTORY / f"at-{point}-{os.getpid()}").touch()
    while hold.exists():  # noqa: ASYNC110 - the driver is another process
        await asyncio.sleep(0.02)
