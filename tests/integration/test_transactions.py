"""Transactions of handlers on the caller's own session or connection: the change and the claim commit together."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.event import listen
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from smartpipe import Delivery, RetryPolicy, Service
from smartpipe.consumer.guard import ClaimLost
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.outbox import Outbox
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.servers import PostgresServer

ASYNCPG, PSYCOPG = "postgresql+asyncpg", "postgresql+psycopg_async"
OUTBOX = Outbox("mailer")


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "transaction_effects"
    name: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
async def effects(database: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with the table of the handlers' effects."""
    await database.execute("CREATE TABLE IF NOT EXISTS transaction_effects (name text PRIMARY KEY)")
    yield database
    await database.execute("DROP TABLE transaction_effects")


def of_driver(url: str, driver: str) -> str:
    return url.replace("postgresql", driver, 1)


@asynccontextmanager
async def engine_of(url: str, driver: str, **options: Any) -> AsyncIterator[Any]:
    engine = create_async_engine(of_driver(url, driver), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def source_of(kind: str, url: str) -> AsyncIterator[Any]:
    """Provide what a handler passes to ``delivery.transaction()``."""
    name, _, driver = kind.partition(" of ")
    if driver:
        async with engine_of(url, {"asyncpg": ASYNCPG, "psycopg": PSYCOPG}[driver]) as engine:
            sessions = async_sessionmaker(engine)
            if name == "engine":
                yield engine
            elif name == "connection":
                async with engine.connect() as connection:
                    yield connection
            elif name == "session":
                async with sessions() as session:
                    yield session
            elif name == "scoped session":
                scoped = async_scoped_session(sessions, scopefunc=lambda: 1)
                yield scoped
                await scoped.remove()
            elif name == "function":
                yield lambda: AsyncSession(engine, expire_on_commit=False)
            else:
                yield sessions
    elif kind == "asyncpg":
        plain = await asyncpg.connect(url)
        yield plain
        await plain.close()
    elif kind == "asyncpg pool":
        async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
            yield pool
    elif kind == "psycopg pool":
        async with psycopg_pool.AsyncConnectionPool(url, min_size=1, open=False) as pool:
            yield pool
    else:
        native = await psycopg.AsyncConnection.connect(url, autocommit=kind == "psycopg with autocommit")
        yield native
        await native.close()


SQLALCHEMY = [
    f"{name} of {driver}"
    for name in ("factory", "function", "session", "scoped session", "engine", "connection")
    for driver in ("asyncpg", "psycopg")
]
SOURCES = [*SQLALCHEMY, "asyncpg", "asyncpg pool", "psycopg", "psycopg with autocommit", "psycopg pool"]


async def insert(connection: Any, name: str) -> None:
    """Write the effect, as the user of each library does."""
    statement = "INSERT INTO transaction_effects (name) VALUES ('%s')" % name  # noqa: UP031
    if isinstance(connection, AsyncSession):
        connection.add(Effect(name=name))
    else:
        await connection.execute(text(statement) if "sqlalchemy" in type(connection).__module__ else statement)


class Shop:
    """A service with an idempotent handler that writes an effect in a transaction, and a broker that runs it."""

    def __init__(self, url: str, work: Callable[[UserSignedUp, Delivery], Awaitable[None]]) -> None:
        self.url = url
        self.service = Service(f"mailer-{uuid4().hex[:8]}", retry=RetryPolicy(attempts=2, base_seconds=0))
        self.service.subscribe(UserSignedUp, idempotent=True)(work)

    async def run(self, copies: int = 1) -> MemoryBroker:
        async with MemoryBroker(self.service, virtual=False, idempotency_url=self.url) as broker:
            for _ in range(copies):
                await broker.publish(ADA, event_id="event-1")
                await broker.drain()
        return broker


async def names_in(effects: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await effects.fetch("SELECT name FROM transaction_effects ORDER BY name")]


@pytest.mark.parametrize("kind", SOURCES)
async def test_the_effect_the_claim_and_the_event_are_committed_once(
    kind: str, effects: asyncpg.Connection, postgres_url: str
) -> None:
    async with source_of(kind, postgres_url) as source:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            async with delivery.transaction(source) as connection:
                await insert(connection, "once")
                await OUTBOX.publish(UserLeft(name="Ada"), connection=connection)
            raise RuntimeError("after the commit")

        broker = await Shop(postgres_url, work).run(copies=3)

    assert await names_in(effects) == ["once"]
    assert await effects.fetchval("SELECT count(*) FROM smartpipe_outbox") == 1
    assert [type(record.error) for record in broker.retried()] == [RuntimeError]
    assert len(broker.handled(UserSignedUp)) == 3


@pytest.mark.parametrize("kind", SOURCES)
async def test_everything_is_rolled_back_if_the_block_fails(
    kind: str, effects: asyncpg.Connection, postgres_url: str
) -> None:
    calls: list[int] = []
    async with source_of(kind, postgres_url) as source:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            calls.append(1)
            async with delivery.transaction(source) as connection:
                await insert(connection, f"call {len(calls)}")
                await OUTBOX.publish(UserLeft(name="Ada"), connection=connection)
                if len(calls) == 1:
                    raise ConnectionError("in the block")

        broker = await Shop(postgres_url, work).run()

    assert await names_in(effects) == ["call 2"]
    assert await effects.fetchval("SELECT count(*) FROM smartpipe_outbox") == 1
    assert len(broker.handled(UserSignedUp)) == 1


@pytest.mark.parametrize("kind", SOURCES)
async def test_nothing_is_committed_if_another_worker_has_taken_over_the_claim(
    kind: str, effects: asyncpg.Connection, postgres_url: str
) -> None:
    errors: list[BaseException] = []
    async with source_of(kind, postgres_url) as source:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            try:
                async with delivery.transaction(source) as connection:
                    await insert(connection, "stolen")
                    await effects.execute("UPDATE smartpipe_claims SET token = 'thief' WHERE state = 'held'")
            except ClaimLost as error:
                errors.append(error)
                raise

        service = Shop(postgres_url, work).service
        async with MemoryBroker(service, virtual=False, idempotency_url=postgres_url) as broker:
            await broker.publish(ADA)
            await until(lambda: errors)
            await effects.execute("UPDATE smartpipe_claims SET state = 'completed' WHERE token = 'thief'")
            await broker.drain()

    assert await names_in(effects) == []


async def test_the_state_of_objects_is_checked_before_the_claim_is_completed(
    effects: asyncpg.Connection, postgres_url: str
) -> None:
    """The claim would otherwise stay locked, and could not be renewed, while the objects are written."""
    statements: list[str] = []
    async with engine_of(postgres_url, ASYNCPG) as engine:
        listen(engine.sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            async with delivery.transaction(async_sessionmaker(engine)) as session:
                session.add_all([Effect(name="same"), Effect(name="same")])

        broker = await Shop(postgres_url, work).run()

    dead = broker.assert_dead_lettered(UserSignedUp)
    assert "transaction_effects" in dead.reason
    assert sum("INSERT INTO transaction_effects" in statement for statement in statements) == 2
    assert not any("UPDATE smartpipe_claims" in statement for statement in statements)
    assert await names_in(effects) == []


@pytest.fixture
async def other_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    with postgres_server.database() as url:
        yield url


@pytest.mark.parametrize("table", ["no table", "a table of its own"])
@pytest.mark.parametrize("kind", ["factory of asyncpg", "factory of psycopg", "asyncpg", "psycopg"])
async def test_a_session_of_another_database_is_refused_before_the_handler_changes_anything(
    kind: str, table: str, effects: asyncpg.Connection, postgres_url: str, other_url: str
) -> None:
    if table != "no table":
        await migrate(other_url)
    begun: list[int] = []
    async with source_of(kind, other_url) as source:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            async with delivery.transaction(source):
                begun.append(1)

        broker = await Shop(postgres_url, work).run()

    reason = broker.assert_dead_lettered(UserSignedUp).reason
    expected = "has no table smartpipe_claims" if table == "no table" else "does not have the claim of this event"
    assert expected in reason
    assert "SMARTPIPE_IDEMPOTENCY_URL" in reason
    assert not begun


async def refusal(source: Any, postgres_url: str, *, before: Any = None) -> str:
    """Return the reason for which the transaction on *source* is refused."""

    async def work(event: UserSignedUp, delivery: Delivery) -> None:
        if before is not None:
            await before()
        async with delivery.transaction(source):
            raise AssertionError("the block must not begin")

    broker = await Shop(postgres_url, work).run()
    return broker.assert_dead_lettered(UserSignedUp).reason


async def test_what_has_no_transaction_for_asyncio_is_refused(postgres_url: str) -> None:
    engine = create_engine(of_driver(postgres_url, "postgresql+psycopg"))
    with psycopg.connect(postgres_url) as native:
        blocking: list[object] = [sessionmaker(engine), Session(engine), engine, native]
        for source in blocking:
            assert "is blocking" in await refusal(source, postgres_url)
    others: list[object] = ["postgresql://", 7, AsyncSession, object(), lambda: 7]
    for source in others:
        assert "cannot be used" in await refusal(source, postgres_url)
    engine.dispose()


@pytest.mark.parametrize("kind", ["session of asyncpg", "connection of psycopg", "asyncpg", "psycopg"])
async def test_one_that_is_in_a_transaction_already_is_refused(kind: str, postgres_url: str) -> None:
    async with source_of(kind, postgres_url) as source:

        async def read() -> None:
            if kind == "asyncpg":
                await source.execute("BEGIN")
            else:
                await source.execute(text("SELECT 1") if " of " in kind else "SELECT 1")

        assert "is in a transaction already" in await refusal(source, postgres_url, before=read)


async def test_one_that_is_closed_or_commits_each_statement_is_refused(postgres_url: str) -> None:
    for kind in ("asyncpg", "psycopg"):
        async with source_of(kind, postgres_url) as source:
            await source.close()
            assert "is closed" in await refusal(source, postgres_url)
    async with engine_of(postgres_url, ASYNCPG, isolation_level="AUTOCOMMIT") as engine:
        assert "AUTOCOMMIT" in await refusal(async_sessionmaker(engine), postgres_url)


async def test_a_session_that_leads_to_another_kind_of_database_is_refused(postgres_url: str) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    assert "leads to sqlite" in await refusal(async_sessionmaker(engine), postgres_url)
    await engine.dispose()


async def test_codecs_of_the_callers_connection_do_not_matter(effects: asyncpg.Connection, postgres_url: str) -> None:
    async def init(connection: Any) -> None:
        for name in ("json", "jsonb", "text", "float8", "int8"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async with asyncpg.create_pool(postgres_url, init=init, min_size=1, max_size=1) as pool:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            async with delivery.transaction(pool) as connection:
                await insert(connection, "once")

        await Shop(postgres_url, work).run(copies=2)

    assert await names_in(effects) == ["once"]


async def test_a_session_that_cannot_be_closed_after_the_commit_is_handled(
    effects: asyncpg.Connection, postgres_url: str
) -> None:
    class Unclosable(AsyncSession):
        async def close(self) -> None:
            await super().close()
            raise ConnectionError("while it was closed")

    async with engine_of(postgres_url, ASYNCPG) as engine:

        async def work(event: UserSignedUp, delivery: Delivery) -> None:
            async with delivery.transaction(async_sessionmaker(engine, class_=Unclosable)) as session:
                await insert(session, "once")

        broker = await Shop(postgres_url, work).run()

    assert await names_in(effects) == ["once"]
    assert len(broker.handled(UserSignedUp)) == 1


async def test_the_memory_broker_takes_a_store(effects: asyncpg.Connection, postgres_url: str) -> None:
    async def work(event: UserSignedUp, delivery: Delivery) -> None:
        async with delivery.transaction() as connection:
            await insert(connection, "once")

    service = Shop(postgres_url, work).service
    async with MemoryBroker(service, virtual=False, store=PostgresStore(postgres_url)) as broker:
        for _ in range(2):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()
        broker.assert_nothing_dead_lettered()

    assert await names_in(effects) == ["once"]
