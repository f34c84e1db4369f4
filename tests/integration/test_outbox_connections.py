"""Whose connection an event is written by, and what is refused because its transaction would not be the caller's."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from smartpipe import ConfigError
from smartpipe.outbox import Outbox, Relay
from tests.support.events import Paid
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

OUTBOX = Outbox("shop")
EVENT = Paid(account="€\\'\"%s:x\u2028 Ð", number=7)
ATTRIBUTES = {"tenant": "Jürgen's \\ €"}
ASYNCPG, PSYCOPG = "postgresql+asyncpg", "postgresql+psycopg"


def of_driver(url: str, driver: str) -> str:
    return url.replace("postgresql", driver, 1)


async def count(database: asyncpg.Connection) -> int:
    return int(await database.fetchval("SELECT count(*) FROM smartpipe_outbox"))


async def assert_published_as_it_was(postgres_url: str, event_id: str) -> None:
    transport = FakeTransport()
    assert await Relay(postgres_url, transport).drain() == (0, 0, 0.0)
    [message] = transport.entries("publish")
    body = json.loads(message.body)
    assert (body["id"], body["data"]) == (event_id, EVENT.model_dump())
    assert message.attributes["tenant"] == ("String", ATTRIBUTES["tenant"])


def shout(value: Any) -> str:
    return f"<<{value}>>"


CODECS = ["json", "jsonb", "text", "varchar", "name", "bpchar", "int2", "int4", "int8", "bytea", "float8"]
SESSIONS = [
    "SET client_encoding = 'latin1'",
    "SET client_encoding = 'SQL_ASCII'",
    "SET standard_conforming_strings = off",
    "SET backslash_quote = off",
    "SET datestyle = 'German, DMY'",
    "SET TimeZone = 'Pacific/Kiritimati'",
    "SET bytea_output = 'escape'",
    "SET intervalstyle = 'sql_standard'",
    "SET transform_null_equals = on",
    "SET default_transaction_isolation = 'serializable'",
    "SET plan_cache_mode = force_generic_plan",
]


@pytest.mark.parametrize("name", CODECS)
async def test_the_callers_codecs_on_asyncpg_do_not_matter(
    database: asyncpg.Connection, postgres_url: str, name: str
) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.set_type_codec(name, encoder=shout, decoder=shout, schema="pg_catalog", format="text")
    async with connection.transaction():
        event_id = await OUTBOX.publish(EVENT, connection=connection, attributes=ATTRIBUTES)
    await connection.close()

    await assert_published_as_it_was(postgres_url, event_id)


async def test_a_pool_with_asyncpgs_documented_codec_of_jsonb_writes_the_row_as_any_other(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    async def init(connection: Any) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    class Record(asyncpg.Record):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError

    pool = asyncpg.create_pool(postgres_url, init=init, record_class=Record, statement_cache_size=0, min_size=1)
    async with pool, pool.acquire() as connection, connection.transaction():
        event_id = await OUTBOX.publish(EVENT, connection=connection, attributes=ATTRIBUTES)

    assert await database.fetchval("SELECT jsonb_typeof(attributes) FROM smartpipe_outbox") == "object"
    await assert_published_as_it_was(postgres_url, event_id)


@pytest.mark.parametrize("setting", SESSIONS)
@pytest.mark.parametrize("driver", ["asyncpg", ASYNCPG, "postgresql+psycopg_async", "psycopg"])
async def test_the_callers_session_settings_do_not_matter(
    database: asyncpg.Connection, postgres_url: str, driver: str, setting: str
) -> None:
    if driver == "asyncpg":
        plain = await asyncpg.connect(postgres_url)
        await plain.execute(setting)
        async with plain.transaction():
            event_id = await OUTBOX.publish(EVENT, connection=plain, attributes=ATTRIBUTES)
        await plain.close()
    elif driver == "psycopg":
        async with await psycopg.AsyncConnection.connect(postgres_url) as native:
            await native.execute(setting)
            event_id = await OUTBOX.publish(EVENT, connection=native, attributes=ATTRIBUTES)
    else:
        engine = create_async_engine(of_driver(postgres_url, driver))
        async with engine.begin() as connection:
            await connection.exec_driver_sql(setting)
            event_id = await OUTBOX.publish(EVENT, connection=connection, attributes=ATTRIBUTES)
        await engine.dispose()

    await assert_published_as_it_was(postgres_url, event_id)


async def test_psycopg_prepares_no_statement_for_the_outbox_because_each_has_another_text(postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as native:
        native.prepare_threshold = 0  # prepare each statement at its first use
        await OUTBOX.publish(EVENT, connection=native)
        cursor = await native.execute("SELECT statement FROM pg_prepared_statements")
        assert [text for [text] in await cursor.fetchall() if "smartpipe" in text] == []
    with psycopg.connect(postgres_url) as blocking:
        blocking.prepare_threshold = 0
        OUTBOX.publish_blocking(EVENT, connection=blocking)
        found = blocking.execute("SELECT statement FROM pg_prepared_statements").fetchall()
        assert [text for [text] in found if "smartpipe" in text] == []


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 10}, {"compiled_cache": None}])
@pytest.mark.parametrize("driver", [ASYNCPG, "postgresql+psycopg_async"])
async def test_the_callers_options_of_sqlalchemy_do_not_matter(
    database: asyncpg.Connection, postgres_url: str, driver: str, options: dict[str, Any]
) -> None:
    engine = create_async_engine(of_driver(postgres_url, driver), execution_options=options)
    async with AsyncSession(engine) as session, session.begin():
        event_id = await OUTBOX.publish(EVENT, connection=session, attributes=ATTRIBUTES)
    await engine.dispose()

    await assert_published_as_it_was(postgres_url, event_id)


async def test_the_callers_codecs_and_hooks_below_sqlalchemy_do_not_matter(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    engine = create_async_engine(
        of_driver(postgres_url, ASYNCPG), json_serializer=shout, connect_args={"statement_cache_size": 0}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def codecs(connection: Any, _: Any) -> None:
        for name in ("json", "jsonb", "text", "int4"):
            connection.run_async(
                lambda driver, name=name: driver.set_type_codec(
                    name, encoder=shout, decoder=shout, schema="pg_catalog", format="text"
                )
            )

    async with engine.begin() as connection:
        event_id = await OUTBOX.publish(EVENT, connection=connection, attributes=ATTRIBUTES)
    await engine.dispose()

    await assert_published_as_it_was(postgres_url, event_id)


def test_the_callers_row_factories_cursors_and_adapters_on_psycopg_do_not_matter(postgres_url: str) -> None:
    class Dumper(psycopg.adapt.Dumper):
        def dump(self, obj: Any) -> bytes:
            return b"<<>>"

    with psycopg.connect(postgres_url, row_factory=dict_row, cursor_factory=psycopg.RawCursor) as connection:
        connection.prepare_threshold = 0
        connection.execute("TRUNCATE smartpipe_outbox")
        connection.adapters.register_dumper(str, Dumper)
        event_id = OUTBOX.publish_blocking(EVENT, connection=connection, attributes=ATTRIBUTES)

    asyncio.run(assert_published_as_it_was(postgres_url, event_id))


async def test_scoped_sessions_are_sessions(database: asyncpg.Connection, postgres_url: str) -> None:
    engine = create_async_engine(of_driver(postgres_url, ASYNCPG))
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    event_id = await OUTBOX.publish(EVENT, connection=scoped, attributes=ATTRIBUTES)
    assert await count(database) == 0
    await scoped.commit()
    await scoped.remove()
    await engine.dispose()

    await assert_published_as_it_was(postgres_url, event_id)


def test_blocking_scoped_sessions_are_sessions(postgres_url: str) -> None:
    engine = create_engine(of_driver(postgres_url, PSYCOPG))
    scoped = scoped_session(sessionmaker(engine))
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE smartpipe_outbox")
    event_id = OUTBOX.publish_blocking(EVENT, connection=scoped, attributes=ATTRIBUTES)
    scoped.commit()
    scoped.remove()
    engine.dispose()

    asyncio.run(assert_published_as_it_was(postgres_url, event_id))


class Kinds:
    """Every object that somebody could take for a connection, open and closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_async_engine(of_driver(url, ASYNCPG))
        self.blocking_engine = create_engine(of_driver(url, PSYCOPG))

    @asynccontextmanager
    async def async_ones(self) -> AsyncIterator[dict[str, Any]]:
        plain = await asyncpg.connect(self.url)
        pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1)
        connection = await self.engine.connect()
        session = AsyncSession(self.engine)
        native = await psycopg.AsyncConnection.connect(self.url)
        yield {
            "asyncpg": plain,
            "pooled": await pool.acquire(),
            "AsyncConnection": connection,
            "AsyncSession": session,
            "psycopg": native,
            "scoped": async_scoped_session(async_sessionmaker(self.engine), scopefunc=asyncio.current_task),
        }
        await connection.close()
        await session.close()
        await plain.close()
        await native.close()
        pool.terminate()
        await self.engine.dispose()
        self.blocking_engine.dispose()

    @contextmanager
    def blocking_ones(self) -> Iterator[dict[str, Any]]:
        engine = self.blocking_engine
        with engine.connect() as connection, Session(engine) as session, psycopg.connect(self.url) as native:
            yield {
                "Connection": connection,
                "Session": session,
                "psycopg": native,
                "scoped": scoped_session(sessionmaker(engine)),
            }

    def neither(self) -> dict[str, Any]:
        return {
            "engine": self.blocking_engine,
            "async engine": self.engine,
            "factory": sessionmaker(self.blocking_engine),
            "async factory": async_sessionmaker(self.engine),
            "pool": asyncpg.create_pool(self.url),
            "engine's pool": self.blocking_engine.pool,
            "text": self.url,
            "nothing": None,
            "object": object(),
            "class": AsyncSession,
            "asyncpg's class": asyncpg.Connection,
        }


async def test_the_async_call_refuses_every_object_that_is_no_async_connection(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    kinds = Kinds(postgres_url)
    async with kinds.async_ones():
        with kinds.blocking_ones() as blocking:
            for connection in blocking.values():
                with pytest.raises(ConfigError, match="is blocking; write outbox.publish_blocking"):
                    await OUTBOX.publish(EVENT, connection=connection, autocommit=True)
            cursor = blocking["psycopg"].cursor()
            with pytest.raises(ConfigError, match="cannot be used"):
                await OUTBOX.publish(EVENT, connection=cursor, autocommit=True)
        for connection in kinds.neither().values():
            with pytest.raises(ConfigError, match="which has no transaction|cannot be used; pass the asyncpg"):
                await OUTBOX.publish(EVENT, connection=connection, autocommit=True)

    assert await count(database) == 0


async def test_the_blocking_call_refuses_every_object_that_is_no_blocking_connection(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    kinds = Kinds(postgres_url)
    async with kinds.async_ones() as connections:
        for connection in connections.values():
            with pytest.raises(ConfigError, match="is async; write await outbox.publish"):
                OUTBOX.publish_blocking(EVENT, connection=connection, autocommit=True)
        for connection in kinds.neither().values():
            with pytest.raises(ConfigError, match="which has no transaction|cannot be used; pass the SQLAlc"):
                OUTBOX.publish_blocking(EVENT, connection=connection, autocommit=True)

    assert await count(database) == 0


async def test_closed_connections_are_refused(database: asyncpg.Connection, postgres_url: str) -> None:
    kinds = Kinds(postgres_url)
    async with kinds.async_ones() as connections:
        with kinds.blocking_ones() as blocking:
            pass
    del connections["AsyncSession"], connections["scoped"], blocking["Session"], blocking["scoped"]  # they begin again

    for connection in connections.values():
        with pytest.raises(ConfigError, match="is closed|was released to its pool"):
            await OUTBOX.publish(EVENT, connection=connection, autocommit=True)
    for connection in blocking.values():
        with pytest.raises(ConfigError, match="is closed"):
            OUTBOX.publish_blocking(EVENT, connection=connection, autocommit=True)

    assert await count(database) == 0


async def test_a_connection_that_was_released_to_its_pool_is_refused(postgres_url: str) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=1) as pool:
        async with pool.acquire() as connection:
            pass
        with pytest.raises(ConfigError, match="was released to its pool"):
            await OUTBOX.publish(EVENT, connection=connection, autocommit=True)


async def test_another_database_than_postgresql_is_refused() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(ConfigError, match="leads to sqlite"):
        OUTBOX.publish_blocking(EVENT, connection=connection)
    engine.dispose()  # Python 3.13 warns of a connection that is not closed


async def in_asyncpg(url: str, publish: Callable[[Any], Awaitable[str]]) -> None:
    connection = await asyncpg.connect(url)
    try:
        await publish(connection)
    finally:
        await connection.close()


async def in_pool(url: str, publish: Callable[[Any], Awaitable[str]]) -> None:
    async with asyncpg.create_pool(url, min_size=1) as pool, pool.acquire() as connection:
        await publish(connection)


async def in_psycopg(url: str, publish: Callable[[Any], Awaitable[str]]) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await publish(connection)


def in_engine(
    driver: str, *, session: bool, **options: Any
) -> Callable[[str, Callable[[Any], Awaitable[str]]], Awaitable[None]]:
    async def run(url: str, publish: Callable[[Any], Awaitable[str]]) -> None:
        engine = create_async_engine(of_driver(url, driver), **options)
        try:
            async with AsyncSession(engine) if session else engine.connect() as connection:
                await publish(connection)
        finally:
            await engine.dispose()

    return run


ENGINES = [
    in_engine(driver, session=session, **options)
    for driver in (ASYNCPG, "postgresql+psycopg_async")
    for session in (True, False)
    for options in ({"isolation_level": "AUTOCOMMIT"}, {"execution_options": {"isolation_level": "AUTOCOMMIT"}})
]


@pytest.mark.parametrize("run", [in_asyncpg, in_pool, in_psycopg, *ENGINES])
async def test_a_connection_that_commits_each_statement_is_refused_unless_that_is_meant(
    database: asyncpg.Connection, postgres_url: str, run: Callable[..., Awaitable[None]]
) -> None:
    with pytest.raises(ConfigError, match="begin a transaction first, or pass autocommit=True"):
        await run(postgres_url, lambda connection: OUTBOX.publish(EVENT, connection=connection))
    assert await count(database) == 0

    await run(postgres_url, lambda connection: OUTBOX.publish(EVENT, connection=connection, autocommit=True))
    assert await count(database) == 1


@pytest.mark.parametrize("options", [{"isolation_level": "AUTOCOMMIT"}, {}])
@pytest.mark.parametrize("factory", [Session, None])
def test_a_blocking_connection_of_sqlalchemy_that_commits_each_statement_is_refused_too(
    postgres_url: str, factory: type[Session] | None, options: dict[str, Any]
) -> None:
    engine = create_engine(of_driver(postgres_url, PSYCOPG), **options)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM smartpipe_outbox")
    if not options:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    with factory(engine) if factory else engine.connect() as given:
        with pytest.raises(ConfigError, match='isolation level "AUTOCOMMIT"'):
            OUTBOX.publish_blocking(EVENT, connection=given)
        OUTBOX.publish_blocking(EVENT, connection=given, autocommit=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM smartpipe_outbox").scalar() == 1
    engine.dispose()


def test_a_blocking_connection_of_psycopg_in_autocommit_mode_needs_a_transaction(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("TRUNCATE smartpipe_outbox")
        with pytest.raises(ConfigError, match="is in autocommit mode"):
            OUTBOX.publish_blocking(EVENT, connection=connection)
        with connection.transaction(force_rollback=True):
            OUTBOX.publish_blocking(EVENT, connection=connection)
        OUTBOX.publish_blocking(EVENT, connection=connection, autocommit=True)
        [written] = connection.execute("SELECT count(*) FROM smartpipe_outbox").fetchone() or [None]
    assert written == 1


async def test_a_transaction_that_sqlalchemy_begins_by_itself_is_one(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    engine = create_async_engine(of_driver(postgres_url, ASYNCPG))
    async with engine.connect() as connection:
        await OUTBOX.publish(EVENT, connection=connection)
        await connection.rollback()
        await OUTBOX.publish(EVENT, connection=connection)
        await connection.commit()
    await engine.dispose()

    assert await count(database) == 1
