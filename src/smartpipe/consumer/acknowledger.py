"""Settles messages with the queue, ten to a call: deletes those that are done, gives back the others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from smartpipe.batching.batcher import Batcher
from smartpipe.batching.resend import send_with_retries
from smartpipe.batching.timers import Timers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.leases import Lease
    from smartpipe.counters import Counters
    from smartpipe.message import Failure
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.acknowledger")

T = TypeVar("T")

LINGER_SECONDS = 0.05
DEADLINE_SECONDS = 10.0
CALL_SECONDS = 3.0
"""For one call: one that hangs must leave time for others before the deadline."""


class Acknowledger:
    """Batches the deletes and releases of one queue.

    A batch goes out when it has ten entries, or 50 ms after its first. Entries that fail for the
    moment are sent again, alone, for 10 s. The lease is kept extended until its message is settled.

    Args:
        on_settled: Called with the leases whose entries have been sent, or given up.
    """

    def __init__(
        self, queue: str, transport: Transport, *, on_settled: Callable[[Sequence[Lease]], None], counts: Counters
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._on_settled = on_settled
        self._counts = counts
        self._unsettled = 0
        self._timers = Timers()
        self._deletes: Batcher[Lease] = Batcher(self._delete, self._timers, linger_seconds=LINGER_SECONDS)
        self._releases: Batcher[tuple[Lease, float]] = Batcher(
            self._release, self._timers, linger_seconds=LINGER_SECONDS
        )

    @property
    def unsettled(self) -> int:
        """How many messages wait for their delete or release, or are on their way."""
        return self._unsettled

    def delete(self, lease: Lease) -> None:
        """Delete the message soon."""
        lease.leaving = True
        self._unsettled += 1
        self._deletes.add(lease)

    def release(self, lease: Lease, seconds: float) -> None:
        """Make the message visible again in *seconds*, or as late as SQS takes; without a lease, leave it alone."""
        self._unsettled += 1
        if lease.lost:
            self._settled([lease])
            return
        lease.leaving = lease.returning = True
        self._releases.add((lease, min(seconds, int(lease.seconds_left))))

    async def drain(self) -> None:
        """Send what is gathered and wait until it is settled."""
        await self._deletes.drain()
        await self._releases.drain()
        self._timers.close()

    async def _delete(self, leases: list[Lease]) -> None:
        async def call(entries: list[Lease]) -> list[Failure]:
            return await self._transport.delete(self._queue, [lease.message.receipt_handle for lease in entries])

        try:
            failed = await self._deliver(call, leases)
        finally:
            self._settled(leases)
        for lease, failure in failed:
            self._counts.not_deleted += 1
            self._log(lease, failure, logging.WARNING, "a finished message could not be deleted and will come again")

    async def _release(self, batch: list[tuple[Lease, float]]) -> None:
        async def call(entries: list[tuple[Lease, float]]) -> list[Failure]:
            asked = [(lease.message.receipt_handle, seconds) for lease, seconds in entries]
            return await self._transport.change_visibility(self._queue, asked)

        try:
            # An extension that is on its way would undo the release if it came after it.
            extensions = [lease.extension for lease, _ in batch if lease.extension is not None]
            if extensions:
                await asyncio.wait(extensions)
            failed = await self._deliver(call, batch)
        finally:
            self._settled([lease for lease, _ in batch])
        for (lease, _), failure in failed:
            self._log(lease, failure, logging.INFO, "a message could not be given back and returns when its lease ends")

    async def _deliver(
        self, call: Callable[[list[T]], Awaitable[list[Failure]]], entries: list[T]
    ) -> list[tuple[T, Failure]]:
        return await send_with_retries(
            call, entries, deadline_seconds=DEADLINE_SECONDS, call_seconds=CALL_SECONDS, timers=self._timers
        )

    def _settled(self, leases: Sequence[Lease]) -> None:
        self._unsettled -= len(leases)
        self._on_settled(leases)

    def _log(self, lease: Lease, failure: Failure, level: int, what: str) -> None:
        fields = {"message_id": lease.message.message_id, "queue": self._queue}
        log.log(level, "%s: %s: %s", what, failure.code, failure.detail, extra={"fields": fields})
