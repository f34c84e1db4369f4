"""``python -m tests.soak.producer KIND RATE FILE``: publish until SIGTERM, and append each accepted event to the file.

KIND is ``publisher`` or ``outbox``. An event counts as accepted when ``publish`` has returned, or when the transaction
with its outbox row has been committed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from smartpipe import Publisher
from smartpipe.errors import PublishError
from smartpipe.idempotency.stores.database import DATABASE_ERRORS
from smartpipe.outbox import Outbox
from tests.soak.service import Paid, PaidInOrder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.soak.service import SoakEvent

ACCOUNTS = 5
FAILS_EVERY = 20
SECONDS = 0.05


class Producer:
    """Publishes one event of each class at a time, at *rate* per second.

    Args:
        accepted: The file to which accepted events are appended.
    """

    def __init__(self, kind: str, rate: float, accepted: Path) -> None:
        self._kind = kind
        self._pause_seconds = 1 / rate
        self._accepted = accepted
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped.set)
        await (self._publish() if self._kind == "publisher" else self._write_to_outbox())

    async def _publish(self) -> None:
        async with Publisher("soak-publisher") as publisher:
            async for events in self._events():
                results = await asyncio.gather(*map(publisher.publish, events), return_exceptions=True)
                for event, result in zip(events, results, strict=True):
                    if isinstance(result, str):
                        self._record(event, result)
                    elif not isinstance(result, PublishError):  # that event may or may not arrive
                        raise result

    async def _write_to_outbox(self) -> None:
        outbox, url = Outbox("soak-outbox"), os.environ["CHAOS_DATABASE_URL"]
        async with asyncpg.create_pool(url, min_size=0, max_size=2, command_timeout=10) as pool:
            async for events in self._events():
                try:
                    async with pool.acquire() as connection, connection.transaction():
                        written = [await outbox.publish(event, connection=connection) for event in events]
                except DATABASE_ERRORS:
                    continue  # the database is restarting; its transaction may or may not be committed
                for event, event_id in zip(events, written, strict=True):
                    self._record(event, event_id)

    async def _events(self) -> AsyncIterator[list[SoakEvent]]:
        number = 0
        while not self._stopped.is_set():
            number += 1
            fields: dict[str, Any] = {
                "number": number,
                "account": f"{self._kind}-{number % ACCOUNTS}",
                "seconds": SECONDS,
                "fails": int(number % FAILS_EVERY == 0),
            }
            yield [Paid(**fields), PaidInOrder(**fields)]
            try:
                async with asyncio.timeout(self._pause_seconds):
                    await self._stopped.wait()
            except TimeoutError:
                pass

    def _record(self, event: SoakEvent, event_id: str) -> None:
        with self._accepted.open("a") as file:
            file.write(json.dumps([event_id, type(event).__name__]) + "\n")


if __name__ == "__main__":
    asyncio.run(Producer(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])).run())
