"""Handlers in virtual time that use connections which were open before: those of a fixture, as in most suites."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from smartpipe import Service
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SLOW = "SELECT pg_sleep(0.1)"


@asynccontextmanager
async def connected(kind: str, url: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Provide a function that asks the database, over a connection that is open."""
    if kind == "asyncpg":
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            yield lambda: pool.execute(SLOW)
    elif kind == "psycopg":
        async with await psycopg.AsyncConnection.connect(url) as connection:
            yield lambda: connection.execute(SLOW)
    elif kind == "pool of psycopg":
        async with psycopg_pool.AsyncConnectionPool(url, min_size=1, open=False) as connections:
            await connections.wait()

            async def ask() -> None:
                async with connections.connection() as connection:
                    await connection.execute(SLOW)

            yield ask
    else:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))

        async def begin() -> None:
            async with engine.begin() as connection:
                await connection.execute(text(SLOW))

        yield begin
        await engine.dispose()


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "pool of psycopg", "sqlalchemy"])
async def test_a_handler_waits_for_a_database_that_was_connected_before(kind: str, postgres_url: str) -> None:
    async with connected(kind, postgres_url) as ask:
        await ask()
        service = Service("mailer")

        @service.subscribe(UserSignedUp)
        async def handle(_: UserSignedUp) -> None:
            await ask()

        async with MemoryBroker(service) as broker:
            await broker.publish(ADA)
            await broker.drain()

            broker.assert_handled(UserSignedUp)
            assert broker.retried(UserSignedUp) == []
