"""Writes a row in the transaction of the caller's connection, and refuses objects without a transaction."""

from __future__ import annotations

from typing import Any, NoReturn

from smartpipe.connections import (
    ASYNC,
    ASYNC_SQLALCHEMY,
    BLOCKING,
    BLOCKING_SQLALCHEMY,
    NOUNS,
    SESSIONS,
    SESSIONS_BLOCKING,
    check_asyncpg,
    check_psycopg,
    check_sqlalchemy,
    describe,
    execute,
    execute_blocking,
    kind_of,
    session_of,
)
from smartpipe.errors import ConfigError
from smartpipe.outbox.rows import insert_statement

_LABEL = "outbox.publish(connection=...)"


async def write(connection: Any, document: str, *, autocommit: bool) -> None:
    """Write *document* through an AsyncConnection.

    Raises:
        ConfigError: *connection* is an object of another kind, is closed, or would commit each statement although
            *autocommit* is False.
    """
    kind = kind_of(connection)
    if kind in SESSIONS:
        connection = await session_of(connection).connection()
    if kind in ASYNC_SQLALCHEMY:
        check_sqlalchemy(_LABEL, connection, connection.sync_connection, autocommit=autocommit)
    elif kind == "psycopg.AsyncConnection":
        check_psycopg(_LABEL, connection, autocommit=autocommit)
    elif kind == "asyncpg.Connection":
        check_asyncpg(_LABEL, connection, autocommit=autocommit)
    else:
        _refuse("publish", connection, kind)
    await execute(connection, insert_statement, document)


def write_blocking(connection: Any, document: str, *, autocommit: bool) -> None:
    """Write *document* through a BlockingConnection. Raises the errors of ``write``."""
    kind = kind_of(connection)
    if kind in SESSIONS_BLOCKING:
        connection = session_of(connection).connection()
    if kind in BLOCKING_SQLALCHEMY:
        check_sqlalchemy(_LABEL, connection, connection, autocommit=autocommit)
    elif kind == "psycopg.Connection":
        check_psycopg(_LABEL, connection, autocommit=autocommit)
    else:
        _refuse("publish_blocking", connection, kind)
    execute_blocking(connection, insert_statement, document)


_EXPECTED = {
    "publish": "the asyncpg Connection, the SQLAlchemy AsyncConnection or AsyncSession, or the psycopg AsyncConnection",
    "publish_blocking": "the SQLAlchemy Connection or Session, or the psycopg Connection",
}
_OTHER = {"publish": "outbox.publish_blocking", "publish_blocking": "await outbox.publish"}


def _refuse(method: str, connection: Any, kind: str) -> NoReturn:
    if kind in ASYNC | BLOCKING:
        nature = "async" if kind in ASYNC else "blocking"
        reason = f"is {nature}; write {_OTHER[method]}(...)"
    elif kind:
        reason = f"is {NOUNS[kind]}, which has no transaction; pass the connection or session that has the transaction"
    else:
        reason = f"cannot be used; pass {_EXPECTED[method]} with the open transaction"
    raise ConfigError(f"{describe(_LABEL, connection)} {reason}")
