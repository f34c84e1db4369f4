"""How fast a queue is received from: a token bucket that holds polls back, never messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable


GATHER_SECONDS = 0.2
"""For so long tokens are gathered, that a poll may bring more than one message; each poll is a request."""
EARLY = 1e-6
"""A timer may be early by the resolution of the clock."""


class Gate(Protocol):
    """What a poller asks before it polls.

    ``counts_ends`` says whether ``ended`` does anything: it would be called for each message.
    """

    @property
    def counts_ends(self) -> bool:
        """Whether it wants to be told when a message has been dealt with."""

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages a poll may ask for."""

    def polled(self, admitted: int, received: int) -> None:
        """Take note that a poll for so many messages has ended and brought so many."""

    def ended(self, count: int) -> None:
        """Take note that so many messages have been dealt with."""

    def seconds_until_open(self) -> float | None:
        """Return when asking again is worth it, or None: the gate itself says when."""


class TokenBucket:
    """Admits *rate_per_second* messages on average, and a second's worth at once after a rest.

    Source: the token bucket of ITU-T I.371 and RFC 2697.
    """

    counts_ends = False

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
        """Do nothing: a rate is of receives."""

    def seconds_until_open(self) -> float:
        """Return when there are tokens enough for a poll."""
        return max(0.0, (self._least - self._tokens) / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        # What open polls may still bring counts, lest they and a full bucket come together.
        room = max(0.0, self._capacity - self._asked - self._tokens)
        self._tokens += min(room, (now - self._filled_at) * self._rate)
        self._filled_at = now
