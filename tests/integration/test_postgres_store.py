"""What only the PostgreSQL store can do: complete in the caller's transaction; its migrations; its purge."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from smartpipe.errors import ConfigError, StoreError
from smartpipe.idempotency.store import Claimed, Completed, InProgress
from smartpipe.idempotency.stores import migrate as migrating
from smartpipe.idempotency.stores import postgres
from smartpipe.idempotency.stores.migrate import migrate, read_migrations
from smartpipe.idempotency.stores.postgres import PostgresStore
from tests.support.places import LONG, claim_of, until_claimed
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.servers import PostgresServer


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database of its own: empty."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """A store on a database with a table of effects."""
    await migrate(url)
    store = PostgresStore(url)
    await store.open()
    async with store.acquire() as connection:
        await connection.execute("CREATE TABLE effects (key text)")
    yield store
    await store.aclose()


async def _effects(store: PostgresStore) -> list[str]:
    async with store.acquire() as connection:
        return [row["key"] for row in await connection.fetch("SELECT key FROM effects ORDER BY key")]


async def test_the_handlers_work_and_the_completion_are_committed_together(store: PostgresStore) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    async with store.acquire() as connection, connection.transaction():
        await connection.execute("INSERT INTO effects VALUES ('order-1')")
        assert await store.complete_in(connection, claim)

    assert await _effects(store) == ["order-1"]
    assert await store.claim([claim_of("order-1")]) == [Completed()]
    assert await store.complete([claim]) == [True]


@pytest.mark.parametrize("name", ["text", "varchar", "float8", "int4", "timestamptz"])
async def test_the_codecs_that_a_handler_sets_do_not_change_its_completion(store: PostgresStore, name: str) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    async with store.acquire() as connection:
        await connection.set_type_codec(name, encoder=repr, decoder=repr, schema="pg_catalog", format="text")
        async with connection.transaction():
            assert not await store.complete_in(connection, claim_of("order-1"))
            assert await store.complete_in(connection, claim)
            assert await store.complete_in(connection, claim)

    assert await store.claim([claim_of("order-1")]) == [Completed()]


async def test_a_rollback_undoes_the_handlers_work_and_the_completion(store: PostgresStore) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    async def handle() -> None:
        async with store.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO effects VALUES ('order-1')")
            await store.complete_in(connection, claim)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handle()

    assert await _effects(store) == []
    assert await store.release([claim]) == [True]
    assert await store.claim([claim_of("order-1")]) == [Claimed(2)]


async def test_who_lost_the_claim_is_told_within_the_transaction(store: PostgresStore) -> None:
    old, new = claim_of("order-1", lease_seconds=0.1), claim_of("order-1")
    await store.claim([old])
    await until_claimed(store, new)

    async with store.acquire() as connection, connection.transaction():
        assert not await store.complete_in(connection, old)

    [outcome] = await store.claim([claim_of("order-1")])
    assert isinstance(outcome, InProgress)


async def test_a_claim_waits_for_the_transaction_that_completes_it(store: PostgresStore) -> None:
    claim = claim_of("order-1", lease_seconds=0.1)
    await store.claim([claim])
    async with store.acquire() as connection, connection.transaction():
        await store.complete_in(connection, claim)
        await asyncio.sleep(0.2)  # the lease has run out
        other = asyncio.create_task(store.claim([claim_of("order-1")]))
        await asyncio.sleep(0.1)
        assert not other.done()

    assert await other == [Completed()]


async def test_a_row_locked_for_too_long_is_an_error_of_the_store(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    async with store.acquire() as connection, connection.transaction():
        await store.complete_in(connection, claim)
        with monkeypatch.context() as patch:
            patch.setattr(postgres, "CALL_SECONDS", 0.3)
            with pytest.raises(StoreError, match="renew at .*: no answer in time"):
                await store.renew([claim])

    assert await store.renew([claim]) == [True]


async def test_a_failed_statement_within_the_transaction_is_an_error_of_the_store(store: PostgresStore) -> None:
    claim = claim_of("order-1")
    await store.claim([claim])

    async with store.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.execute("INSERT INTO missing VALUES (1)")
        with pytest.raises(StoreError, match="complete_in .* current transaction is aborted"):
            await store.complete_in(connection, claim)
        await transaction.rollback()


CRASHING = """
import asyncio, os, signal, sys
from smartpipe.idempotency.store import Claim
from smartpipe.idempotency.stores.postgres import PostgresStore

async def main():
    url, commits, token = sys.argv[1:]
    store = PostgresStore(url)
    await store.open()
    claim = Claim("order-1", token, float(0.1), 600)
    print(await store.claim([claim]))
    async with store.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO effects VALUES ('order-1')")
        assert await store.complete_in(connection, claim)
        if commits == "yes":
            await transaction.commit()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("commits", ["yes", "no"])
async def test_a_process_killed_after_the_commit_has_completed_and_one_killed_before_has_done_nothing(
    store: PostgresStore, url: str, commits: str
) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASHING, url, commits, "token")
    assert await child.wait() == -signal.SIGKILL

    if commits == "yes":
        assert await _effects(store) == ["order-1"]
        assert await store.claim([claim_of("order-1")]) == [Completed()]
    else:
        assert await until_claimed(store, claim_of("order-1")) == Claimed(2)
        assert await _effects(store) == []


async def test_handlers_that_hold_all_their_connections_keep_no_lease_from_being_renewed(url: str) -> None:
    await migrate(url)
    store = PostgresStore(url, connections=2)
    await store.open()
    claim = claim_of("order-1")
    await store.claim([claim])

    async with store.acquire(), store.acquire():
        assert await store.renew([claim]) == [True]
    await store.aclose()


async def test_who_gets_no_connection_in_time_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(url)
    store = PostgresStore(url, connections=1)
    await store.open()

    async with store.acquire():
        monkeypatch.setattr(postgres, "ACQUIRE_SECONDS", 0.1)
        with pytest.raises(StoreError, match="acquire"):
            async with store.acquire():
                pass
    await store.aclose()


async def test_closing_does_not_wait_for_good_for_a_handler_that_keeps_its_connection(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CALL_SECONDS", 0.2)

    async with store.acquire():
        await asyncio.wait_for(store.aclose(), 30)


async def test_a_batch_is_one_statement_and_nothing_is_reset_after_it(store: PostgresStore) -> None:
    claims = [claim_of(f"order-{n}") for n in range(10)]
    await store.claim(claims)  # a connection's first call asks for the types too
    queries: list[str] = []
    assert store._claim_pool is not None
    async with store._claim_pool.acquire() as connection:
        connection.add_query_logger(lambda record: queries.append(record.query.split()[0]))

    await store.claim(claims)
    await store.complete(claims)

    assert queries == ["INSERT", "WITH"]


async def test_migrations_run_once_however_many_run_them_at_once(url: str) -> None:
    done = await asyncio.gather(*(migrate(url) for _ in range(5)))

    assert sorted(done) == [[], [], [], [], list(read_migrations())]
    assert await migrate(url) == []


async def test_psql_can_run_the_files_as_well_and_again(
    postgres_server: PostgresServer, url: str, tmp_path: Path
) -> None:
    for _ in range(2):
        for sql in read_migrations().values():
            postgres_server.psql("--single-transaction", "-c", "SET client_min_messages = warning", "-c", sql, url=url)

    assert await migrate(url) == []
    store = PostgresStore(url)
    await store.open()
    await store.aclose()


async def test_a_database_that_lacks_a_migration_is_refused_and_one_that_has_more_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(url)
    known = read_migrations()
    store = PostgresStore(url)
    more = {"0009_more_claims": "SELECT 1", "0009_others": "SELECT 1"}
    monkeypatch.setattr(migrating, "read_migrations", lambda: {**known, **more})
    with pytest.raises(ConfigError, match="lacks 0009_more_claims: run smartpipe store migrate"):
        await store.open()
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO smartpipe_migrations (name) VALUES ('0009_more_claims'), ('0010_claims')")
    await connection.close()

    await store.open()

    assert await store.claim([claim_of("order-1")]) == [Claimed(1)]
    await store.aclose()


async def test_a_migration_that_cannot_reach_its_database_says_so_without_the_password() -> None:
    with pytest.raises(StoreError, match="127.0.0.1:9") as caught:
        await migrate("postgresql://ada:s3cret@127.0.0.1:9/claims")

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("option", ["connect_timeout=5", "keepalives=1", "work_mem=much", "server_version=9"])
async def test_an_option_that_the_server_refuses_is_a_configuration_error(url: str, option: str) -> None:
    await migrate(url)
    store = PostgresStore(f"{url}&{option}" if "?" in url else f"{url}?{option}")

    with pytest.raises(ConfigError, match=f"refuses an option of this URL: .*{option.partition('=')[0]}"):
        await store.open()


async def test_what_nobody_remembers_is_purged_a_bounded_number_at_a_time(store: PostgresStore) -> None:
    gone = [claim_of(f"gone-{n}", lease_seconds=0.1, ttl_seconds=0.1) for n in range(5)]
    await store.claim([*gone, claim_of("held"), claim_of("order-1", lease_seconds=0.1)])
    await asyncio.sleep(0.3)

    assert [await store.purge(3), await store.purge(3), await store.purge(3)] == [3, 2, 0]

    assert await store.claim([claim_of("order-1")]) == [Claimed(2)]


async def test_the_store_purges_by_itself_now_and_then(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PURGE_ROWS", 2)
    gone = [claim_of(f"gone-{n}", lease_seconds=0.1, ttl_seconds=0.1) for n in range(5)]
    await store.claim(gone)
    await asyncio.sleep(0.3)
    monkeypatch.setattr(postgres, "PURGE_SECONDS", 0.0)

    await store.claim([claim_of("order-1")])

    await until(lambda: store._purging is not None and store._purging.done())
    monkeypatch.setattr(postgres, "PURGE_SECONDS", LONG)
    async with store.acquire() as connection:
        assert [row["key"] for row in await connection.fetch("SELECT key FROM smartpipe_claims")] == ["/order-1"]
