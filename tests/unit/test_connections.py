"""Connections of asyncpg and psycopg, and sources of them, by objects that have their methods."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, connections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Asyncpg:
    """A wrapper of asyncpg's connection, as a library for tracing makes."""

    def __init__(self, *, encoding: str = "UTF8", closed: bool = False, busy: bool = False) -> None:
        self.executed: list[tuple[Any, ...]] = []
        self.steps: list[str] = []
        self._encoding, self._closed, self._busy = encoding, closed, busy

    def is_in_transaction(self) -> bool:
        return self._busy

    def is_closed(self) -> bool:
        return self._closed

    def get_settings(self) -> Any:
        return SimpleNamespace(client_encoding=self._encoding)

    async def execute(self, *arguments: Any) -> str:
        self.executed.append(arguments)
        return "UPDATE 0 3"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self.steps.append("begin")
        try:
            yield
        except BaseException:
            self.steps.append("rollback")
            raise
        self.steps.append("commit")


class Released(Asyncpg):
    """A connection that went back to its pool."""

    def is_closed(self) -> bool:
        raise sys.modules["asyncpg"].InterfaceError("released")


class Psycopg:
    """psycopg's AsyncConnection."""

    def __init__(self, *, status: int = 0, closed: bool = False, autocommit: bool = False) -> None:
        self.closed, self.autocommit = closed, autocommit
        self.info = SimpleNamespace(transaction_status=status)
        self.executed: list[tuple[Any, ...]] = []
        self.steps: list[str] = []

    transaction = Asyncpg.transaction


class PsycopgBlocking(Psycopg):
    """psycopg's Connection."""


class Cursor:
    rowcount = "2"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, statement: str, *, prepare: bool) -> None:
        self._connection.executed.append((statement, prepare))


class BlockingCursor(Cursor):
    def execute(self, statement: str, *, prepare: bool) -> None:  # type: ignore[override]
        self._connection.executed.append((statement, prepare))


class Provider:
    """Provides a connection, and counts how often it was returned."""

    def __init__(self, provided: Any) -> None:
        self.provided = provided
        self.ended = 0

    @asynccontextmanager
    async def provide(self) -> AsyncIterator[Any]:
        yield self.provided
        self.ended += 1


class Pool(Provider):
    """asyncpg's Pool."""

    acquire = Provider.provide


class PsycopgPool(Provider):
    """psycopg's AsyncConnectionPool."""

    connection = Provider.provide


class BlockingPool:
    """psycopg's ConnectionPool."""


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load libraries whose classes are those above."""
    psycopg: Any = SimpleNamespace(
        Connection=PsycopgBlocking, AsyncConnection=Psycopg, Cursor=BlockingCursor, AsyncCursor=Cursor
    )
    monkeypatch.setitem(sys.modules, "psycopg", psycopg)
    pools: Any = SimpleNamespace(AsyncConnectionPool=PsycopgPool, ConnectionPool=BlockingPool)
    monkeypatch.setitem(sys.modules, "psycopg_pool", pools)
    monkeypatch.setattr("asyncpg.pool.Pool", Pool)


def statement(value: str) -> str:
    return f"SELECT {value}"


@pytest.mark.parametrize(("connection", "kind"), [
    (Asyncpg(), "asyncpg.Connection"), (PsycopgBlocking(), "psycopg.Connection"), (BlockingPool(), "ConnectionPool"),
    (Psycopg(), "psycopg.AsyncConnection"), (PsycopgPool(None), "AsyncConnectionPool"), (Pool(None), "asyncpg.Pool"),
    (Asyncpg, ""), (object(), ""), (None, ""),
])  # fmt: skip
def test_a_connection_is_recognized_by_its_class_or_its_methods(connection: Any, kind: str) -> None:
    assert connections.kind_of(connection) == kind


@pytest.mark.parametrize(("encoding", "expected"), [
    ("UTF8", ("SELECT CAST(CAST($1 AS refcursor) AS text)", "abc")),
    ("utf-8", ("SELECT CAST(CAST($1 AS refcursor) AS text)", "abc")),
    ("LATIN1", ("SELECT 'abc'",)),
])  # fmt: skip
async def test_asyncpg_gets_a_parameter_only_in_utf_8(encoding: str, expected: tuple[str, ...]) -> None:
    connection = Asyncpg(encoding=encoding)

    assert await connections.execute(connection, statement, "abc") == 3
    assert connection.executed == [expected]


async def test_psycopg_gets_the_text_of_the_statement_and_prepares_nothing() -> None:
    connection, blocking = Psycopg(), PsycopgBlocking()

    assert await connections.execute(connection, statement, "abc") == 2
    connections.execute_blocking(blocking, statement, "abc")
    assert connection.executed == blocking.executed == [("SELECT 'abc'", False)]


@pytest.mark.parametrize("kind", [Asyncpg, Psycopg])
async def test_a_transaction_commits_at_its_end_or_is_rolled_back(kind: type[Asyncpg | Psycopg]) -> None:
    connection = kind()
    async with connections.begin(connection, "call()"):
        connection.steps.append("work")
    with pytest.raises(KeyError):
        async with connections.begin(connection, "call()"):
            raise KeyError

    assert connection.steps == ["begin", "work", "commit", "begin", "rollback"]


@pytest.mark.parametrize(("connection", "error"), [
    (Asyncpg(busy=True), "call(): this Asyncpg is in a transaction already"),
    (Psycopg(status=1), "call(): this Psycopg is in a transaction already"),
    (Psycopg(status=2), "call(): this Psycopg is in a transaction already"),
    (Asyncpg(closed=True), "call(): this Asyncpg is closed"),
    (Psycopg(closed=True), "call(): this Psycopg is closed"),
    (Released(), "call(): this Released was released to its pool"),
])  # fmt: skip
async def test_a_connection_that_cannot_begin_a_transaction_is_refused(connection: Any, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with connections.begin(connection, "call()"):
            pass

    assert str(caught.value).startswith(error)
    assert connection.steps == []


@pytest.mark.parametrize(("busy", "autocommit", "refused"), [
    (False, False, True), (True, False, False), (False, True, False), (True, True, False),
])  # fmt: skip
def test_a_connection_outside_of_a_transaction_commits_immediately(busy: bool, autocommit: bool, refused: bool) -> None:
    checks: list[Callable[[], None]] = [
        lambda: connections.check_asyncpg("call()", Asyncpg(busy=busy), autocommit=autocommit),
        lambda: connections.check_psycopg("call()", Psycopg(status=busy, autocommit=True), autocommit=autocommit),
        lambda: connections.check_sqlalchemy("call()", None, sqlalchemy(autocommit=not busy), autocommit=autocommit),
    ]
    for check in checks:
        if refused:
            with pytest.raises(ConfigError, match="the event would be committed immediately"):
                check()
        else:
            check()
    connections.check_psycopg("call()", Psycopg(status=busy, autocommit=False), autocommit=False)


def sqlalchemy(*, dialect: str = "postgresql", closed: bool = False, autocommit: bool = False) -> Any:
    driver = SimpleNamespace(dbapi_connection=SimpleNamespace(autocommit=autocommit))
    return SimpleNamespace(closed=closed, dialect=SimpleNamespace(name=dialect), connection=driver)


@pytest.mark.parametrize(("connection", "error"), [
    (None, "is closed"), (sqlalchemy(closed=True), "is closed"), (sqlalchemy(dialect="sqlite"), "leads to sqlite"),
])  # fmt: skip
def test_a_connection_of_sqlalchemy_is_open_and_leads_to_postgresql(connection: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        connections.check_sqlalchemy("call()", object(), connection, autocommit=True)


def factory_of(provided: Any) -> Any:
    pool = Pool(provided)
    return lambda: pool.acquire()


async def test_a_source_provides_a_connection_and_gets_it_back() -> None:
    connection = Asyncpg()
    async with connections.open_connection(connection, "call()") as found:
        assert found is connection
    sources: list[Provider] = [Pool(connection), PsycopgPool(connection)]
    for source in sources:
        async with connections.open_connection(source, "call()") as found:
            assert (found, source.ended) == (connection, 0)
        assert source.ended == 1
    async with connections.open_connection(factory_of(connection), "call()") as found:
        assert found is connection


@pytest.mark.parametrize(("source", "error"), [
    (PsycopgBlocking(), "this PsycopgBlocking is blocking; pass one for asyncio"),
    (BlockingPool(), "this BlockingPool is blocking; pass one for asyncio"),
    (object(), "this object cannot be used; pass an async_sessionmaker"),
    (Asyncpg, "this type cannot be used"),
    (lambda: object(), "this function cannot be used"),
    (factory_of(object()), "this function provides object, which cannot be used"),
    (Pool(PsycopgBlocking()), "this Pool provides PsycopgBlocking, which cannot be used"),
])  # fmt: skip
async def test_another_source_is_refused(source: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=rf"call\(\): {error}"):
        async with connections.open_connection(source, "call()"):
            pass


def test_a_scoped_session_is_called_for_its_current_one() -> None:
    session = SimpleNamespace(sync_session=None)

    assert connections.session_of(session) is session
    assert connections.session_of(lambda: session) is session
    assert connections.session_of("session") == "session"


@pytest.mark.parametrize(("error", "state"), [
    (SimpleNamespace(sqlstate="42P01"), "42P01"), (SimpleNamespace(orig=SimpleNamespace(sqlstate="42P01")), "42P01"),
    (SimpleNamespace(sqlstate=None, orig=SimpleNamespace(sqlstate="1")), "1"), (ValueError(), None),
])  # fmt: skip
def test_an_sqlstate_is_that_of_the_driver(error: Any, state: str | None) -> None:
    assert connections.sqlstate_of(error) == state
