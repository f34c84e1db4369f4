"""Calls that may take so long and no longer, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

A = TypeVar("A")
R = TypeVar("R")


class TimeIsUp(TimeoutError):
    """The call was cancelled because it took too long; a TimeoutError of the call's own is none of these."""


class _Limit:
    __slots__ = ("ends_at", "task")

    def __init__(self, task: asyncio.Task[Any], ends_at: float) -> None:
        self.task = task
        self.ends_at = ends_at


class Deadlines:
    """Does what ``asyncio.timeout`` does, whose timer for each call costs a fifth of what handling a message does.

    The price: a timer that nobody needs any more stays until it fires, once, and finds nothing.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits: dict[_Limit, None] = {}  # a set that keeps its order
        self._fires_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, seconds: float, call: Callable[[A], Awaitable[R]], argument: A) -> R:
        """Return what *call* does with *argument*; cancel it after *seconds*, or never if they are infinite.

        Raises:
            TimeIsUp: It was cancelled for that, and ended by it.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task(self._loop))
        cancelling = task.cancelling()
        limit = _Limit(task, self._loop.time() + seconds)
        self._limits[limit] = None
        if limit.ends_at < self._fires_at:
            self._arm(limit.ends_at)
        try:
            return await call(argument)
        except asyncio.CancelledError as error:
            if limit not in self._limits and task.cancelling() <= cancelling + 1:
                raise TimeIsUp from error
            raise
        finally:
            if limit in self._limits:
                del self._limits[limit]
            else:
                task.uncancel()

    def close(self) -> None:
        """Stop the timer: what still runs has no limit any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, when: float) -> None:
        self.close()
        self._fires_at = when
        self._timer = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        now = max(self._loop.time(), self._fires_at)  # timers come early by the clock's resolution
        self._fires_at = math.inf
        for limit in [limit for limit in self._limits if limit.ends_at <= now]:
            del self._limits[limit]
            limit.task.cancel()
        next_at = min((limit.ends_at for limit in self._limits), default=math.inf)
        if next_at < math.inf:
            self._arm(next_at)
