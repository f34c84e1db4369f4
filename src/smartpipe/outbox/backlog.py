"""Reads the backlog of the outbox from the database, at most once in 5 s for any number of requests."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import SmartpipeError
from smartpipe.idempotency.stores.database import DATABASE_ERRORS
from smartpipe.outbox.statements import READ_BACKLOG

if TYPE_CHECKING:
    import asyncpg

    from smartpipe.idempotency.stores.database import DatabaseUrl

log = logging.getLogger("smartpipe.relay")

FRESH_SECONDS = 5.0
QUERY_SECONDS = 10.0
WAIT_SECONDS = 3.0
"""How long a request waits for the database. Prometheus gives up after 10 s."""


class Backlog(NamedTuple):
    """The numbers of waiting and of parked events, and the age of the oldest waiting event."""

    waiting: int
    parked: int
    lag_seconds: float


class BacklogReading(NamedTuple):
    """A backlog, and the time since it was read."""

    backlog: Backlog
    age_seconds: float


class BacklogReader:
    """Reads the backlog on one connection, one query at a time, and caches it for 5 s.

    Requests that arrive while a query runs wait for its result. After a failure the next query also waits for 5 s.
    Meanwhile requests get the last result, with its age.
    """

    def __init__(self, database: DatabaseUrl) -> None:
        self._database = database
        self._stack = AsyncExitStack()
        self._connection: asyncpg.Connection | None = None
        self._query: asyncio.Task[None] | None = None
        self._last: tuple[Backlog, float] | None = None
        self._first_asked_at: float | None = None
        self._queried_at = float("-inf")
        self._failing = False

    async def read(self) -> BacklogReading | None:
        """Return the backlog, at most 5 s old, or older while the database is unreachable; None before the first."""
        clock = asyncio.get_running_loop().time
        if self._first_asked_at is None:
            self._first_asked_at = clock()
        if self._query is None and clock() - self._queried_at >= FRESH_SECONDS:
            self._query = asyncio.create_task(self._run_query())
        if self._query is not None:
            await asyncio.wait([self._query], timeout=WAIT_SECONDS)  # after a timeout it keeps running, for others
        return None if self._last is None else BacklogReading(self._last[0], clock() - self._last[1])

    def count_unanswered_seconds(self) -> float:
        """Return the time since the first call of ``read``, for a database that has not answered yet."""
        now = asyncio.get_running_loop().time()
        return 0.0 if self._first_asked_at is None else now - self._first_asked_at

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
        if self._query is not None:
            self._query.cancel()
            await asyncio.wait([self._query])
        await self._disconnect()

    async def _run_query(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            if self._connection is None or self._connection.is_closed():
                await self._disconnect()
                self._connection = await self._stack.enter_async_context(
                    self._database.connect(timeout=QUERY_SECONDS, command_timeout=QUERY_SECONDS)
                )
            self._last = (await read_backlog(self._connection), clock())
            self._failing = False
        except (*DATABASE_ERRORS, SmartpipeError) as error:
            await self._disconnect()
            if not self._failing:
                log.warning(
                    "Cannot read the backlog of the outbox, retrying; metrics show the last one: %s",
                    self._database.store_error("backlog", error),
                )
            self._failing = True
        finally:
            self._queried_at = clock()
            self._query = None

    async def _disconnect(self) -> None:
        self._connection = None
        await self._stack.aclose()


async def read_backlog(connection: asyncpg.Connection) -> Backlog:
    """Read the backlog from the database."""
    row = await connection.fetchrow(READ_BACKLOG)
    return Backlog(*row) if row else Backlog(0, 0, 0.0)
