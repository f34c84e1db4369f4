"""Decides whether and when a failed delivery is retried. Pure: from a receive count to seconds, or to "give up"."""

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
"""The waits between attempts to reach AWS. Their number is unlimited, and each is above zero, so no loop runs hot."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The number of attempts of a failing handler, and the waits between them.

    The queue is the retry store: between attempts the message waits in SQS, invisible. Attempts are counted by SQS's
    receive count. It also grows when a delivery was lost, or returned to the queue in a drain, so a handler may fail
    fewer times than *attempts* before its message is dead-lettered. By default the eight attempts span two minutes on
    average: more than a database's restart.

    Args:
        attempts: The maximum number of attempts: 1 (no retry) to 1,000.
        base_seconds: The longest wait after the first failure. It doubles with every further failure. Waits are random
            between 0 and that value ("full jitter": Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture
            Blog, 2015), so that retries spread out.
        max_seconds: The longest wait of all, at most 43,200, the maximum of SQS.
        wait: Any tenacity wait strategy, in place of the two above.
        never_on: Exceptions that no retry can help: the message is dead-lettered at the first one.
        on_exhausted: The action after the last attempt. ``"dead-letter"`` moves the message to the dead-letter queue.
            ``"halt"``, on FIFO queues only, stops its group there: the message is retried every *max_seconds*, with an
            error in the log each time, until it succeeds, its retention ends, or SQS has delivered it 1,000 times.

    Raises:
        ConfigError: A value is out of range.
    """

    attempts: int = 8
    base_seconds: float = 2.0
    max_seconds: float = 300.0
    wait: wait_base | None = None
    never_on: tuple[type[Exception], ...] = ()
    on_exhausted: Literal["dead-letter", "halt"] = "dead-letter"

    def __post_init__(self) -> None:
        """Validate every field, and report all errors together."""
        errors = []
        if not 1 <= self.attempts <= MAX_RECEIVES:
            errors.append(f"RetryPolicy: attempts={self.attempts} must be 1 to 1,000")
        if not 0 <= self.base_seconds <= MAX_VISIBILITY_SECONDS:
            errors.append(f"RetryPolicy: base_seconds={self.base_seconds} must be 0 to 43,200")
        if not 0 <= self.max_seconds <= MAX_VISIBILITY_SECONDS:
            errors.append(f"RetryPolicy: max_seconds={self.max_seconds} must be 0 to 43,200")
        if not (isinstance(self.never_on, tuple) and all(isinstance(one, type) for one in self.never_on)):
            errors.append(f"RetryPolicy: never_on={self.never_on!r} must be a tuple of exception classes")
        if self.on_exhausted not in ("dead-letter", "halt"):
            errors.append(f'RetryPolicy: on_exhausted={self.on_exhausted!r} must be "dead-letter" or "halt"')
        if errors:
            raise ConfigError(errors)
        if self.wait is None:
            waits = wait_random_exponential(multiplier=self.base_seconds, max=self.max_seconds)
            object.__setattr__(self, "wait", waits)

    def seconds_until_retry(self, error: BaseException, receive_count: int) -> float | None:
        """Return the seconds to wait after the failed delivery number *receive_count*, or None to give up."""
        if receive_count >= self.attempts or isinstance(error, self.never_on):
            return None
        return backoff_seconds(cast("wait_base", self.wait), receive_count, error)


def backoff_seconds(wait: wait_base, attempt_number: int, error: BaseException) -> float:
    """Return the wait of a tenacity strategy after the failed attempt *attempt_number*, within the range of SQS."""
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
