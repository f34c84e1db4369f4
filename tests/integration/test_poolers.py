"""Claims, migrations and the outbox through PgBouncer, in each of its modes, and what a direct connection keeps."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed
from smartpipe.idempotency.stores.migrate import migrate, read_migrations
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.outbox import Outbox, Relay, RelayOptions
from tests.support.events import ADA
from tests.support.fakes import FakeTransport
from tests.support.places import claim_of
from tests.support.servers import PgBouncer, pgbouncer_program
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.servers import PostgresServer

needs_pgbouncer = pytest.mark.skipif(pgbouncer_program() is None, reason="pgbouncer is not installed")


@pytest.fixture(scope="module")
def poolers(postgres_server: PostgresServer) -> Iterator[dict[str, PgBouncer]]:
    with (
        PgBouncer(postgres_server, "transaction") as transaction,
        PgBouncer(postgres_server, "session") as session,
        PgBouncer(postgres_server, "statement") as statement,
    ):
        yield {"transaction": transaction, "session": session, "statement": statement}


@pytest.fixture(params=["transaction", "session"])
def pooled_url(
    request: pytest.FixtureRequest, poolers: dict[str, PgBouncer], postgres_server: PostgresServer
) -> Iterator[str]:
    """An empty database, through a pooler."""
    with postgres_server.database() as url:
        yield url.replace(str(postgres_server.directory), str(poolers[request.param].directory))


@pytest.fixture
async def stores(pooled_url: str) -> AsyncIterator[list[PostgresStore]]:
    """Two stores of the same database, as of two processes."""
    await migrate(pooled_url)
    stores = [PostgresStore(pooled_url) for _ in range(2)]
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.aclose()


@needs_pgbouncer
async def test_through_a_pooler_migrations_run_once_however_many_run_them(pooled_url: str) -> None:
    done = await asyncio.gather(*(migrate(pooled_url) for _ in range(3)))

    assert sorted(done) == [[], [], list(read_migrations())]


@needs_pgbouncer
async def test_through_a_pooler_every_verb_works_for_many_at_once(stores: list[PostgresStore]) -> None:
    async def handle(number: int) -> bool:
        store, claim = stores[number % 2], claim_of(f"order-{number}")
        assert await store.claim([claim]) == [Claimed(1)]
        assert await store.renew([claim]) == [True]
        assert await store.release([claim]) == [True]
        assert await store.claim([claim]) == [Claimed(2)]
        return (await store.complete([claim]))[0]

    for _ in range(3):
        assert all(await asyncio.gather(*(handle(number) for number in range(50))))
        known = await stores[0].read([f"order-{number}" for number in range(50)])
        assert known == [Completed()] * 50
        await stores[1].forget([f"order-{number}" for number in range(50)])
    await stores[0].purge()


@needs_pgbouncer
async def test_through_a_pooler_the_handlers_work_and_the_completion_commit_together(
    stores: list[PostgresStore],
) -> None:
    async with stores[0].acquire() as connection:
        await connection.execute("CREATE TABLE effects (number bigint, tags jsonb)")

    async def handle(number: int) -> None:
        store, claim = stores[number % 2], claim_of(f"order-{number}")
        await store.claim([claim])
        async with store.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO effects VALUES ($1, $2)", number, '{"a": [1]}')
            found = [row["n"] async for row in connection.cursor("SELECT generate_series(1, $1) AS n", number % 3)]
            statement = await connection.prepare("SELECT count(*) FROM effects WHERE number = $1")
            assert (len(found), await statement.fetchval(number)) == (number % 3, 1)
            await Outbox("shop").publish(ADA, connection=connection)
            assert await store.complete_in(connection, claim)

    for first in (0, 40):
        await asyncio.gather(*(handle(number) for number in range(first, first + 40)))

    async with stores[0].acquire() as connection:
        assert await connection.fetchval("SELECT count(DISTINCT number) FROM effects") == 80
        assert await connection.fetchval("SELECT count(*) FROM smartpipe_outbox") == 80
    assert await stores[1].read([f"order-{number}" for number in range(80)]) == [Completed()] * 80


@needs_pgbouncer
async def test_through_a_pooler_a_server_connection_is_left_as_it_was(
    stores: list[PostgresStore], postgres_server: PostgresServer, pooled_url: str
) -> None:
    await asyncio.gather(*(store.claim([claim_of(f"{n}-{i}")]) for n in range(20) for i, store in enumerate(stores)))

    connection = await asyncpg.connect(pooled_url, statement_cache_size=0)
    for _ in range(8):  # in turn, whichever server answers
        assert await connection.fetchval("SELECT current_setting('jit')") == "on"
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
    await connection.close()


@needs_pgbouncer
async def test_through_a_pooler_a_relay_looks_by_itself_and_says_so(
    pooled_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(pooled_url)
    transport = FakeTransport()
    relay = Relay(pooled_url, transport, RelayOptions(poll_seconds=0.1))
    with caplog.at_level(logging.WARNING, "smartpipe.relay"):
        running = asyncio.create_task(relay.run())
        await until(lambda: not relay.failing or running.done())
    connection = await asyncpg.connect(pooled_url, statement_cache_size=0)
    for _ in range(3):
        async with connection.transaction():
            await Outbox("shop").publish(ADA, connection=connection)
    await until(lambda: relay.published == 3)
    assert (await relay.backlog()).waiting == 0
    relay.stop()
    await running
    await relay.aclose()
    await connection.close()

    assert await Relay(pooled_url, transport).drain() == (0, 0, 0.0)
    [line] = [record.getMessage() for record in caplog.records]
    assert "is a connection pooler, through which LISTEN does not work" in line
    assert "every 0.1 s" in line


@needs_pgbouncer
async def test_a_pooler_in_statement_mode_is_refused_by_name(
    poolers: dict[str, PgBouncer], postgres_server: PostgresServer
) -> None:
    with postgres_server.database() as url:
        await migrate(url)
        pooled = url.replace(str(postgres_server.directory), str(poolers["statement"].directory))
        relay = Relay(pooled, FakeTransport())
        for refused in (PostgresStore(pooled).open(), migrate(pooled), relay.run(), relay.drain()):
            with pytest.raises(ConfigError, match="is a connection pooler in statement mode.*set its pool_mode to"):
                await refused
        await relay.aclose()


@needs_pgbouncer
async def test_an_option_that_a_pooler_refuses_is_told_with_the_remedy(
    poolers: dict[str, PgBouncer], postgres_server: PostgresServer
) -> None:
    pooler = poolers["transaction"]
    store = PostgresStore(f"{pooler.url}&search_path=claims")

    with pytest.raises(ConfigError, match="unsupported startup parameter: search_path; set the option on the role"):
        await store.open()


async def statements_of(store: PostgresStore) -> list[str]:
    """Return the names of the prepared statements that a claim leaves on its connection."""
    await store.claim([claim_of("order-1")])
    assert store._claim_pool is not None
    async with store._claim_pool.acquire() as connection:
        return [row["name"] for row in await connection.fetch("SELECT name FROM pg_prepared_statements")]


@pytest.mark.parametrize(("option", "prepared"), [("", True), ("&statement_cache_size=0", False)])
async def test_a_direct_connection_keeps_its_prepared_statements_unless_the_url_says_otherwise(
    postgres_server: PostgresServer, option: str, prepared: bool
) -> None:
    with postgres_server.database() as url:
        await migrate(url)
        store = PostgresStore(url + option)
        await store.open()
        try:
            assert bool(await statements_of(store)) is prepared
        finally:
            await store.aclose()


@pytest.mark.parametrize(("option", "prepared"), [("", True), ("&statement_cache_size=0", False)])
async def test_so_does_the_connection_with_which_a_relay_publishes(
    postgres_server: PostgresServer, option: str, prepared: bool
) -> None:
    with postgres_server.database() as url:
        await migrate(url)
        relay = Relay(url + option, FakeTransport())
        async with relay._open_connections() as (connection, _):
            await relay.publish_batch(connection)
            statements = await connection.fetch("SELECT name FROM pg_prepared_statements")
        await relay.aclose()

    assert bool(statements) is prepared


@needs_pgbouncer
async def test_the_url_can_ask_for_prepared_statements_and_the_error_that_follows_names_the_remedy(
    poolers: dict[str, PgBouncer], postgres_server: PostgresServer
) -> None:
    with postgres_server.database() as url:
        await migrate(url)
        pooled = url.replace(str(postgres_server.directory), str(poolers["transaction"].directory))
        store: Any = PostgresStore(f"{pooled}&statement_cache_size=100")
        await store.open()

        async def claim_many() -> None:
            for number in range(200):
                await asyncio.gather(*(store.claim([claim_of(f"{number}-{n}")]) for n in range(4)))

        with pytest.raises(StoreError, match=r"add \?statement_cache_size=0 to the URL"):
            await claim_many()
        await store.aclose()
