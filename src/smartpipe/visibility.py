"""Leases: while a message is being handled, its visibility timeout is extended over and over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smartpipe.errors import TransportError
from smartpipe.retry import MAX_VISIBILITY_SECONDS
from smartpipe.transport import BATCH_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.counts import Counts
    from smartpipe.message import Message
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.visibility")

TICKS_PER_TIMEOUT = 6
EXTEND_BELOW = 2 / 3
"""Extended when less than this part of the timeout is left: at a third to a half of it, after SQS practice."""
CEILING_MARGIN_SECONDS = 60
LAG_SECONDS = 1.0


class Lease:
    """A received message, and until when it is ours."""

    __slots__ = ("_clock", "_lost", "ceiling", "deadline", "extending", "handler", "message")

    def __init__(self, message: Message, deadline: float, ceiling: float, clock: Callable[[], float]) -> None:
        self.message = message
        self.deadline = deadline
        self.ceiling = ceiling
        self.extending = False
        self.handler: str | None = None
        self._lost = False
        self._clock = clock

    @property
    def lost(self) -> bool:
        """Whether somebody else may have the message by now; also true while the loop that renews it is blocked."""
        return self._lost or self._clock() >= self.deadline

    @property
    def seconds_left(self) -> float:
        """For how long it can be extended in all."""
        return max(0.0, self.ceiling - self._clock())

    def lose(self) -> bool:
        """Mark it lost; return whether that is news."""
        news = not self._lost
        self._lost = True
        return news


class Visibility:
    """Keeps the leases of one queue's messages: one ticker for all, ten to a call.

    The lease is the visibility timeout given with each receive, counted from before the extension
    was asked for, so that it is never thought longer than it is. It ends for good 12 hours after
    the receive, which is as far as SQS goes.
    """

    def __init__(self, queue: str, transport: Transport, *, visibility_timeout_seconds: float, counts: Counts) -> None:
        self._queue = queue
        self._transport = transport
        self._timeout_seconds = visibility_timeout_seconds
        self._period_seconds = visibility_timeout_seconds / TICKS_PER_TIMEOUT
        self._counts = counts
        self._clock = asyncio.get_running_loop().time
        self._leases: dict[str, Lease] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._failing = False

    def hold(self, message: Message) -> Lease:
        """Begin to keep *message*."""
        ceiling = message.received_at + MAX_VISIBILITY_SECONDS - CEILING_MARGIN_SECONDS
        lease = Lease(message, message.received_at + self._timeout_seconds, ceiling, self._clock)
        self._leases[message.receipt_handle] = lease
        return lease

    def drop(self, lease: Lease) -> None:
        """Stop keeping it: it is settled."""
        self._leases.pop(lease.message.receipt_handle, None)

    async def run(self) -> None:
        """Tick until cancelled."""
        expected = self._clock()
        while True:
            self._watch_lag(self._clock() - expected)
            self.tick()
            expected = self._clock() + self._period_seconds
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
                and not lease.extending
                and lease.deadline - now <= self._timeout_seconds * EXTEND_BELOW
                and self._extension(lease, now) > lease.deadline - now
            ):
                due.append(lease)
        for start in range(0, len(due), BATCH_LIMIT):
            call = asyncio.get_running_loop().create_task(self._extend(due[start : start + BATCH_LIMIT], now))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _extension(self, lease: Lease, now: float) -> float:
        """Return for how long from *now* the lease can be asked for: SQS refuses what goes past 12 hours."""
        return min(self._timeout_seconds, int(lease.ceiling - now))

    async def _extend(self, leases: Sequence[Lease], now: float) -> None:
        asked = [(lease.message.receipt_handle, self._extension(lease, now)) for lease in leases]
        for lease in leases:
            lease.extending = True
        try:
            failures = {f.position: f for f in await self._transport.change_visibility(self._queue, asked)}
        except TransportError as error:
            self._report(error)
            return
        finally:
            for lease in leases:
                lease.extending = False
        self._failing = False
        for index, lease in enumerate(leases):
            failure = failures.get(index)
            if failure is None:
                lease.deadline = now + asked[index][1]
            elif not failure.retryable and lease.message.receipt_handle in self._leases:
                self._lost(lease, f"SQS did not extend it: {failure.code}: {failure.detail}")

    def _report(self, error: TransportError) -> None:
        if not self._failing:
            self._failing = True
            log.warning("leases of queue %s cannot be extended for now: %s", self._queue, error)

    def _lost(self, lease: Lease, why: str) -> None:
        if lease.lose():
            self._counts.lease_lost += 1
            fields = {"message_id": lease.message.message_id, "queue": self._queue, "handler": lease.handler}
            log.warning("lease lost, the message may be handled twice: %s", why, extra={"fields": fields})

    def _watch_lag(self, lag_seconds: float) -> None:
        if lag_seconds > max(LAG_SECONDS, self._period_seconds):
            handlers = sorted({lease.handler for lease in self._leases.values() if lease.handler})
            log.warning(
                "the event loop was blocked for %.1f s, and with it every heartbeat; use `def` handlers, which run in "
                "threads, for blocking code. Running: %s",
                lag_seconds,
                ", ".join(handlers) or "no handler",
            )
