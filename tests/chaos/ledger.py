"""A scenario's own database: what was written into its outbox, and which effects are there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import asyncpg

from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.outbox import Outbox
from tests.chaos.service import TABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe import Event

T = TypeVar("T")

CHUNK = 10
EFFECTS = "SELECT count(*) AS found FROM chaos_effects"
COMPLETED = "SELECT count(*) AS found FROM smartpipe_claims WHERE state = 'completed'"
UNPUBLISHED = "SELECT count(*) AS found FROM smartpipe_outbox WHERE published_at IS NULL"
COUNTED = """
SELECT service, handler, event_id, count(*) AS times FROM chaos_effects GROUP BY service, handler, event_id
"""
OVERTAKEN = """
SELECT count(*) AS found FROM (
    SELECT number, max(number) OVER (
        PARTITION BY account ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before
    FROM (SELECT account, number, min(place) AS first FROM chaos_effects GROUP BY account, number) AS firsts
) AS seen WHERE before > number
"""


class Counted(NamedTuple):
    """How often an event has had its effect in a service."""

    service: str
    handler: str
    event_id: str
    times: int


class Ledger:
    """Each call has a connection of its own: the server may be restarted in between."""

    def __init__(self, url: str) -> None:
        self.url = url
        asyncio.run(migrate(url))
        self._with_connection(lambda connection: connection.execute(TABLE))

    def write(self, events: Sequence[Event]) -> list[str]:
        """Write them into the outbox, ten to a transaction; return their ids."""

        async def run(connection: asyncpg.Connection) -> list[str]:
            outbox, written = Outbox("chaos-outbox"), list[str]()
            for start in range(0, len(events), CHUNK):
                async with connection.transaction():
                    chunk = events[start : start + CHUNK]
                    written += [await outbox.publish(event, connection=connection) for event in chunk]
            return written

        return self._with_connection(run)

    def effects(self) -> int:
        return self._found(EFFECTS)

    def completed(self) -> int:
        return self._found(COMPLETED)

    def unpublished(self) -> int:
        return self._found(UNPUBLISHED)

    def overtaken(self) -> int:
        """How many events had their first effect after a later event of their account."""
        return self._found(OVERTAKEN)

    def counted(self) -> list[Counted]:
        """How often each event's effect is there."""
        rows = self._with_connection(lambda connection: connection.fetch(COUNTED))
        return [Counted(*row) for row in rows]

    def _found(self, statement: str) -> int:
        return int(self._with_connection(lambda connection: connection.fetchval(statement)))

    def _with_connection(self, call: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = await asyncpg.connect(self.url)
            try:
                return await call(connection)
            finally:
                await connection.close()

        return asyncio.run(run())
