"""The one retry layer: sends a batch, and again what the service refused for the moment."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenacity import AsyncRetrying, Retrying, retry_if_result, wait_random_exponential

from smartpipe.errors import TransportError
from smartpipe.message import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenacity import RetryCallState

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 5.0


class Pending(Generic[T]):
    """Which entries of a batch are still to be taken, and which never will be."""

    def __init__(self, entries: Sequence[T]) -> None:
        self.entries = list(entries)
        self.refused: list[tuple[T, Failure]] = []
        self._last: dict[int, Failure] = {}

    def record(self, failures: Sequence[Failure]) -> bool:
        """Take the service's answer; return whether there is anything to send again."""
        again: list[T] = []
        self._last = {}
        for failure in sorted(failures):
            entry = self.entries[failure.position]
            if failure.retryable:
                self._last[len(again)] = failure
                again.append(entry)
            else:
                self.refused.append((entry, failure))
        self.entries = again
        return bool(again)

    def record_error(self, error: TransportError) -> bool:
        """Take it that the call failed as a whole: so did each of its entries."""
        return self.record(
            [Failure(index, error.code, error.detail, error.retryable) for index in range(len(self.entries))]
        )

    def failed(self) -> list[tuple[T, Failure]]:
        """Return every entry that was not taken, with the last thing the service said of it."""
        return self.refused + [(entry, self._last[index]) for index, entry in enumerate(self.entries)]


async def deliver(
    call: Callable[[list[T]], Awaitable[list[Failure]]], entries: Sequence[T], *, deadline_seconds: float
) -> list[tuple[T, Failure]]:
    """Call with *entries*, then with those that failed for the moment, until the deadline.

    Returns what was not taken, in no particular order. Waits have full jitter, from 0.1 to 5 s.
    """
    pending = Pending(entries)
    clock = asyncio.get_running_loop().time
    deadline = clock() + deadline_seconds

    async def attempt() -> bool:
        try:
            return pending.record(await call(pending.entries))
        except TransportError as error:
            return pending.record_error(error)

    if await attempt():
        await asyncio.sleep(_first_wait(deadline_seconds))
        await AsyncRetrying(**_schedule(clock, deadline))(attempt)
    return pending.failed()


def deliver_blocking(
    call: Callable[[list[T]], list[Failure]], entries: Sequence[T], *, deadline_seconds: float
) -> list[tuple[T, Failure]]:
    """Do what ``deliver`` does, in the calling thread."""
    pending = Pending(entries)
    deadline = time.monotonic() + deadline_seconds

    def attempt() -> bool:
        try:
            return pending.record(call(pending.entries))
        except TransportError as error:
            return pending.record_error(error)

    if attempt():
        time.sleep(_first_wait(deadline_seconds))
        Retrying(**_schedule(time.monotonic, deadline))(attempt)
    return pending.failed()


def _first_wait(deadline_seconds: float) -> float:
    return random.uniform(0, min(FIRST_WAIT_SECONDS, deadline_seconds))  # noqa: S311 - jitter, no secret


def _schedule(clock: Callable[[], float], deadline: float) -> dict[str, Any]:
    def out_of_time(state: RetryCallState) -> bool:
        return clock() + state.upcoming_sleep > deadline

    return {
        "retry": retry_if_result(bool),
        "wait": wait_random_exponential(multiplier=2 * FIRST_WAIT_SECONDS, max=MAX_WAIT_SECONDS),
        "stop": out_of_time,
        "retry_error_callback": lambda _: None,
    }
