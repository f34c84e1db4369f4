"""Leases: while a message is being handled, its visibility timeout is extended over and over."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from smartpipe.errors import TransportError
from smartpipe.limits import MAX_BATCH_ENTRIES, MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.counters import Counters
    from smartpipe.message import Message
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.visibility")

TICKS_PER_TIMEOUT = 6
EXTEND_BELOW = 2 / 3
"""Extended when less than this part of the timeout is left: at a third to a half of it, after SQS practice."""
CEILING_MARGIN_SECONDS = 60
LAG_SECONDS = 1.0
MIN_CALL_SECONDS = 1.0
MAX_CALLS = 16


class Lease:
    """A received message, and until when it is ours.

    ``leaving`` is set when the message is on its way to be deleted or given back; ``extension`` is the
    call that extends it at the moment. ``unbegun`` is how many deliveries of it, before this one, were
    given back without a handler having seen them, and ``explained`` how many of them ended here without a crash,
    these included. ``alone`` is set while it has its turn, or waits for it, among those that may kill
    their process. ``detached`` is set when the message has been settled as timed out
    although its handler still runs.
    """

    __slots__ = (
        "_clock",
        "_lost",
        "alone",
        "ceiling",
        "deadline",
        "detached",
        "explained",
        "extension",
        "handler",
        "leaving",
        "message",
        "returning",
        "unbegun",
    )

    def __init__(self, message: Message, deadline: float, ceiling: float, clock: Callable[[], float]) -> None:
        self.message = message
        self.deadline = deadline
        self.ceiling = ceiling
        self.extension: asyncio.Task[None] | None = None
        self.handler: str | None = None
        self.unbegun = 0
        self.alone = False
        self.explained = 0
        self.detached = False
        self.leaving = False
        self.returning = False
        self._lost = False
        self._clock = clock

    @property
    def lost(self) -> bool:
        """Whether somebody else may have the message by now; also true while the loop that renews it is blocked."""
        return self._lost or self.returning or self._clock() >= self.deadline

    @property
    def seconds_left(self) -> float:
        """For how long it can be extended in all."""
        return max(0.0, self.ceiling - self._clock())

    def lose(self) -> bool:
        """Mark it lost; return whether that is news."""
        news = not self._lost
        self._lost = True
        return news


class Leases:
    """Keeps the leases of one queue's messages: one ticker for all, ten to a call.

    The lease is the visibility timeout given with each receive, counted from before the extension
    was asked for, so that it is never thought longer than it is. It ends for good 12 hours after
    the receive, which is as far as SQS goes.
    """

    def __init__(
        self, queue: str, transport: Transport, *, visibility_timeout_seconds: float, counts: Counters
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._timeout_seconds = visibility_timeout_seconds
        self._period_seconds = visibility_timeout_seconds / TICKS_PER_TIMEOUT
        self._counts = counts
        self._clock = asyncio.get_running_loop().time
        self._leases: dict[str, Lease] = {}
        self._room = asyncio.Semaphore(MAX_CALLS)
        self._failing = False
        self._ticked_at = self._clock()
        self._blocked = (-math.inf, -math.inf)

    def hold(self, messages: Sequence[Message]) -> list[Lease]:
        """Begin to keep *messages*, which came in one answer."""
        received_at = messages[0].received_at
        received_at = min(received_at, self._unread_since(received_at))
        deadline = received_at + self._timeout_seconds
        ceiling = received_at + MAX_VISIBILITY_SECONDS - CEILING_MARGIN_SECONDS
        leases = [Lease(message, deadline, ceiling, self._clock) for message in messages]
        for lease in leases:
            self._leases[lease.message.receipt_handle] = lease
        return leases

    def drop(self, leases: Sequence[Lease]) -> None:
        """Stop keeping them: they are settled."""
        for lease in leases:
            self._leases.pop(lease.message.receipt_handle, None)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self._watch_lag()
            self.tick()
            await asyncio.sleep(self._period_seconds)

    def tick(self) -> None:
        """Start extending the leases that want it, and mark those that ran out."""
        now = self._clock()
        due: list[Lease] = []
        for lease in self._leases.values():
            if now >= lease.deadline:
                self._lost(lease, "its visibility timeout ran out before it could be extended")
            elif (
                not lease.lost
                and not lease.returning
                and lease.extension is None
                and lease.deadline - now <= self._timeout_seconds * EXTEND_BELOW
                and self._extension(lease, now) > lease.deadline - now
            ):
                due.append(lease)
        for start in range(0, len(due), MAX_BATCH_ENTRIES):
            leases = due[start : start + MAX_BATCH_ENTRIES]
            call = asyncio.get_running_loop().create_task(self._extend(leases))
            for lease in leases:
                lease.extension = call

    def _extension(self, lease: Lease, now: float) -> float:
        """Return for how long from *now* the lease can be asked for: SQS refuses what goes past 12 hours."""
        return min(self._timeout_seconds, int(lease.ceiling - now))

    async def _extend(self, leases: Sequence[Lease]) -> None:
        try:
            async with self._room:
                await self._extend_in_turn([lease for lease in leases if not lease.returning])
        finally:
            for lease in leases:
                lease.extension = None

    async def _extend_in_turn(self, leases: Sequence[Lease]) -> None:
        now = self._clock()
        asked = [(lease.message.receipt_handle, self._extension(lease, now)) for lease in leases]
        if not asked:
            return
        try:
            # A call that hangs must leave time for another one before the leases end.
            async with asyncio.timeout(max(MIN_CALL_SECONDS, self._period_seconds)):
                failures = {f.position: f for f in await self._transport.change_visibility(self._queue, asked)}
        except (TransportError, TimeoutError) as error:
            self._report(error)
            return
        self._failing = False
        for position, lease in enumerate(leases):
            failure = failures.get(position)
            if failure is None:
                lease.deadline = now + asked[position][1]
            elif not failure.retryable and not lease.leaving and lease.message.receipt_handle in self._leases:
                self._lost(lease, f"SQS did not extend it: {failure.code}: {failure.detail}")

    def _report(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            log.warning("leases of queue %s cannot be extended for now: %s", self._queue, error or "no answer")

    def _lost(self, lease: Lease, why: str) -> None:
        if lease.lose():
            self._counts.lease_lost += 1
            fields = {"message_id": lease.message.message_id, "queue": self._queue, "handler": lease.handler}
            log.warning("lease lost, the message may be handled twice: %s", why, extra={"fields": fields})

    def _watch_lag(self) -> None:
        """Notice, at a tick, that the loop was blocked since the one before."""
        now, expected = self._clock(), self._ticked_at + self._period_seconds
        lag_seconds = now - expected
        if lag_seconds > max(LAG_SECONDS, self._period_seconds):
            self._blocked = (self._ticked_at, now)
            handlers = sorted({lease.handler for lease in self._leases.values() if lease.handler})
            log.warning(
                "the event loop was blocked for %.1f s, and with it every heartbeat; use `def` handlers, which run in "
                "threads, for blocking code. Running: %s",
                lag_seconds,
                ", ".join(handlers) or "no handler",
            )
        self._ticked_at = now

    def _unread_since(self, now: float) -> float:
        """Return since when an answer that was read *now* may have waited for a blocked loop to read it."""
        if now - self._ticked_at > 2 * self._period_seconds + LAG_SECONDS:
            return self._ticked_at
        since, until = self._blocked
        return since if now - until < LAG_SECONDS else now
