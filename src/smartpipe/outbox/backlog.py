"""The backlog of the outbox, read from the database at most once in 5 s, however many requests ask for it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import SmartpipeError
from smartpipe.idempotency.stores.database import DATABASE_ERRORS
from smartpipe.outbox.statements import LAG

if TYPE_CHECKING:
    import asyncpg

    from smartpipe.idempotency.stores.database import DatabaseUrl

log = logging.getLogger("smartpipe.relay")

FRESH_SECONDS = 5.0
QUERY_SECONDS = 10.0
WAIT_SECONDS = 3.0
"""For so long a request waits for the database; Prometheus gives up after 10 s."""


class Backlog(NamedTuple):
    """The number of events that wait and that are parked, and the age of the oldest that waits."""

    waiting: int
    parked: int
    lag_seconds: float


class Seen(NamedTuple):
    """A backlog, and how long ago it was read."""

    backlog: Backlog
    age_seconds: float


class BacklogReader:
    """Reads the backlog on one connection, one query at a time, and remembers it for 5 s.

    Requests that come while a query runs wait for its answer. After a failure the database is left alone for 5 s too,
    and the last answer is given meanwhile, with its age.
    """

    def __init__(self, database: DatabaseUrl) -> None:
        self._database = database
        self._stack = AsyncExitStack()
        self._connection: asyncpg.Connection | None = None
        self._query: asyncio.Task[None] | None = None
        self._last: tuple[Backlog, float] | None = None
        self._asked_at = float("-inf")
        self._failing = False

    async def last(self) -> Seen | None:
        """Return the backlog, at most 5 s old, or older while the database cannot be asked; None: it never could."""
        clock = asyncio.get_running_loop().time
        if self._query is None and clock() - self._asked_at >= FRESH_SECONDS:
            self._query = asyncio.create_task(self._ask())
        if self._query is not None:
            await asyncio.wait([self._query], timeout=WAIT_SECONDS)  # which leaves it running for the others
        return None if self._last is None else Seen(self._last[0], clock() - self._last[1])

    async def aclose(self) -> None:
        """Disconnect. A second call does nothing."""
        if self._query is not None:
            self._query.cancel()
            await asyncio.wait([self._query])
        await self._disconnect()

    async def _ask(self) -> None:
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
                fault = self._database.store_error("backlog", error)
                log.warning("Cannot read the backlog of the outbox, retrying; metrics show the last one: %s", fault)
            self._failing = True
        finally:
            self._asked_at = clock()
            self._query = None

    async def _disconnect(self) -> None:
        self._connection = None
        await self._stack.aclose()


async def read_backlog(connection: asyncpg.Connection) -> Backlog:
    """Ask the database."""
    row = await connection.fetchrow(LAG)
    return Backlog(*row) if row else Backlog(0, 0, 0.0)
