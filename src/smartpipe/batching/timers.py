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


class TimeIsUp(TimeoutError):
    """The call was cancelled because it took too long; a TimeoutError of the call's own is none of these."""


Deadline = NewType("Deadline", int)
"""What one is called by; an object for each would cost as much as all the rest."""


class Deadlines:
    """Does what ``asyncio.timeout`` and ``call_later`` do, which take 5 and 2 µs; a message costs some 40 in all.

    It belongs to the event loop in which it is made. The price: a timer that nobody needs any more stays until it
    fires, once, and finds nothing.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._pending: dict[Deadline, tuple[float, Callable[[], object]]] = {}
        self._numbers = count()
        self._fires_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float, strike: Callable[[], object]) -> Deadline:
        """Have *strike* called, in an empty context, in *seconds*; or never if they are infinite."""
        deadline = cast("Deadline", next(self._numbers))
        strikes_at = self.loop.time() + seconds
        self._pending[deadline] = strikes_at, strike
        if strikes_at < self._fires_at:
            self._arm(strikes_at)
        return deadline

    def clear(self, deadline: Deadline) -> bool:
        """Let it not strike any more; return whether it is in time for that."""
        return self._pending.pop(deadline, None) is not None

    async def within(
        self,
        seconds: float,
        call: Callable[[A], Awaitable[R]],
        argument: A,
        on_strike: Callable[[asyncio.Task[Any], A], object] | None = None,
    ) -> R:
        """Return what *call* does with *argument*; cancel it after *seconds*, or never if they are infinite.

        Args:
            on_strike: Called with the task and *argument* instead of cancelling the task, which it must do itself.

        Raises:
            TimeIsUp: It was cancelled for that, and ended by it.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task(self.loop))
        cancelling = task.cancelling()
        deadline = self.set(seconds, task.cancel if on_strike is None else partial(on_strike, task, argument))
        try:
            return await call(argument)
        except asyncio.CancelledError as error:
            if deadline not in self._pending and task.cancelling() <= cancelling + 1:
                raise TimeIsUp from error
            raise
        finally:
            if not self.clear(deadline):
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
            for deadline in [deadline for deadline, (strikes_at, _) in self._pending.items() if strikes_at <= now]:
                due = self._pending.pop(deadline, None)
                if due is not None:  # else cleared by one that struck just now
                    due[1]()
        finally:
            next_at = min((strikes_at for strikes_at, _ in self._pending.values()), default=math.inf)
            if next_at < self._fires_at:
                self._arm(next_at)
