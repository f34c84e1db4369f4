"""The circuit breaker of a handler: while every call fails, its messages are better kept in the queue.

Source: Michael Nygard, "Release It!", 2007, "Circuit Breaker": closed, open, half-open.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger("smartpipe.breaker")

DEFAULT_MAX_RESET_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """Stops receiving from a handler's queue while every call of the handler fails.

    After *failures* consecutive failures the circuit is open: no message is received, and messages that fail meanwhile
    are returned to the queue, never dead-lettered. After *reset_seconds* one message is received as a probe. If it
    succeeds, the circuit closes; if it fails, the time to the next probe doubles. ``Retry``, ``Reject`` and the retry
    policy's ``never_on`` say something about a message, not about the handler, so they count neither as a success nor
    as a failure.

    The call of a batch handler counts as one success or, if every item fails, as one failure. Each worker process has
    a circuit of its own.

    Args:
        failures: 1 or more.
        reset_seconds: The time from opening to the first probe, above 0.
        max_reset_seconds: The longest time between probes, at most 43,200; by default 300, or
            *reset_seconds* if that is more.

    Raises:
        ConfigError: A value outside its range.
    """

    failures: int = 5
    reset_seconds: float = 30.0
    max_reset_seconds: float | None = None

    def __post_init__(self) -> None:
        """Validate every field, and report all errors together."""
        errors = []
        if self.failures < 1:
            errors.append(f"CircuitBreaker: failures={self.failures} must be 1 or more")
        if not 0 < self.reset_seconds <= self.longest_reset_seconds <= MAX_VISIBILITY_SECONDS:
            errors.append(
                f"CircuitBreaker: reset_seconds={self.reset_seconds} and "
                f"max_reset_seconds={self.longest_reset_seconds} must be above 0, in this order, and at most "
                f"{MAX_VISIBILITY_SECONDS:,}"
            )
        if errors:
            raise ConfigError(errors)

    @property
    def longest_reset_seconds(self) -> float:
        """The longest time between probes."""
        if self.max_reset_seconds is not None:
            return self.max_reset_seconds
        return max(DEFAULT_MAX_RESET_SECONDS, self.reset_seconds)


class Circuit:
    """The state of one handler's breaker, and a gate for the receive calls of its queue.

    Args:
        name: The handler's name, for the log.
        call_later: The event loop's: calls a function after a number of seconds.
    """

    def __init__(
        self,
        name: str,
        breaker: CircuitBreaker,
        *,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        self._wakes: list[Callable[[], None]] = []
        self.state = "closed"
        self.reset_seconds = breaker.reset_seconds
        self.name = name
        self._breaker = breaker
        self._call_later = call_later
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether calls succeed, or have not failed often enough to open the circuit."""
        return self.state == "closed"

    @property
    def openness(self) -> float:
        """The state as a number, for metrics: 1 open, 0.5 half-open, 0 closed."""
        return {"open": 1.0, "half-open": 0.5, "closed": 0.0}[self.state]

    def record_success(self) -> None:
        """Record that the handler returned."""
        self._failures = 0
        if self.state == "half-open":
            log.info("Circuit of %s closed: its probe succeeded, receiving from its queue again", self.name)
            self.state, self.reset_seconds = "closed", self._breaker.reset_seconds
            self._wake()

    def record_failure(self) -> None:
        """Record that the handler failed."""
        self._failures += 1
        if self.state == "half-open":
            self.reset_seconds = min(self.reset_seconds * 2, self._breaker.longest_reset_seconds)
            self._open("its probe failed")
        elif self.state == "closed" and self._failures >= self._breaker.failures:
            self._open(f"{self._failures} consecutive failures")

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received: all, none, or one as a probe."""
        if self.state == "closed":
            return wanted
        if self.state == "open" or self._probing or wanted < 1:
            return 0
        self._probing = True
        return 1

    def end_call(self, admitted: int, received: int) -> None:
        """Allow another probe if this one brought no message."""
        if admitted and not received:
            self._probing = False

    def end_messages(self, count: int) -> None:
        """Allow another probe, because a message has been settled, whichever handler it was for."""
        if count:
            self._probing = False

    def seconds_until_open(self) -> None:
        """Return None: the functions of ``on_open`` are called instead."""

    @property
    def passive(self) -> bool:
        """Whether it limits nothing, because it is closed."""
        return self.state == "closed"

    def on_open(self, wake: Callable[[], None]) -> None:
        """Call *wake* when messages may be received again."""
        self._wakes.append(wake)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def close(self) -> None:
        """Cancel the next probe."""
        if self._timer is not None:
            self._timer.cancel()

    def _open(self, why: str) -> None:
        self.state = "open"
        self._probing = False
        log.error(
            "Circuit of %s opened: %s; receiving nothing from its queue for %g s", self.name, why, self.reset_seconds
        )
        self._timer = self._call_later(self.reset_seconds, self._half_open)

    def _half_open(self) -> None:
        self.state = "half-open"
        log.info("Circuit of %s half-open: will receive one message as a probe", self.name)
        self._wake()
