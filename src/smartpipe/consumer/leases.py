"""Leases: the visibility timeout of each message is extended while the message is being handled."""

from __future__ import annotations

import asyncio
import logging
import math
from enum import IntEnum
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
"""Extend a lease when less than this part of its timeout is left; a third to a half of it has passed by then."""
CEILING_MARGIN_SECONDS = 60
LAG_SECONDS = 1.0
MIN_CALL_SECONDS = 1.0
MAX_CALLS = 16


class LeaseState(IntEnum):
    """The progress of a message. A lease only ever moves down this list."""

    RECEIVED = 0
    """No handler has begun: the message is being decoded or waits for its turn."""
    RUNNING = 1
    """A handler has begun."""
    OVERDUE = 2
    """The handler did not end after its timeout. Another task settles the message; this one must not."""
    SETTLING = 3
    """The message is being deleted. Its lease is still extended, until the delete is confirmed."""
    DONE = 4
    """The message has been deleted, or the attempt was given up."""
    RETURNED = 5
    """The message is being made visible again, or is visible already: another worker may have it."""


RECEIVED, RUNNING, OVERDUE, SETTLING, DONE, RETURNED = LeaseState


class Lease:
    """A received message, and the right to handle it until a deadline.

    ``deadline`` and ``ceiling`` are times of the event loop: when the visibility timeout ends, and the latest time to
    which SQS allows it to be extended. ``extension`` is the call that is extending it, if there is one. ``handler`` is
    the name of the handler that was called last. ``skipped`` counts earlier deliveries that were returned before a
    handler saw them, and ``returned`` all earlier deliveries that this process has returned, skipped ones included.
    """

    __slots__ = (
        "_clock", "ceiling", "deadline", "extension", "handler", "message", "returned", "skipped", "state",
    )  # fmt: skip

    def __init__(self, message: Message, deadline: float, ceiling: float, clock: Callable[[], float]) -> None:
        self.message = message
        self.deadline = deadline
        self.ceiling = ceiling
        self.state = RECEIVED
        self.extension: asyncio.Task[None] | None = None
        self.handler: str | None = None
        self.skipped = 0
        self.returned = 0
        self._clock = clock

    @property
    def lost(self) -> bool:
        """Whether another worker may have the message by now, as when a blocked loop could not extend the lease."""
        return self.state is RETURNED or self._clock() >= self.deadline

    @property
    def seconds_left(self) -> float:
        """The number of seconds for which it can still be extended in all."""
        return max(0.0, self.ceiling - self._clock())

    def begin(self, handler: str) -> None:
        """Record that *handler* is called now."""
        self.handler = handler
        if self.state is RECEIVED:
            self.state = RUNNING

    def mark_overdue(self) -> None:
        """Record that the handler did not end after its timeout."""
        self.state = OVERDUE

    def start_delete(self) -> None:
        """Record that the message is about to be deleted."""
        self.state = SETTLING

    def end_delete(self) -> None:
        """Record that the message has been deleted, or that the attempt was given up."""
        self.state = DONE

    def start_return(self) -> None:
        """Record that the message is about to become visible again."""
        self.state = RETURNED

    def extend(self, deadline: float) -> None:
        """Record that the visibility timeout now ends at *deadline*. A lost lease stays lost."""
        if self.deadline > -math.inf:
            self.deadline = deadline

    def lose(self) -> bool:
        """End the right to the message now; return False if it had ended before."""
        first, self.deadline = self.deadline > -math.inf, -math.inf
        return first


class Leases:
    """Extends the leases of one queue's messages: one ticker for all of them, ten in a call.

    The length of a lease is the visibility timeout that each receive call asks for. It is measured from the start of
    the call that extends it, so a lease never seems to last longer than it does. SQS extends no lease to more than 12
    hours after the receive call.
    """

    def __init__(
        self, queue: str, transport: Transport, *, visibility_timeout_seconds: float, counters: Counters
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._timeout_seconds = visibility_timeout_seconds
        self._period_seconds = visibility_timeout_seconds / TICKS_PER_TIMEOUT
        self._counters = counters
        self._clock = asyncio.get_running_loop().time
        self._leases: dict[str, Lease] = {}
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._failing = False
        self._ticked_at = self._clock()
        self._blocked = (-math.inf, -math.inf)

    def hold(self, messages: Sequence[Message]) -> list[Lease]:
        """Start to extend the leases of *messages*, which came in one response."""
        received_at = messages[0].received_at
        # A response that lay unread while the loop was blocked is older than it seems, and so are its leases.
        received_at = min(received_at, self._unread_since(received_at))
        deadline = received_at + self._timeout_seconds
        ceiling = received_at + MAX_VISIBILITY_SECONDS - CEILING_MARGIN_SECONDS
        leases = [Lease(message, deadline, ceiling, self._clock) for message in messages]
        for lease in leases:
            self._leases[lease.message.receipt_handle] = lease
        return leases

    def drop(self, leases: Sequence[Lease]) -> None:
        """Stop extending *leases*: their messages have been settled."""
        for lease in leases:
            self._leases.pop(lease.message.receipt_handle, None)

    def list_running(self) -> list[Lease]:
        """Return the leases whose handler has begun and has not ended."""
        return [lease for lease in self._leases.values() if lease.state is RUNNING]

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self._watch_lag()
            self.tick()
            await asyncio.sleep(self._period_seconds)

    def tick(self) -> None:
        """Extend the leases that are due, and detect those that have run out."""
        now = self._clock()
        due: list[Lease] = []
        for lease in self._leases.values():
            if now >= lease.deadline:  # another worker may have it, so it is not extended any more
                self._lose(lease, "its visibility timeout ran out before it could be extended")
            elif (
                lease.state is not RETURNED
                and lease.extension is None  # one call at a time for each lease
                and lease.deadline - now <= self._timeout_seconds * EXTEND_BELOW
                and self._extension_seconds(lease, now) > lease.deadline - now  # near the ceiling it would be shortened
            ):
                due.append(lease)
        for start in range(0, len(due), MAX_BATCH_ENTRIES):
            leases = due[start : start + MAX_BATCH_ENTRIES]
            call = asyncio.get_running_loop().create_task(self._extend(leases))
            for lease in leases:
                lease.extension = call

    def _extension_seconds(self, lease: Lease, now: float) -> float:
        """Return the number of seconds from *now* to ask for: SQS refuses to go past 12 hours."""
        return min(self._timeout_seconds, int(lease.ceiling - now))

    async def _extend(self, leases: Sequence[Lease]) -> None:
        try:
            async with self._calls:
                # Some may have been returned while the call waited. An extension would hide them again.
                await self._send_extension([lease for lease in leases if lease.state is not RETURNED])
        finally:  # a return of the message waits for the task, and the next tick may extend the lease again
            for lease in leases:
                lease.extension = None

    async def _send_extension(self, leases: Sequence[Lease]) -> None:
        # Read the clock after the wait above and before the call: SQS counts from the arrival of the call.
        now = self._clock()
        asked = [(lease.message.receipt_handle, self._extension_seconds(lease, now)) for lease in leases]
        if not asked:
            return
        try:
            # A call that hangs must leave time for another one before the leases end.
            async with asyncio.timeout(max(MIN_CALL_SECONDS, self._period_seconds)):
                failures = {f.position: f for f in await self._transport.change_visibility(self._queue, asked)}
        except (TransportError, TimeoutError) as error:
            self._report_failure(error)
            return
        self._failing = False
        for position, lease in enumerate(leases):
            failure = failures.get(position)
            if failure is None:
                lease.extend(now + asked[position][1])
            # SQS refuses to extend a message that has just been deleted. That lease is not lost.
            elif not failure.retryable and lease.state < SETTLING and lease.message.receipt_handle in self._leases:
                self._lose(lease, f"SQS did not extend it: {failure.code}: {failure.detail}")

    def _report_failure(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "Cannot extend visibility timeouts on queue %s, retrying: %s", self._queue, str(error) or "no answer"
            )

    def _lose(self, lease: Lease, why: str) -> None:
        if lease.lose():
            self._counters.lease_lost += 1
            fields = {"message_id": lease.message.message_id, "queue": self._queue, "handler": lease.handler}
            log.warning("Lost the lease of a message, so it may be handled twice: %s", why, extra={"fields": fields})

    def _watch_lag(self) -> None:
        """Detect at a tick that the event loop was blocked since the tick before."""
        now, expected = self._clock(), self._ticked_at + self._period_seconds
        lag_seconds = now - expected
        if lag_seconds > max(LAG_SECONDS, self._period_seconds):
            self._blocked = (self._ticked_at, now)
            handlers = sorted({lease.handler for lease in self._leases.values() if lease.handler})
            log.warning(
                "The event loop was blocked for %.1f s, so no visibility timeout was extended. Put blocking code into "
                "`def` handlers, which run in threads. Running handlers: %s",
                lag_seconds,
                ", ".join(handlers) or "none",
            )
        self._ticked_at = now

    def _unread_since(self, now: float) -> float:
        """Return the earliest time at which a response read *now* may have arrived, if the loop was blocked."""
        if now - self._ticked_at > 2 * self._period_seconds + LAG_SECONDS:
            return self._ticked_at
        since, until = self._blocked
        return since if now - until < LAG_SECONDS else now
