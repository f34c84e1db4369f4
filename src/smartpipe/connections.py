"""The connections and sessions of asyncpg, SQLAlchemy and psycopg: recognizes, checks and uses them.

None of these libraries is imported here. If a module is not loaded, no object of it exists.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, TypeVar

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Statement: TypeAlias = Callable[[str], str]

# A parameter of type text, varchar or jsonb would pass through a codec that the caller may have set for the type.
_ASYNCPG = "CAST(CAST($1 AS refcursor) AS text)"
_SQLALCHEMY = "CAST(CAST(:document AS refcursor) AS text)"
# Overrides options of the caller's connection or session that would use a server-side cursor for the statement.
_OPTIONS = {"stream_results": False, "yield_per": None, "preserve_rowcount": True}


class Rows(Protocol):
    """The result of a blocking ``execute``. A coroutine does not match."""

    def fetchall(self) -> Any: ...  # noqa: D102


class AsyncpgConnection(Protocol):
    """asyncpg's Connection, also from a Pool."""

    def is_in_transaction(self) -> bool: ...  # noqa: D102
    def execute(self, query: str, /, *args: Any) -> Awaitable[Any]: ...  # noqa: D102


class AsyncTransaction(Protocol):
    """SQLAlchemy's AsyncConnection, AsyncSession or async_scoped_session, or psycopg's AsyncConnection."""

    def rollback(self) -> Awaitable[None]: ...  # noqa: D102
    def execute(self, statement: Any, parameters: Any = ..., /) -> Awaitable[Any]: ...  # noqa: D102


class BlockingConnection(Protocol):
    """SQLAlchemy's Connection, Session or scoped_session, or psycopg's Connection."""

    def rollback(self) -> None: ...  # noqa: D102
    def execute(self, statement: Any, parameters: Any = ..., /) -> Rows: ...  # noqa: D102


AsyncConnection: TypeAlias = AsyncpgConnection | AsyncTransaction

C = TypeVar("C", bound=AsyncConnection)
C_co = TypeVar("C_co", bound=AsyncConnection, covariant=True)


class Factory(Protocol[C_co]):
    """A function that returns sessions, such as SQLAlchemy's async_sessionmaker."""

    def __call__(self) -> C_co: ...  # noqa: D102


class Engine(Protocol[C_co]):
    """SQLAlchemy's AsyncEngine."""

    def connect(self) -> C_co: ...  # noqa: D102


class Pool(Protocol[C_co]):
    """psycopg's AsyncConnectionPool."""

    def connection(self) -> AbstractAsyncContextManager[C_co]: ...  # noqa: D102


# Classes by module and name. A subclass counts as its base class.
_NAMES = {
    ("asyncpg.connection", "Connection"): "asyncpg.Connection",
    ("asyncpg.pool", "Pool"): "asyncpg.Pool",
    ("psycopg", "Connection"): "psycopg.Connection",
    ("psycopg", "AsyncConnection"): "psycopg.AsyncConnection",
    ("psycopg_pool", "ConnectionPool"): "ConnectionPool",
    ("psycopg_pool", "AsyncConnectionPool"): "AsyncConnectionPool",
    ("sqlalchemy.engine", "Connection"): "Connection",
    ("sqlalchemy.engine", "Engine"): "Engine",
    ("sqlalchemy.orm", "Session"): "Session",
    ("sqlalchemy.orm", "scoped_session"): "scoped_session",
    ("sqlalchemy.orm", "sessionmaker"): "sessionmaker",
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): "AsyncConnection",
    ("sqlalchemy.ext.asyncio", "AsyncSession"): "AsyncSession",
    ("sqlalchemy.ext.asyncio", "async_scoped_session"): "async_scoped_session",
    ("sqlalchemy.ext.asyncio", "AsyncEngine"): "AsyncEngine",
    ("sqlalchemy.ext.asyncio", "async_sessionmaker"): "async_sessionmaker",
}
NOUNS = {
    **dict.fromkeys(("asyncpg.Pool", "ConnectionPool", "AsyncConnectionPool"), "a pool"),
    **dict.fromkeys(("Engine", "AsyncEngine"), "an engine"),
    **dict.fromkeys(("sessionmaker", "async_sessionmaker"), "a factory of sessions"),
}
"""Objects that provide connections or sessions, but have no transaction themselves."""
SESSIONS = {"AsyncSession", "async_scoped_session"}
SESSIONS_BLOCKING = {"Session", "scoped_session"}
ASYNC_SQLALCHEMY = {"AsyncConnection", *SESSIONS}
BLOCKING_SQLALCHEMY = {"Connection", *SESSIONS_BLOCKING}
ASYNC = {"asyncpg.Connection", "psycopg.AsyncConnection", *ASYNC_SQLALCHEMY}
BLOCKING = {"psycopg.Connection", *BLOCKING_SQLALCHEMY}
BLOCKING_PROVIDERS = {"ConnectionPool", "Engine", "sessionmaker"}


def kind_of(connection: Any) -> str:
    """Return the kind of *connection*, one of the values of ``_NAMES``; empty for any other object."""
    for (module, name), kind in _NAMES.items():
        loaded = sys.modules.get(module)
        cls = getattr(loaded, name, None)
        if cls is not None and isinstance(connection, cls):
            return kind
    # Other libraries for tracing or pooling wrap asyncpg's connections. The wrappers have the same methods.
    is_wrapper = hasattr(connection, "is_in_transaction") and not isinstance(connection, type)
    return "asyncpg.Connection" if is_wrapper else ""


def session_of(session: Any) -> Any:
    """Return *session*, or the current session of a scoped one."""
    return session if hasattr(session, "sync_session") or not callable(session) else session()


async def execute(connection: Any, statement: Statement, document: str) -> int:
    """Run a statement on an async connection or session, and return the number of rows that it found or changed.

    It is independent of codecs, row factories and session settings: the statement has one value, *document*.

    Args:
        statement: Returns the statement for an SQL expression that has the value of *document*.
        document: Base64, so it needs no quoting.
    """
    kind = kind_of(connection)
    if kind in SESSIONS:
        connection = await session_of(connection).connection()
    if kind in ASYNC_SQLALCHEMY:
        driver = (await connection.get_raw_connection()).driver_connection
        if kind_of(driver) == "asyncpg.Connection" and not _in_utf8(driver):
            result = await connection.exec_driver_sql(statement(f"'{document}'"), execution_options=_OPTIONS)
        else:
            parameters = {"document": document}
            result = await connection.execute(_text(statement), parameters, execution_options=_OPTIONS)
        return int(result.rowcount)
    if kind == "psycopg.AsyncConnection":
        cursor = sys.modules["psycopg"].AsyncCursor(connection)  # even if the connection has another cursor factory
        await cursor.execute(statement(f"'{document}'"), prepare=False)
        return int(cursor.rowcount)
    if _in_utf8(connection):
        status = await connection.execute(statement(_ASYNCPG), document)
    else:
        status = await connection.execute(statement(f"'{document}'"))
    return int(status.rpartition(" ")[2])


def execute_blocking(connection: Any, statement: Statement, document: str) -> None:
    """Run a statement on a blocking connection or session; see ``execute``."""
    kind = kind_of(connection)
    if kind in SESSIONS_BLOCKING:
        connection = session_of(connection).connection()
    if kind in BLOCKING_SQLALCHEMY:
        connection.execute(_text(statement), {"document": document}, execution_options=_OPTIONS)
    else:
        sys.modules["psycopg"].Cursor(connection).execute(statement(f"'{document}'"), prepare=False)


@asynccontextmanager
async def open_connection(source: Any, label: str) -> AsyncIterator[Any]:
    """Provide a connection or session from *source*, or *source* itself if it is one.

    Args:
        source: A factory of sessions, an engine or a pool, which closes at the end what it has provided; or a
            connection or session, which its owner closes.
        label: The call, for error messages.

    Raises:
        ConfigError: It is blocking, or another kind of object.
    """
    kind = kind_of(source)
    if kind in ASYNC:
        yield session_of(source) if kind in SESSIONS else source
        return
    if kind in BLOCKING | BLOCKING_PROVIDERS:
        raise ConfigError(f"{describe(label, source)} is blocking; pass one for asyncio, such as an async_sessionmaker")
    provider: Any = None
    if kind == "AsyncEngine":
        provider = source.connect()
    elif kind == "AsyncConnectionPool":
        provider = source.connection()
    elif kind == "asyncpg.Pool":
        provider = source.acquire()
    elif callable(source) and not isinstance(source, type):
        provider = source()
    if provider is None or not hasattr(provider, "__aenter__"):
        raise ConfigError(
            f"{describe(label, source)} cannot be used; pass an async_sessionmaker, AsyncSession, AsyncEngine or "
            "AsyncConnection of SQLAlchemy, or a connection or pool of asyncpg or psycopg for asyncio"
        )
    async with provider as connection:
        if kind_of(connection) not in ASYNC:
            raise ConfigError(f"{describe(label, source)} provides {type(connection).__name__}, which cannot be used")
        yield connection


@asynccontextmanager
async def begin(connection: Any, label: str) -> AsyncIterator[None]:
    """Begin a transaction, and commit it at the end; or roll it back after an error.

    Raises:
        ConfigError: The connection is closed, commits each statement, or is in a transaction already.
    """
    kind = kind_of(connection)
    if kind in ASYNC_SQLALCHEMY:
        busy = connection.in_transaction()
    elif kind == "psycopg.AsyncConnection":
        check_psycopg(label, connection, autocommit=True)
        busy = connection.info.transaction_status != 0  # psycopg.pq.TransactionStatus.IDLE
    else:
        check_asyncpg(label, connection, autocommit=True)
        busy = connection.is_in_transaction()
    if busy:
        raise ConfigError(
            f"{describe(label, connection)} is in a transaction already, which only its owner may commit; use it "
            "before your first statement, or pass the factory, engine or pool that it comes from"
        )
    transaction = connection.begin() if kind in ASYNC_SQLALCHEMY else connection.transaction()
    async with transaction:
        if kind in ASYNC_SQLALCHEMY:
            bound = await connection.connection() if kind in SESSIONS else connection
            check_sqlalchemy(label, connection, bound.sync_connection, autocommit=False)
        yield


def check_asyncpg(label: str, connection: Any, *, autocommit: bool) -> None:
    """Raise ConfigError if *connection* is closed, or would commit each statement although *autocommit* is False."""
    try:
        closed, in_transaction = connection.is_closed(), connection.is_in_transaction()
    except sys.modules["asyncpg"].InterfaceError as error:
        raise ConfigError(f"{describe(label, connection)} was released to its pool") from error
    if closed:
        _refuse_closed(label, connection)
    if not in_transaction and not autocommit:
        _refuse_autocommit(label, connection, "is not in a transaction")


def check_psycopg(label: str, connection: Any, *, autocommit: bool) -> None:
    """Raise ConfigError as ``check_asyncpg`` does."""
    if connection.closed:
        _refuse_closed(label, connection)
    idle = connection.info.transaction_status == 0  # psycopg.pq.TransactionStatus.IDLE
    if connection.autocommit and idle and not autocommit:
        _refuse_autocommit(label, connection, "is in autocommit mode and outside a transaction")


def check_sqlalchemy(label: str, argument: Any, connection: Any, *, autocommit: bool) -> None:
    """Raise ConfigError as ``check_asyncpg`` does, also if the database is not PostgreSQL.

    Args:
        argument: The connection or session that the caller passed.
        connection: Its blocking connection.
    """
    if connection is None or connection.closed:
        _refuse_closed(label, argument)
    if connection.dialect.name != "postgresql":
        raise ConfigError(
            f"{describe(label, argument)} leads to {connection.dialect.name}, but the table is in PostgreSQL"
        )
    driver = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", False) and not autocommit:
        _refuse_autocommit(label, argument, 'has the isolation level "AUTOCOMMIT"')


def describe(label: str, connection: Any) -> str:
    """Return the beginning of an error message about *connection*."""
    return f"{label}: this {type(connection).__name__}"


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of asyncpg or psycopg, or of SQLAlchemy's error around it."""
    return getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "sqlstate", None)


def _in_utf8(connection: Any) -> bool:
    """Return whether asyncpg encodes parameters in UTF-8.

    With any other ``client_encoding``, asyncpg 0.32 frees the encoded text before it sends it, so a parameter may
    arrive as different bytes. The text of a statement is not affected.
    """
    return str(connection.get_settings().client_encoding).upper().replace("-", "") == "UTF8"


def _text(statement: Statement) -> Any:
    from sqlalchemy import text  # it is installed, because the caller passed an object of it

    return text(statement(_SQLALCHEMY))


def _refuse_closed(label: str, connection: Any) -> NoReturn:
    raise ConfigError(f"{describe(label, connection)} is closed; pass one with an open transaction")


def _refuse_autocommit(label: str, connection: Any, reason: str) -> NoReturn:
    raise ConfigError(
        f"{describe(label, connection)} {reason}, so the event would be committed immediately, even if the rest of "
        "your work fails; begin a transaction first, or pass autocommit=True if you want this"
    )
