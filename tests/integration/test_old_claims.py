"""Claims of an earlier version, whose keys lack the service and the queue: no worker ignores them silently."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import boto3
import pytest
import redis

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.store import Claimed, Completed
from smartpipe.idempotency.stores.migrate import migrate, read_migrations
from tests.support.places import claim_of
from tests.support.processes import smartpipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import PostgresServer, RedisServer

OLD_KEY = "staging-app.handlers.on_order_placed|shop|4711"
OLD_CLAIM = """
INSERT INTO smartpipe_claims VALUES ($1, 'token', $2, 1, now() + $3 * interval '1 s', now() + $4 * interval '1 s')
"""
WEEK = 604_800.0


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database that an earlier version has migrated."""
    with postgres_server.database() as url:
        execute(url, read_migrations()["0001_claims"])
        yield url


def execute(url: str, statement: str, *arguments: Any) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()

    asyncio.run(run())


async def opened(url: str) -> Any:
    store = open_store(url)
    try:
        await store.open()
    except BaseException:
        await store.aclose()
        raise
    return store


def test_postgresql_is_not_opened_before_its_operator_has_migrated_it(database: str) -> None:
    execute(database, OLD_CLAIM, OLD_KEY, "completed", 0.0, WEEK)

    with pytest.raises(ConfigError, match="lacks 0003_keys_of_claims: run smartpipe store migrate"):
        asyncio.run(opened(database))


@pytest.mark.parametrize(("state", "lease"), [("completed", 0.0), ("held", 60.0)])
def test_a_migration_fails_while_there_are_old_claims_unless_they_may_be_forgotten(
    database: str, state: str, lease: float
) -> None:
    execute(database, OLD_CLAIM, OLD_KEY, state, lease, WEEK)

    stopped = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=database)
    still = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=database)
    forgot = smartpipe("store", "migrate", "--forget-old-claims", SMARTPIPE_IDEMPOTENCY_URL=database)

    for refused in (stopped, still):
        assert refused.returncode != 0
        [line] = refused.stderr.splitlines()
        assert "This database has 1 claims of an earlier version, the last of which expires at 20" in line
        assert "its handler will run again" in line
        assert line.endswith("run smartpipe store migrate --forget-old-claims")
    assert forgot.returncode == 0, forgot.stderr
    assert "0003_keys_of_claims" in forgot.stdout
    asyncio.run(claimed_and_completed(database))


@pytest.mark.parametrize(
    ("state", "lease", "memory"), [("released", 0.0, WEEK), ("held", -1.0, WEEK), ("completed", 0.0, -1.0)]
)
def test_what_an_earlier_version_would_claim_again_itself_stops_no_migration(
    database: str, state: str, lease: float, memory: float
) -> None:
    execute(database, OLD_CLAIM, OLD_KEY, state, lease, memory)

    assert "0003_keys_of_claims" in asyncio.run(migrate(database))
    asyncio.run(claimed_and_completed(database))


def test_a_worker_of_an_earlier_version_claims_nothing_any_more(database: str) -> None:
    asyncio.run(migrate(database))

    with pytest.raises(asyncpg.CheckViolationError, match="smartpipe_claims_need_a_newer_worker"):
        execute(database, OLD_CLAIM, OLD_KEY, "held", 30.0, WEEK)


def test_a_migration_that_is_run_again_by_hand_forgets_nothing(database: str) -> None:
    asyncio.run(migrate(database))
    asyncio.run(claimed_and_completed(database))

    execute(database, read_migrations()["0003_keys_of_claims"])

    assert asyncio.run(outcome(database)) == Completed()


async def claimed_and_completed(url: str) -> None:
    store, claim = await opened(url), claim_of("claim/staging-/billing/billing/app.charge/order.placed/id/shop/4711")
    assert await store.claim([claim]) == [Claimed(1)]
    assert await store.complete([claim]) == [True]
    await store.aclose()


async def outcome(url: str) -> Any:
    store = await opened(url)
    [found] = await store.read(["claim/staging-/billing/billing/app.charge/order.placed/id/shop/4711"])
    await store.aclose()
    return found


@pytest.fixture
def cache(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """An empty database of Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.config_resetstat()
        yield client
        client.flushall()


@pytest.mark.parametrize("state", ["completed", "held"])
async def test_redis_with_claims_of_an_earlier_version_is_refused_until_they_are_deleted(
    redis_server: RedisServer, cache: redis.Redis, state: str
) -> None:
    cache.mset({f"other:{number}": "x" for number in range(3_000)})  # more than a step of the scan
    cache.hset(f"smartpipe:{OLD_KEY}", mapping={"state": state, "token": "x", "attempt": 1, "until": 0})

    for _ in range(2):
        with pytest.raises(ConfigError, match="its handler will run again.*redis-cli -u URL --scan --pattern"):
            await opened(redis_server.url)

    cache.delete(f"smartpipe:{OLD_KEY}")
    await (await opened(redis_server.url)).aclose()


async def test_redis_is_scanned_once_and_what_others_keep_there_does_not_matter(
    redis_server: RedisServer, cache: redis.Redis
) -> None:
    cache.set("smartpipe:not|ours", "text")
    cache.hset("app.handlers|shop|4711", "state", "completed")
    cache.hset(f"smartpipe:{OLD_KEY}", mapping={"state": "released", "token": "x", "attempt": 1, "until": 0})

    for _ in range(2):
        await (await opened(redis_server.url)).aclose()

    stats: Any = cache.info("commandstats")
    assert stats["cmdstat_scan"]["calls"] == 1


async def test_dynamodb_keeps_claims_of_an_earlier_version_in_a_table_of_another_shape(dynamodb_url: str) -> None:
    table, client = f"claims-{uuid4().hex[:8]}", boto3.client("dynamodb")
    client.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    store = open_store(f"dynamodb://{table}")

    with pytest.raises(ConfigError, match="has claims of an earlier version.*its effect happens again.*name another"):
        await store.open()
    await store.aclose()
    with pytest.raises(StoreError):
        await store.claim([claim_of("order-1")])
    client.delete_table(TableName=table)
    client.close()
