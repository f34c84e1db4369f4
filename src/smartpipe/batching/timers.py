"""What happens when something takes too long, with one timer for all of it."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NewType, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

A = TypeVar("A")
R = TypeVar("R")


class TimerExpired(TimeoutError):
    """The call was cancelled because it took too long; a TimeoutError of the call's own is none of these."""


Timer = NewType("Timer", int)
"""What one is called by; an object for each would cost as much as all the rest."""


class Timers:
    """Does what ``asyncio.timeout`` and ``call_later`` do, which take 5 and 2 µs; a message costs some 40 in all.

    It belongs to the event loop in which it is made. The price: a timer that nobody needs any more stays until it
    fires, once, and finds nothing.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._pending: dict[Timer, tuple[float, Callable[[], object]]] = {}
        self._numbers = count()
        self._fires_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Have *callback* called, in an empty context, in *seconds*; or never if they are infinite."""
        timer = cast("Timer", next(self._numbers))
        fires_at = self.loop.time() + seconds
        self._pending[timer] = fires_at, callback
        if fires_at < self._fires_at:
            self._arm(fires_at)
        return timer

    def cancel(self, timer: Timer) -> bool:
        """Let it not strike any more; return whether it is in time for that."""
        return self._pending.pop(timer, None) is not None

    async def timeout(
        self,
        seconds: float,
        call: Callable[[A], Awaitable[R]],
        argument: A,
        on_timeout: Callable[[asyncio.Task[Any], A], object] | None = None,
    ) -> R:
        """Return what *call* does with *argument*; cancel it after *seconds*, or never if they are infinite.

        Args:
            on_timeout: Called with the task and *argument* instead of cancelling the task, which it must do itself.

        Raises:
            TimeIsUp: It was cancelled for that, and ended by it.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task(self.loop))
        cancelling = task.cancelling()
        timer = self.call_later(seconds, task.cancel if on_timeout is None else partial(on_timeout, task, argument))
        try:
            return await call(argument)
        except asyncio.CancelledError as error:
            if timer not in self._pending and task.cancelling() <= cancelling + 1:
                raise TimerExpired from error
            raise
        finally:
            if not self.cancel(timer):
                task.uncancel()

    def close(self) -> None:
        """Stop the timer. What is pending does not strike, unless something is set once more."""
        self._fires_at = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, when: float) -> None:
        self.close()
        self._fires_at = when
        # In whose context it was set, it would run, and keep all that is in there.
        self._timer = self.loop.call_at(when, self._fire, context=Context())

    def _fire(self) -> None:
        now = max(self.loop.time(), self._fires_at)  # timers come early by the clock's resolution
        self._fires_at = math.inf
        try:
            for timer in [timer for timer, (fires_at, _) in self._pending.items() if fires_at <= now]:
                due = self._pending.pop(timer, None)
                if due is not None:  # otherwise cancelled by a callback that ran just now
                    due[1]()
        finally:
            next_at = min((fires_at for fires_at, _ in self._pending.values()), default=math.inf)
            if next_at < self._fires_at:
                self._arm(next_at)
