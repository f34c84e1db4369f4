"""The inbox: a handler's writes and its completion are one transaction of a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from smartpipe import Delivery, RetryPolicy, Service
from smartpipe.consumer.guard import ClaimLost
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.settings import WorkerSettings
from smartpipe.worker.worker import Worker
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("DROP TABLE IF EXISTS inbox_effects; CREATE TABLE inbox_effects (name text)")
    yield connection
    await connection.execute("DROP TABLE inbox_effects")
    await connection.close()


async def effects(database: asyncpg.Connection) -> int:
    found: int = await database.fetchval("SELECT count(*) FROM inbox_effects")
    return found


async def run(
    service: Service, url: str, transport: FakeTransport, deletes: int, store: PostgresStore | None = None
) -> Worker:
    """Let a worker handle what has been put, until so many messages are deleted."""
    settings = WorkerSettings.load(port=0, host="127.0.0.1", wait_seconds=1)
    worker = Worker(service, transport, settings, store=store or PostgresStore(url, prefix=f"{id(transport)}-"))
    running = asyncio.create_task(worker.run())
    await until(lambda: len(transport.entries("delete")) >= deletes or running.done())
    worker.stop()
    await running
    return worker


async def test_a_commit_counts_although_the_handler_fails_afterwards(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    service = Service("inbox", retry=RetryPolicy(attempts=5, base_seconds=0))
    runs: list[int] = []

    @service.subscribe(UserSignedUp, idempotent=True, concurrency=1)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        runs.append(delivery.receive_count)
        async with delivery.transaction() as connection:
            await connection.execute("INSERT INTO inbox_effects VALUES ($1)", event.name)
        raise ValueError("after the commit")

    transport = FakeTransport()
    [message] = transport.put(ADA)
    transport._inbox.append(message._replace(receipt_handle="again", receive_count=2))
    worker = await run(service, postgres_url, transport, 1)

    assert runs == [1]
    assert await effects(database) == 1
    assert worker.consumers[0].counters.deduplicated == 1


async def test_a_failure_before_the_commit_leaves_nothing_and_is_retried(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    service = Service("inbox", retry=RetryPolicy(attempts=5, base_seconds=0))
    runs: list[int] = []

    @service.subscribe(UserSignedUp, idempotent=True, concurrency=1)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        runs.append(delivery.receive_count)
        async with delivery.transaction() as connection:
            await connection.execute("INSERT INTO inbox_effects VALUES ($1)", event.name)
            if len(runs) == 1:
                raise ValueError("before the commit")

    transport = FakeTransport()
    [message] = transport.put(ADA)
    transport._inbox.append(message._replace(receipt_handle="again", receive_count=2))
    await run(service, postgres_url, transport, 1)

    assert len(runs) == 2
    assert await effects(database) == 1


async def test_a_worker_that_lost_its_claim_commits_nothing(database: asyncpg.Connection, postgres_url: str) -> None:
    service = Service("inbox", retry=RetryPolicy(attempts=5, base_seconds=0))
    raised: list[BaseException] = []

    @service.subscribe(UserSignedUp, idempotent=True)
    async def handle(event: UserSignedUp, delivery: Delivery) -> None:
        try:
            async with delivery.transaction() as connection:
                await connection.execute("INSERT INTO inbox_effects VALUES ($1)", event.name)
                await database.execute("DELETE FROM smartpipe_claims")  # as if another had taken it over
        except ClaimLost as error:
            raised.append(error)
            raise

    transport = FakeTransport()
    transport.put(ADA)
    settings = WorkerSettings.load(port=0, host="127.0.0.1", wait_seconds=1)
    worker = Worker(service, transport, settings, store=PostgresStore(postgres_url, prefix="lost-"))
    running = asyncio.create_task(worker.run())
    await until(lambda: raised)
    worker.stop()
    await running

    assert await effects(database) == 0
    assert transport.entries("delete") == []
