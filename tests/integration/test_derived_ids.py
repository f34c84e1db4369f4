"""Ids that are the same at every attempt, by way of a real database and from the threads of sync handlers."""

from __future__ import annotations

import json
import os
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING

import boto3
from sqlalchemy import create_engine

from smartpipe import Delivery, Event, RetryPolicy, Service, Topic
from smartpipe.blocking import Publisher
from smartpipe.envelope import encode, wrap
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.outbox import Outbox
from smartpipe.testing import MemoryBroker
from tests.integration.test_inbox import run
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    import asyncpg
    import pytest

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues


class OrderPlaced(Event, topic=Topic("derived-orders"), type="derived.order_placed", version="1.0"):
    order_id: str = "1"


class Charged(Event, topic=Topic("derived-orders"), type="derived.order_charged", version="1.0"):
    attempt: int = 0


async def outbox_ids(database: asyncpg.Connection) -> list[str]:
    return [row["event_id"] for row in await database.fetch("SELECT event_id FROM smartpipe_outbox ORDER BY id")]


async def test_an_event_added_to_the_outbox_in_the_deliverys_transaction_has_one_id(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    service, outbox, seen = Service("inbox", retry=RetryPolicy(attempts=9, base_seconds=0)), Outbox("inbox"), []

    @service.subscribe(OrderPlaced, idempotent=True, concurrency=1)
    async def charge(_: OrderPlaced, delivery: Delivery) -> None:
        async with delivery.transaction() as connection:
            event = Charged(attempt=delivery.receive_count)
            seen.append(await outbox.publish(event, connection=connection))
            if len(seen) < 3:
                raise ValueError("before the commit")

    transport = FakeTransport()
    [message] = transport.put(OrderPlaced())
    for count in (2, 3):
        transport._inbox.append(message._replace(receipt_handle=str(count), receive_count=count))
    await run(service, postgres_url, transport, 1)

    assert len(seen) == 3
    assert await outbox_ids(database) == [seen[0]] == [seen[2]]


async def test_so_have_events_that_a_sync_handler_adds_through_sqlalchemy_or_publishes(
    database: asyncpg.Connection, postgres_url: str, fast_broker: EmbeddedBroker, queues: Queues
) -> None:
    boto3.client("sqs").create_queue(QueueName=f"{os.environ['SMARTPIPE_PREFIX']}derived")
    service = Service("derived-sync", retry=RetryPolicy(attempts=9, base_seconds=0))
    engine, outbox = create_engine(postgres_url.replace("://", "+psycopg://", 1)), Outbox("sync")
    seen: list[str] = []

    with Publisher("sync") as publisher:

        @service.subscribe(OrderPlaced)
        def charge(_: OrderPlaced) -> None:
            with engine.begin() as connection:
                outbox.publish_blocking(Charged(), connection=connection)
            threads = [threading.Thread(target=copy_context().run, args=(_publish, publisher, seen)) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            publisher.publish_many([Charged(attempt=1), Charged(attempt=2)], queue="derived")
            if len(seen) < 15:
                raise ValueError("not yet")

        async with MemoryBroker(service, virtual=False) as broker:
            await broker.send("derived-sync", encode(wrap(OrderPlaced(), source="test")))
            await broker.drain()
    engine.dispose()

    sent = [json.loads(message["Body"])["id"] for message in queues.take("derived")]
    assert len(sent) == 21
    assert len(set(sent)) == 7
    written = await outbox_ids(database)
    assert len(written) == 3
    assert len(set(written)) == 1


def _publish(publisher: Publisher, seen: list[str]) -> None:
    seen.append(publisher.publish(Charged(), queue="derived"))


async def test_a_store_that_is_passed_to_a_worker_uses_the_environment_too(
    database: asyncpg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    service = Service("inbox")

    @service.subscribe(OrderPlaced, idempotent=True)
    async def charge(event: OrderPlaced) -> None:
        runs.append(event.order_id)

    body = encode(wrap(OrderPlaced(), source="test"))
    for prefix in ("one-", "two-", "one-"):
        monkeypatch.setenv("SMARTPIPE_PREFIX", prefix)
        transport = FakeTransport()
        transport.put(body)
        await run(service, postgres_url, transport, 1, store=PostgresStore(postgres_url))

    assert len(runs) == 2
