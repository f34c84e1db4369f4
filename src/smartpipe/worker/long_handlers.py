"""Find handlers that have run for so long that a drain might have to cancel them."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.consumer.consumer import Consumer
    from smartpipe.consumer.leases import Lease
    from smartpipe.settings import WorkerSettings

MAX_PROTECT_AFTER_SECONDS = 30.0


class LongHandler(NamedTuple):
    """A handler that needs protection, and the time for which it has run."""

    name: str
    seconds: float


class _Worker(Protocol):
    @property
    def consumers(self) -> Sequence[Consumer]:
        """The consumers, one for each queue."""


class LongHandlers:
    """Watches the handlers of this process.

    A handler that ends within ``finish_seconds`` of its start is always saved by the drain, whenever SIGTERM comes. So
    a handler needs protection only if it has run for half of this time, and for 30 s at most. The other half is left
    to obtain the protection, with retries.

    The age of a handler counts from the first ``find`` that sees it, so that handler calls record nothing.
    """

    def __init__(self, workers: Sequence[_Worker], settings: WorkerSettings) -> None:
        self._workers = workers
        self._finish_seconds = settings.finish_seconds
        self._after_seconds = protect_after_seconds(settings)
        self._since: dict[Lease, float] = {}

    async def find(self) -> LongHandler | None:
        """Return the handler that has run for longest, if it needs protection."""
        now = asyncio.get_running_loop().time()
        running = [
            lease
            for worker in self._workers
            for consumer in worker.consumers
            if consumer.processor.longest_seconds > self._finish_seconds  # otherwise the drain saves all of them
            for pending in [consumer.processor.list_pending()]  # a drain calls their handler immediately
            for lease in consumer.leases.list_running()
            if lease.message.message_id not in pending
        ]
        self._since = {lease: self._since.get(lease, now) for lease in running}
        if not self._since:
            return None
        lease, since = min(self._since.items(), key=itemgetter(1))
        seconds = now - since
        return LongHandler(lease.handler or "", seconds) if seconds >= self._after_seconds else None


def protect_after_seconds(settings: WorkerSettings) -> float:
    """Return the age at which a handler needs protection."""
    return min(MAX_PROTECT_AFTER_SECONDS, settings.finish_seconds / 2)
