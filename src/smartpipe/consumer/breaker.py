"""The circuit breaker of a handler: when all it does fails, its queue keeps the messages better than it.

Source: Michael Nygard, "Release It!", 2007, "Circuit Breaker": closed, open, half-open.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("smartpipe.breaker")

DEFAULT_MAX_RESET_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """Stops the polling of a handler's queue while the handler does nothing but fail.

    After *failures* one after the other the circuit is open: nothing is received, and what fails
    meanwhile is given back, never dead-lettered. After *reset_seconds* one message is received as a
    probe: its success closes the circuit, its failure doubles the time to the next probe. ``Retry``,
    ``Reject`` and the retry policy's ``never_on`` say something of a message, not of the handler, and
    count for neither.

    The call of a batch handler is one success or, if every item fails, one failure. Each worker process has
    a circuit of its own.

    Args:
        failures: 1 or more.
        reset_seconds: Above 0: from opening to the first probe.
        max_reset_seconds: The longest time between probes, at most 43,200; by default 300, or
            *reset_seconds* if that is more.

    Raises:
        ConfigError: A value outside its range.
    """

    failures: int = 5
    reset_seconds: float = 30.0
    max_reset_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        problems = []
        if self.failures < 1:
            problems.append(f"CircuitBreaker: failures={self.failures} must be 1 or more")
        if not 0 < self.reset_seconds <= self.longest_reset_seconds <= MAX_VISIBILITY_SECONDS:
            problems.append(
                f"CircuitBreaker: reset_seconds={self.reset_seconds} and "
                f"max_reset_seconds={self.longest_reset_seconds} must be above 0, in this order, and at most "
                f"{MAX_VISIBILITY_SECONDS:,}"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def longest_reset_seconds(self) -> float:
        """The longest time between probes."""
        if self.max_reset_seconds is not None:
            return self.max_reset_seconds
        return max(DEFAULT_MAX_RESET_SECONDS, self.reset_seconds)


class Timer(Protocol):
    """What can be called off: asyncio's TimerHandle."""

    def cancel(self) -> None:
        """Do not call."""


class Circuit:
    """The state of one handler's breaker; a gate of its queue's poller.

    Args:
        name: The handler's, for the log.
        call_later: Calls a function after so many seconds: the event loop's.
    """

    def __init__(
        self,
        name: str,
        breaker: CircuitBreaker,
        *,
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._wakes: list[Callable[[], None]] = []
        self.state = "closed"
        self.reset_seconds = breaker.reset_seconds
        self._name = name
        self._breaker = breaker
        self._call_later = call_later
        self._timer: Timer | None = None
        self._failures = 0
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether all is well, or thought to be."""
        return self.state == "closed"

    def succeeded(self) -> None:
        """Take note that the handler returned."""
        self._failures = 0
        if self.state == "half-open":
            log.info("circuit of %s closed: its probe succeeded, its queue is polled again", self._name)
            self.state, self.reset_seconds = "closed", self._breaker.reset_seconds
            self._wake()

    def failed(self) -> None:
        """Take note that the handler failed."""
        self._failures += 1
        if self.state == "half-open":
            self.reset_seconds = min(self.reset_seconds * 2, self._breaker.longest_reset_seconds)
            self._open("its probe failed")
        elif self.state == "closed" and self._failures >= self._breaker.failures:
            self._open(f"{self._failures} failures one after the other")

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received: all, none, or one as a probe."""
        if self.state == "closed":
            return wanted
        if self.state == "open" or self._probing or wanted < 1:
            return 0
        self._probing = True
        return 1

    def polled(self, admitted: int, received: int) -> None:
        """Take note that a probe brought nothing: another may be tried."""
        if admitted and not received:
            self._probing = False

    def ended(self, count: int) -> None:
        """Take note that a message has been dealt with, whoever handled it: another probe may be tried."""
        if count:
            self._probing = False

    def seconds_until_open(self) -> None:
        """Return None: ``on_open`` reports it."""

    @property
    def passive(self) -> bool:
        """Whether it limits nothing: it is closed."""
        return self.state == "closed"

    def on_open(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when messages may be received again."""
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
        log.error("circuit of %s opened: %s; its queue is not polled for %g s", self._name, why, self.reset_seconds)
        self._timer = self._call_later(self.reset_seconds, self._half_open)

    def _half_open(self) -> None:
        self.state = "half-open"
        log.info("circuit of %s half-open: one message is tried", self._name)
        self._wake()
