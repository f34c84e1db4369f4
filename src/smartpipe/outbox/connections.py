"""Writes a row in the transaction of the caller's connection, and refuses objects without a transaction."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

from smartpipe.errors import ConfigError
from smartpipe.outbox.rows import insert_statement

if TYPE_CHECKING:
    from collections.abc import Awaitable

# A parameter of type text, varchar or jsonb would pass through a codec that the caller may have set for the type.
_ASYNCPG = insert_statement("CAST(CAST($1 AS refcursor) AS text)")
_SQLALCHEMY = insert_statement("CAST(CAST(:document AS refcursor) AS text)")
# Overrides options of the caller's connection or session that would use a server-side cursor for the statement.
_NO_CURSOR = {"stream_results": False, "yield_per": None}


class _Rows(Protocol):
    """The result of a blocking ``execute``. A coroutine does not match."""

    def fetchall(self) -> Any: ...


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
    def execute(self, statement: Any, parameters: Any = ..., /) -> _Rows: ...  # noqa: D102


AsyncConnection: TypeAlias = AsyncpgConnection | AsyncTransaction


async def write(connection: Any, document: str, *, autocommit: bool) -> None:
    """Write *document* through an AsyncConnection.

    Raises:
        ConfigError: *connection* is an object of another kind, is closed, or would commit each statement although
            *autocommit* is False.
    """
    kind = _kind_of(connection)
    if kind in _SESSIONS:
        connection = await _session_of(connection).connection()
    if kind in _ASYNC_SQLALCHEMY:
        _check_sqlalchemy(connection, connection.sync_connection, autocommit=autocommit)
        driver = (await connection.get_raw_connection()).driver_connection
        if _kind_of(driver) == "asyncpg.Connection" and not _in_utf8(driver):
            await connection.exec_driver_sql(_literal(document), execution_options=_NO_CURSOR)
        else:
            await connection.execute(_text(), {"document": document}, execution_options=_NO_CURSOR)
    elif kind == "psycopg.AsyncConnection":
        _check_psycopg(connection, autocommit=autocommit)
        await _psycopg_cursor("AsyncCursor", connection).execute(_literal(document), prepare=False)
    elif kind == "asyncpg.Connection":
        _check_asyncpg(connection, autocommit=autocommit)
        if _in_utf8(connection):
            await connection.execute(_ASYNCPG, document)
        else:
            await connection.execute(_literal(document))
    else:
        _refuse("publish", connection, kind)


def write_blocking(connection: Any, document: str, *, autocommit: bool) -> None:
    """Write *document* through a BlockingConnection. Raises the errors of ``write``."""
    kind = _kind_of(connection)
    if kind in _SESSIONS_BLOCKING:
        connection = _session_of(connection).connection()
    if kind in _BLOCKING_SQLALCHEMY:
        _check_sqlalchemy(connection, connection, autocommit=autocommit)
        connection.execute(_text(), {"document": document}, execution_options=_NO_CURSOR)
    elif kind == "psycopg.Connection":
        _check_psycopg(connection, autocommit=autocommit)
        _psycopg_cursor("Cursor", connection).execute(_literal(document), prepare=False)
    else:
        _refuse("publish_blocking", connection, kind)


# Classes by module and name. A subclass counts as its base class.
_NAMES = {
    ("asyncpg.connection", "Connection"): "asyncpg.Connection",
    ("asyncpg.pool", "PoolConnectionProxy"): "asyncpg.Connection",
    ("asyncpg.pool", "Pool"): "a pool",
    ("psycopg", "Connection"): "psycopg.Connection",
    ("psycopg", "AsyncConnection"): "psycopg.AsyncConnection",
    ("psycopg_pool", "ConnectionPool"): "a pool",
    ("psycopg_pool", "AsyncConnectionPool"): "a pool",
    ("sqlalchemy.engine", "Connection"): "Connection",
    ("sqlalchemy.engine", "Engine"): "an engine",
    ("sqlalchemy.orm", "Session"): "Session",
    ("sqlalchemy.orm", "scoped_session"): "scoped_session",
    ("sqlalchemy.orm", "sessionmaker"): "a factory of sessions",
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): "AsyncConnection",
    ("sqlalchemy.ext.asyncio", "AsyncSession"): "AsyncSession",
    ("sqlalchemy.ext.asyncio", "async_scoped_session"): "async_scoped_session",
    ("sqlalchemy.ext.asyncio", "AsyncEngine"): "an engine",
    ("sqlalchemy.ext.asyncio", "async_sessionmaker"): "a factory of sessions",
}
_SESSIONS = {"AsyncSession", "async_scoped_session"}
_SESSIONS_BLOCKING = {"Session", "scoped_session"}
_ASYNC_SQLALCHEMY = {"AsyncConnection", *_SESSIONS}
_BLOCKING_SQLALCHEMY = {"Connection", *_SESSIONS_BLOCKING}
_ASYNC = {"asyncpg.Connection", "psycopg.AsyncConnection", *_ASYNC_SQLALCHEMY}
_BLOCKING = {"psycopg.Connection", *_BLOCKING_SQLALCHEMY}


def _kind_of(connection: Any) -> str:
    """Return the kind of *connection*, one of the values of ``_NAMES``; empty for any other object."""
    for (module, name), kind in _NAMES.items():
        loaded = sys.modules.get(module)  # if a module is not loaded, no object of it exists
        cls = getattr(loaded, name, None)
        if cls is not None and isinstance(connection, cls):
            return kind
    # Other libraries for tracing or pooling wrap asyncpg's connections. The wrappers have the same methods.
    is_wrapper = hasattr(connection, "is_in_transaction") and not isinstance(connection, type)
    return "asyncpg.Connection" if is_wrapper else ""


def _session_of(session: Any) -> Any:
    """Return *session*, or the current session of a scoped one."""
    return session if hasattr(session, "sync_session") or not callable(session) else session()


def _check_asyncpg(connection: Any, *, autocommit: bool) -> None:
    try:
        closed, in_transaction = connection.is_closed(), connection.is_in_transaction()
    except sys.modules["asyncpg"].InterfaceError as error:
        raise ConfigError(f"{_describe(connection)} was released to its pool") from error
    if closed:
        _refuse_closed(connection)
    if not in_transaction and not autocommit:
        _refuse_autocommit(connection, "is not in a transaction")


def _check_psycopg(connection: Any, *, autocommit: bool) -> None:
    if connection.closed:
        _refuse_closed(connection)
    idle = connection.info.transaction_status == 0  # psycopg.pq.TransactionStatus.IDLE
    if connection.autocommit and idle and not autocommit:
        _refuse_autocommit(connection, "is in autocommit mode and outside a transaction")


def _check_sqlalchemy(argument: Any, connection: Any, *, autocommit: bool) -> None:
    if connection is None or connection.closed:
        _refuse_closed(argument)
    if connection.dialect.name != "postgresql":
        raise ConfigError(
            f"{_describe(argument)} leads to {connection.dialect.name}, but the outbox is a table in PostgreSQL"
        )
    driver = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", False) and not autocommit:
        _refuse_autocommit(argument, 'has the isolation level "AUTOCOMMIT"')


def _psycopg_cursor(name: str, connection: Any) -> Any:
    """Return a plain cursor, even if the connection has another cursor factory."""
    return getattr(sys.modules["psycopg"], name)(connection)


def _in_utf8(connection: Any) -> bool:
    """Return whether asyncpg encodes parameters in UTF-8.

    With any other ``client_encoding``, asyncpg 0.32 frees the encoded text before it sends it, so a parameter may
    arrive as different bytes. The text of a statement is not affected.
    """
    return str(connection.get_settings().client_encoding).upper().replace("-", "") == "UTF8"


def _literal(document: str) -> str:
    """Return the statement with *document* as a literal. It is Base64, so it needs no quoting."""
    return insert_statement(f"'{document}'")


def _text() -> Any:
    from sqlalchemy import text  # it is installed, because the caller passed an object of it

    return text(_SQLALCHEMY)


_EXPECTED = {
    "publish": "the asyncpg Connection, the SQLAlchemy AsyncConnection or AsyncSession, or the psycopg AsyncConnection",
    "publish_blocking": "the SQLAlchemy Connection or Session, or the psycopg Connection",
}
_OTHER = {"publish": "outbox.publish_blocking", "publish_blocking": "await outbox.publish"}


def _refuse(method: str, connection: Any, kind: str) -> NoReturn:
    if kind in _ASYNC | _BLOCKING:
        nature = "async" if kind in _ASYNC else "blocking"
        reason = f"is {nature}; write {_OTHER[method]}(...)"
    elif kind:
        reason = f"is {kind}, which has no transaction; pass the connection or session that has the transaction"
    else:
        reason = f"cannot be used; pass {_EXPECTED[method]} with the open transaction"
    raise ConfigError(f"{_describe(connection)} {reason}")


def _refuse_closed(connection: Any) -> NoReturn:
    raise ConfigError(f"{_describe(connection)} is closed; pass one with an open transaction")


def _refuse_autocommit(connection: Any, reason: str) -> NoReturn:
    raise ConfigError(
        f"{_describe(connection)} {reason}, so the event would be committed immediately, even if the rest of your work "
        "fails; begin a transaction first, or pass autocommit=True if you want this"
    )


def _describe(connection: Any) -> str:
    return f"outbox.publish(connection=...): this {type(connection).__name__}"
