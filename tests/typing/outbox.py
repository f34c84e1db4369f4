"""Checked by mypy, never run: an object without a transaction of the right kind is a type error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.outbox import Outbox
from tests.support.events import ADA

if TYPE_CHECKING:
    import asyncpg
    import psycopg
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

OUTBOX = Outbox("typed")


async def right(
    plain: asyncpg.Connection,
    pool: asyncpg.Pool,
    connection: AsyncConnection,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    native: psycopg.AsyncConnection,
) -> None:
    await OUTBOX.publish(ADA, connection=plain)
    async with pool.acquire() as pooled:
        await OUTBOX.publish(ADA, connection=pooled, autocommit=True)
    await OUTBOX.publish(ADA, connection=connection)
    await OUTBOX.publish(ADA, connection=session)
    await OUTBOX.publish(ADA, connection=scoped)
    await OUTBOX.publish(ADA, connection=native)


def right_and_blocking(
    connection: Connection, session: Session, scoped: scoped_session[Session], native: psycopg.Connection
) -> None:
    OUTBOX.publish_blocking(ADA, connection=connection)
    OUTBOX.publish_blocking(ADA, connection=session, autocommit=True)
    OUTBOX.publish_blocking(ADA, connection=scoped)
    OUTBOX.publish_blocking(ADA, connection=native)


async def wrong(
    connection: Connection,
    session: Session,
    native: psycopg.Connection,
    engine: AsyncEngine,
    factory: async_sessionmaker[AsyncSession],
    pool: asyncpg.Pool,
    cursor: psycopg.AsyncCursor,
) -> None:
    await OUTBOX.publish(ADA, connection=connection)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=session)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=native)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=engine)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=factory)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=pool)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection=cursor)  # type: ignore[arg-type]
    await OUTBOX.publish(ADA, connection="postgresql://")  # type: ignore[arg-type]


def wrong_and_blocking(
    connection: AsyncConnection,
    session: AsyncSession,
    plain: asyncpg.Connection,
    native: psycopg.AsyncConnection,
    engine: Engine,
    factory: sessionmaker[Session],
) -> None:
    OUTBOX.publish_blocking(ADA, connection=connection)  # type: ignore[arg-type]
    OUTBOX.publish_blocking(ADA, connection=session)  # type: ignore[arg-type]
    OUTBOX.publish_blocking(ADA, connection=plain)  # type: ignore[arg-type]
    OUTBOX.publish_blocking(ADA, connection=native)  # type: ignore[arg-type]
    OUTBOX.publish_blocking(ADA, connection=engine)  # type: ignore[arg-type]
    OUTBOX.publish_blocking(ADA, connection=factory)  # type: ignore[arg-type]
