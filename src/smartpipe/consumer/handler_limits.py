"""Limits that a handler declares: its number of concurrent calls, and the rate of receives from its queue."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

LINGER_SECONDS = 0.2
"""Wait for tokens for this long, so that a receive call can bring more than one message: each call costs a request."""
EARLY = 1e-6
"""A timer may fire early by the resolution of the clock."""


class HandlerLimit:
    """The maximum number of concurrent calls of a handler: a semaphore that can be closed, in order of arrival.

    Args:
        size: The maximum.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._closed = False
        self._holders: set[Hashable] = set()
        self._waiting: deque[tuple[asyncio.Future[bool], Hashable, bool]] = deque()

    async def acquire(self, holder: Hashable, *, stop_when_closed: bool) -> bool:
        """Wait until *holder* may call the handler, and return True. If cancelled, it has acquired nothing.

        Args:
            stop_when_closed: Return False once the limit is closed, instead of waiting.
        """
        if self._free > 0:
            self._free -= 1
            self._holders.add(holder)
            return True
        if self._closed and stop_when_closed:
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, holder, stop_when_closed))
        try:
            return await turn
        except asyncio.CancelledError:
            self.release(holder)  # in case it got its turn in the same turn of the loop as the cancellation
            raise

    def release(self, holder: Hashable) -> None:
        """Let the next holder in. If *holder* has not acquired the limit, or released it before, do nothing."""
        if holder not in self._holders:
            return
        self._holders.discard(holder)
        while self._waiting:
            turn, next_holder, _ = self._waiting.popleft()
            if not turn.done():
                self._holders.add(next_holder)
                turn.set_result(True)
                return
        self._free += 1

    def close(self) -> None:
        """Let the waiting holders with *stop_when_closed* return False, and later ones as well."""
        self._closed = True
        remaining = deque[tuple[asyncio.Future[bool], "Hashable", bool]]()
        for turn, holder, stop_when_closed in self._waiting:
            if stop_when_closed and not turn.done():
                turn.set_result(False)
            else:
                remaining.append((turn, holder, stop_when_closed))
        self._waiting = remaining


class TokenBucket:
    """A gate that admits *rate_per_second* messages on average, and those of one second together after a pause.

    Source: the token bucket of ITU-T I.371 and RFC 2697.
    """

    passive = False

    def __init__(self, rate_per_second: float, clock: Callable[[], float]) -> None:
        self._rate = rate_per_second
        self._capacity = max(1.0, rate_per_second)
        self._min_tokens = max(1.0, min(MAX_BATCH_ENTRIES, rate_per_second * LINGER_SECONDS))
        self._tokens = self._capacity
        self._reserved = 0
        self._clock = clock
        self._filled_at = clock()

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages there are tokens for, and reserve these tokens."""
        self._fill()
        if self._tokens + EARLY < self._min_tokens:
            return 0
        admitted = min(wanted, int(self._tokens + EARLY))
        self._tokens -= admitted
        self._reserved += admitted
        return admitted

    def end_call(self, admitted: int, received: int) -> None:
        """Return the tokens that no message came for."""
        self._fill()
        self._reserved -= admitted
        self._tokens += admitted - received

    def end_messages(self, count: int) -> None:
        """Do nothing: the rate limits receives."""

    def seconds_until_open(self) -> float:
        """Return the seconds until there are enough tokens for a receive call."""
        return max(0.0, (self._min_tokens - self._tokens) / self._rate)

    def on_open(self, wake: Callable[[], None]) -> None:
        """Do nothing: ``seconds_until_open`` reports it."""

    def _fill(self) -> None:
        now = self._clock()
        # Messages that open calls may still bring count as well; otherwise they and a full bucket would come together.
        missing = max(0.0, self._capacity - self._reserved - self._tokens)
        self._tokens += min(missing, (now - self._filled_at) * self._rate)
        self._filled_at = now
