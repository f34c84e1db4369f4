"""The database of a scenario: write events into its outbox, and count effects."""

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
EFFECT_COUNTS = """
SELECT service, handler, event_id, count(*) AS times FROM chaos_effects GROUP BY service, handler, event_id
"""
OUT_OF_ORDER = """
SELECT count(*) AS found FROM (
    SELECT number, max(number) OVER (
        PARTITION BY account ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before
    FROM (SELECT account, number, min(place) AS first FROM chaos_effects WHERE service LIKE $1 GROUP BY account, number)
    AS firsts
) AS seen WHERE before > number
"""


class EffectCount(NamedTuple):
    """The number of times that an event has had its effect in a service."""

    service: str
    handler: str
    event_id: str
    times: int


class ScenarioDatabase:
    """Opens a connection for each call, because the server may be restarted between calls."""

    def __init__(self, url: str) -> None:
        self.url = url
        asyncio.run(migrate(url))
        self._with_connection(lambda connection: connection.execute(TABLE))

    def write_to_outbox(self, events: Sequence[Event]) -> list[str]:
        """Write the events into the outbox, ten in each transaction, and return their ids."""

        async def run(connection: asyncpg.Connection) -> list[str]:
            outbox, written = Outbox("chaos-outbox"), list[str]()
            for start in range(0, len(events), CHUNK):
                async with connection.transaction():
                    chunk = events[start : start + CHUNK]
                    written += [await outbox.publish(event, connection=connection) for event in chunk]
            return written

        return self._with_connection(run)

    def count_effects(self) -> int:
        return self._fetch_count(EFFECTS)

    def count_completed_claims(self) -> int:
        return self._fetch_count(COMPLETED)

    def count_unpublished(self) -> int:
        return self._fetch_count(UNPUBLISHED)

    def count_out_of_order(self, service: str = "%") -> int:
        """Return the number of events whose first effect happened after that of a later event of their account."""
        return self._fetch_count(OUT_OF_ORDER, service)

    def count_by_event(self) -> list[EffectCount]:
        """Return the number of effects of each event."""
        rows = self._with_connection(lambda connection: connection.fetch(EFFECT_COUNTS))
        return [EffectCount(*row) for row in rows]

    def _fetch_count(self, statement: str, *arguments: str) -> int:
        return int(self._with_connection(lambda connection: connection.fetchval(statement, *arguments)))

    def _with_connection(self, call: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = await asyncpg.connect(self.url)
            try:
                return await call(connection)
            finally:
                await connection.close()

        return asyncio.run(run())
