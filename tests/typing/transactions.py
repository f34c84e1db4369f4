"""Checked by mypy, never run: a transaction has the type of its source, and a wrong source is a type error."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import asyncpg
import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

    from smartpipe import Delivery


async def right(
    delivery: Delivery,
    factory: async_sessionmaker[AsyncSession],
    session: AsyncSession,
    engine: AsyncEngine,
    connection: AsyncConnection,
    native: psycopg.AsyncConnection,
    plain: asyncpg.Connection,
    pool: asyncpg.Pool,
) -> None:
    async with delivery.transaction() as one:
        assert_type(one, asyncpg.Connection)
    async with delivery.transaction(factory) as two:
        assert_type(two, AsyncSession)
    async with delivery.transaction(session) as three:
        assert_type(three, AsyncSession)
    async with delivery.transaction(engine) as four:
        assert_type(four, AsyncConnection)
    async with delivery.transaction(connection) as five:
        assert_type(five, AsyncConnection)
    async with delivery.transaction(native) as six:
        assert_type(six, psycopg.AsyncConnection)
    async with delivery.transaction(plain) as seven:
        assert_type(seven, asyncpg.Connection)
    async with delivery.transaction(pool) as eight:
        assert_type(eight, asyncpg.Connection)


async def wrong(
    delivery: Delivery, factory: sessionmaker[Session], session: Session, engine: Engine, native: psycopg.Connection
) -> None:
    delivery.transaction(factory)  # type: ignore[type-var]
    delivery.transaction(session)  # type: ignore[call-overload]
    delivery.transaction(engine)  # type: ignore[type-var]
    delivery.transaction(native)  # type: ignore[type-var]
    delivery.transaction("postgresql://")  # type: ignore[call-overload]
