"""Limits that a handler declares: how many of its calls run at a time, and how fast its queue is received from."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

GATHER_SECONDS = 0.2
"""Tokens are gathered for this long, so that a receive call can bring more than one message: each call is a request."""
EARLY = 1e-6
"""A timer may be early by the resolution of the clock."""


class HandlerLimit:
    """The maximum number of concurrent calls of a handler: a semaphore that can be closed. First come, first served.

    Args:
        size: The maximum.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._closed = False
        self._holders: set[Hashable] = set()
        self._waiting: deque[tuple[asyncio.Future[bool], Hashable, bool]] = deque()

    async def acquire(self, holder: Hashable, *, may_leave: bool) -> bool:
        """Wait until *holder* may call the handler, and return True. Cancelled, it has taken nothing.

        Args:
            may_leave: Return False when the limit is closed, and do not wait after that.
        """
        if self._free > 0:
            self._free -= 1
            self._holders.add(holder)
            return True
        if self._closed and may_leave:
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, holder, may_leave))
        try:
            return await place
        except asyncio.CancelledError:
            self.release(holder)  # if it got its place in the same turn of the loop
            raise

    def release(self, holder: Hashable) -> None:
        """Let the next one in. Nothing happens if *holder* is not in, so a second call is harmless."""
        if holder not in self._holders:
            return
        self._holders.discard(holder)
        while self._waiting:
            place, next_holder, _ = self._waiting.popleft()
            if not place.done():
                self._holders.add(next_holder)
                place.set_result(True)
                return
        self._free += 1

    def close(self) -> None:
        """Send away those who wait and may leave, now and from now on."""
        self._closed = True
        staying = deque[tuple[asyncio.Future[bool], "Hashable", bool]]()
        for place, holder, may_leave in self._waiting:
            if may_leave and not place.done():
                place.set_result(False)
            else:
                staying.append((place, holder, may_leave))
        self._waiting = staying


class TokenBucket:
    """A gate that admits *rate_per_second* messages on average, and a second's worth after a rest.

    Source: the token bucket of ITU-T I.371 and RFC 2697.
    """

    passive = False

    def __init__(self, rate_per_second: float, clock: Callable[[], float]) -> None:
        self._rate = rate_per_second
        self._capacity = max(1.0, rate_per_second)
        self._least = max(1.0, min(MAX_BATCH_ENTRIES, rate_per_second * GATHER_SECONDS))
        self._tokens = self._capacity
        self._asked = 0
        self._clock = clock
        self._filled_at = clock()

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages there are tokens for, and set these aside."""
        self._fill()
        if self._tokens + EARLY < self._least:
            return 0
        admitted = min(wanted, int(self._tokens + EARLY))
        self._tokens -= admitted
        self._asked += admitted
        return admitted

    def polled(self, admitted: int, received: int) -> None:
        """Take back the tokens that no message came for."""
        self._fill()
        self._asked -= admitted
        self._tokens += admitted - received

    def ended(self, count: int) -> None:
        """Do nothing: the rate is one of receives."""

    def seconds_until_open(self) -> float:
        """Return when there are enough tokens for a receive call."""
        return max(0.0, (self._least - self._tokens) / self._rate)

    def on_open(self, wake: Callable[[], None]) -> None:
        """Do nothing: ``seconds_until_open`` says when."""

    def _fill(self) -> None:
        now = self._clock()
        # Messages that open calls may still bring count, or they and a full bucket would come together.
        missing = max(0.0, self._capacity - self._asked - self._tokens)
        self._tokens += min(missing, (now - self._filled_at) * self._rate)
        self._filled_at = now
