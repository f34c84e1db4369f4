"""When to try a failed delivery again. Pure: a receive count goes in, seconds or "give up" come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from tenacity import wait_random_exponential

from smartpipe.errors import ConfigError
from smartpipe.limits import MAX_RECEIVES, MAX_VISIBILITY_SECONDS

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.wait import wait_base

OUTAGE_WAITS = wait_random_exponential(multiplier=0.5, min=0.2, max=30)
"""Between tries to reach AWS, for as long as it takes; never none, so that no loop runs hot."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and how far apart, a failing handler is tried.

    The queue is the retry store: between attempts the message waits in SQS, invisible. Attempts are
    counted by SQS's receive count, which also grows when a delivery was lost or given back in a
    drain; so a handler may fail fewer times than *attempts* before its message is dead-lettered.
    By default the eight attempts span two minutes on average: more than a database's restart.

    Args:
        attempts: How often at most the handler is tried: 1 (never again) to 1,000.
        base_seconds: The longest wait after the first failure; it doubles with every further one.
            Waits are drawn between 0 and that ("full jitter": Marc Brooker, "Exponential Backoff
            And Jitter", AWS Architecture Blog, 2015), so that failures spread out.
        max_seconds: The longest wait of all, at most 43,200, which is as far as SQS goes.
        wait: Any tenacity wait strategy, in place of the two above.
        never_on: Exceptions that no retry can help: dead-lettered at the first.
        on_exhausted: What becomes of a message whose attempts are over. ``"dead-letter"``; or, on FIFO
            queues only, ``"halt"``: its group stops there, tried again every *max_seconds* and reported
            as an error each time, until it succeeds, or retention or 1,000 deliveries end it.

    Raises:
        ConfigError: A value outside its range.
    """

    attempts: int = 8
    base_seconds: float = 2.0
    max_seconds: float = 300.0
    wait: wait_base | None = None
    never_on: tuple[type[Exception], ...] = ()
    on_exhausted: Literal["dead-letter", "halt"] = "dead-letter"

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        problems = []
        if not 1 <= self.attempts <= MAX_RECEIVES:
            problems.append(f"RetryPolicy: attempts={self.attempts} is outside of 1 to 1,000")
        if not 0 <= self.base_seconds <= MAX_VISIBILITY_SECONDS:
            problems.append(f"RetryPolicy: base_seconds={self.base_seconds} is outside of 0 to 43,200")
        if not 0 <= self.max_seconds <= MAX_VISIBILITY_SECONDS:
            problems.append(f"RetryPolicy: max_seconds={self.max_seconds} is outside of 0 to 43,200")
        if not (isinstance(self.never_on, tuple) and all(isinstance(one, type) for one in self.never_on)):
            problems.append(f"RetryPolicy: never_on={self.never_on!r} is no tuple of exception classes")
        if self.on_exhausted not in ("dead-letter", "halt"):
            problems.append(f'RetryPolicy: on_exhausted={self.on_exhausted!r} is neither "dead-letter" nor "halt"')
        if problems:
            raise ConfigError(problems)
        if self.wait is None:
            waits = wait_random_exponential(multiplier=self.base_seconds, max=self.max_seconds)
            object.__setattr__(self, "wait", waits)

    def seconds_until_retry(self, error: BaseException, receive_count: int) -> float | None:
        """Return how long to wait after the failed delivery number *receive_count*, or None to give up."""
        if receive_count >= self.attempts or isinstance(error, self.never_on):
            return None
        return backoff_seconds(cast("wait_base", self.wait), receive_count, error)


def backoff_seconds(wait: wait_base, attempt_number: int, error: BaseException) -> float:
    """Ask a tenacity wait strategy what follows the failed attempt *attempt_number*, within SQS's range."""
    seconds = wait(cast("RetryCallState", _Attempt(attempt_number, error)))
    return min(max(0.0, seconds), MAX_VISIBILITY_SECONDS)


class _Attempt:
    """The part of a tenacity RetryCallState that its wait strategies read."""

    __slots__ = ("attempt_number", "idle_for", "outcome", "seconds_since_start")

    def __init__(self, attempt_number: int, error: BaseException) -> None:
        from concurrent.futures import Future

        self.attempt_number = attempt_number
        self.idle_for = 0.0
        self.seconds_since_start = 0.0
        self.outcome: Future[None] = Future()
        self.outcome.set_exception(error)
