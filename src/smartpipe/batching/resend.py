"""The one retry layer: sends a batch, and again what the service refused for the moment."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from smartpipe.batching.timers import Timers
from smartpipe.errors import StoreError, TransportError
from smartpipe.message import Failure
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger("smartpipe.attempts")

T = TypeVar("T")

MIN_CALL_SECONDS = 1.0
_WAITS = wait_random_exponential(multiplier=0.1, max=5)
_TOO_LATE = TransportError("DeadlineExceeded", "no answer came in time", retryable=True)


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


async def send_with_retries(
    call: Callable[[list[T]], Awaitable[list[Failure]]],
    entries: Sequence[T],
    *,
    deadline_seconds: float,
    call_seconds: float = math.inf,
    timers: Timers | None = None,
) -> list[tuple[T, Failure]]:
    """Call with *entries*, then with those that failed for the moment, until the deadline.

    Returns what was not taken, in no particular order. Waits have full jitter, up to 5 s. A call that
    hangs is cut off after *call_seconds* or at the deadline, but each has a second at least.

    Args:
        timers: Shared by those who deliver often, which spares them a timer for each call.
    """
    if timers is None:
        timers = Timers()
        try:
            return await send_with_retries(
                call, entries, deadline_seconds=deadline_seconds, call_seconds=call_seconds, timers=timers
            )
        finally:
            timers.close()
    pending = Pending(entries)
    clock = timers.loop.time
    deadline = clock() + deadline_seconds
    for attempt in count(1):
        try:
            seconds = max(MIN_CALL_SECONDS, min(call_seconds, deadline - clock()))
            again = pending.record(await timers.timeout(seconds, call, pending.entries))
        except TransportError as error:
            again = pending.record_error(error)
        except TimeoutError:
            again = pending.record_error(_TOO_LATE)
        wait_seconds = backoff_seconds(_WAITS, attempt, _TOO_LATE) if again else 0.0
        if not again or clock() + wait_seconds >= deadline:
            break
        await asyncio.sleep(wait_seconds)
    return pending.failed()


async def retry(call: Callable[[], Awaitable[T]], *, deadline_seconds: float) -> T:
    """Call, and while it fails for the moment call again, until the deadline. Waits have full jitter, up to 5 s.

    Raises:
        TransportError: What the last try ended with.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_delay(deadline_seconds),
        reraise=True,
    )
    return await retrying(call)


async def retry_until_stopped(what: str, work: Callable[[], Awaitable[None]], *, stopping: asyncio.Event) -> None:
    """Do *work*; while AWS or the store cannot be asked, try on until *stopping*, saying so once per change of state.

    Args:
        what: For the log, as in ``check the topology``.
    """
    failures, fault = 0, ""
    while not stopping.is_set():
        try:
            await work()
        except (TransportError, StoreError) as error:
            failures += 1
            if str(error) != fault:
                fault = str(error)
                log.error("cannot %s, trying on: %s", what, error)  # noqa: TRY400
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff_seconds(OUTAGE_WAITS, failures, error)):
                    await stopping.wait()
        else:
            return


def send_with_retries_blocking(
    call: Callable[[list[T]], list[Failure]], entries: Sequence[T], *, deadline_seconds: float
) -> list[tuple[T, Failure]]:
    """Do what ``send_with_retries`` does, in the calling thread, where a call that hangs ends by its own timeout."""
    pending = Pending(entries)
    deadline = time.monotonic() + deadline_seconds
    for attempt in count(1):
        try:
            again = pending.record(call(pending.entries))
        except TransportError as error:
            again = pending.record_error(error)
        wait_seconds = backoff_seconds(_WAITS, attempt, _TOO_LATE) if again else 0.0
        if not again or time.monotonic() + wait_seconds >= deadline:
            break
        time.sleep(wait_seconds)
    return pending.failed()
