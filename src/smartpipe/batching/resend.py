"""The only retry layer: sends a batch, and sends the entries with temporary failures again."""

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
    """The entries of a batch that still have to be accepted, and those that were refused."""

    def __init__(self, entries: Sequence[T]) -> None:
        self.entries = list(entries)
        self.refused: list[tuple[T, Failure]] = []
        self._last: dict[int, Failure] = {}

    def record(self, failures: Sequence[Failure]) -> bool:
        """Record the failures of a call; return whether there are entries to send again."""
        again: list[T] = []
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
        """Record that the call failed as a whole, and with it each of its entries."""
        return self.record(
            [Failure(index, error.code, error.detail, error.retryable) for index in range(len(self.entries))]
        )

    def list_failed(self) -> list[tuple[T, Failure]]:
        """Return every entry that was not accepted, with the service's last failure for it."""
        return self.refused + [(entry, self._last[index]) for index, entry in enumerate(self.entries)]


async def send_with_retries(
    call: Callable[[list[T]], Awaitable[list[Failure]]],
    entries: Sequence[T],
    *,
    deadline_seconds: float,
    call_seconds: float = math.inf,
    timers: Timers | None = None,
) -> list[tuple[T, Failure]]:
    """Call with *entries*, then with those that have a temporary failure, until the deadline.

    Return the entries that were not accepted, in no particular order. Waits have full jitter, up to 5 s. A call that
    hangs is cut off after *call_seconds* or at the deadline, but each has at least one second.

    Args:
        timers: The timers of the running loop. Share them between frequent calls, to save a timer for each.
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
    return pending.list_failed()


async def retry(call: Callable[[], Awaitable[T]], *, deadline_seconds: float) -> T:
    """Make the call, and repeat it after temporary failures until the deadline. Waits have full jitter, up to 5 s.

    Raises:
        TransportError: The error of the last attempt.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_delay(deadline_seconds),
        reraise=True,
    )
    return await retrying(call)


async def retry_until_stopped(task: str, attempt: Callable[[], Awaitable[None]], *, stopping: asyncio.Event) -> None:
    """Repeat *attempt* while AWS or the store is unavailable, until *stopping*. Log each error once.

    Args:
        task: A verb and its object for the log, as in ``check the topology``.
    """
    failures, last_error = 0, ""
    while not stopping.is_set():
        try:
            await attempt()
        except (TransportError, StoreError) as error:
            failures += 1
            if str(error) != last_error:
                last_error = str(error)
                log.error("Cannot %s, retrying: %s", task, error)  # noqa: TRY400
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff_seconds(OUTAGE_WAITS, failures, error)):
                    await stopping.wait()
        else:
            return


def send_with_retries_blocking(
    call: Callable[[list[T]], list[Failure]], entries: Sequence[T], *, deadline_seconds: float
) -> list[tuple[T, Failure]]:
    """Do the same as ``send_with_retries`` in the calling thread. A call that hangs must end by its own timeout."""
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
    return pending.list_failed()
