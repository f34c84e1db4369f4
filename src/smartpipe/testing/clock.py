"""Virtual time: the event loop's clock jumps to the next timer whenever no task is ready."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from contextlib import contextmanager
from functools import partial
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

SPEEDUP = 50
"""The maximum speed of time while sockets are open, or while threads run that the loop does not know."""
THREAD_SECONDS = 0.05
ROUNDING_SECONDS = 1e-6
"""The sum of a time and a wait is up to this far from the time of the timer that the wait was computed from."""
_KNOWN_THREADS = ("asyncio_", "smartpipe-")
_OURS = __name__.partition(".")[0] + "."
_INNER_WAITS = ("asyncio.task", "asyncio.locks", "asyncio.queues", _OURS)
"""Modules whose coroutines wait for a timer or for another task."""
_OUTER_WAITS = f"{_OURS}transports.aws."
_TEST_RUNNER = "_call_in_runner_task"
"""The function of anyio's pytest plugin that waits for the test, in another task."""
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITED = ("cr_await", "gi_yieldfrom", "ag_await")


def virtual_time(*busy: Callable[[], bool]) -> AbstractContextManager[None]:
    """Make the running event loop's time virtual inside the block: hours of waiting take milliseconds.

    Time is real while threads run (``asyncio.to_thread``, ``run_in_executor``, sync handlers). While there are sockets
    or other threads that began inside of the block, the loop cannot know whether a task waits for them, so time runs 50
    times as fast then. It does so too while a task waits for those that were there before, such as the connections of a
    pool that a fixture has opened. ``time.time()`` is not changed. Inside another such block, it only adds *busy*.

    The clock starts at a whole second, and jumps to the exact times of timers. So if all waits are whole seconds, the
    difference of two times is exactly what a task has waited: ``loop.time() - began == 15``.

    Args:
        busy: Functions that return True while a task waits for an operation that the loop does not know.

    Raises:
        ConfigError: The event loop is not asyncio's own, but for example uvloop's.
    """
    loop: Any = asyncio.get_running_loop()
    if isinstance(getattr(loop, "_selector", None), _VirtualSelector):
        return _join_clock(loop._selector, busy)  # noqa: SLF001 - time is virtual already, and there is one clock
    if not isinstance(loop, asyncio.SelectorEventLoop):
        msg = f"virtual time needs asyncio's own event loop, not {type(loop).__module__}.{type(loop).__qualname__}"
        raise ConfigError(msg)
    return _patch_loop(loop, busy)


@contextmanager
def _join_clock(selector: _VirtualSelector, busy: tuple[Callable[[], bool], ...]) -> Iterator[None]:
    selector.busy.extend(busy)
    try:
        yield
    finally:
        for function in busy:
            selector.busy.remove(function)


@contextmanager
def _patch_loop(loop: Any, busy: tuple[Callable[[], bool], ...]) -> Iterator[None]:
    def next_timer() -> float:
        return loop._scheduled[0].when() if loop._scheduled else math.inf  # noqa: SLF001 - as above

    # A whole second: 33087.3 + 15 - 33087.3 is a little less than 15.
    now, tasks = float(math.ceil(loop.time())), partial(asyncio.all_tasks, loop)
    selector = _VirtualSelector(loop._selector, now, busy, next_timer, tasks)  # noqa: SLF001
    original_executor = loop.run_in_executor

    def run_in_executor(*arguments: Any) -> Any:
        future = original_executor(*arguments)
        selector.threads.add(future)
        future.add_done_callback(selector.threads.discard)
        return future

    loop._selector, loop.time, loop.run_in_executor = selector, lambda: selector.now, run_in_executor  # noqa: SLF001
    try:
        yield
    finally:
        loop._selector = selector.inner  # noqa: SLF001
        del loop.time, loop.run_in_executor


def _waits_for_the_world(task: asyncio.Task[Any]) -> bool:
    """Return whether the task waits for something outside of the event loop, and not for a timer or another task."""
    waiter = task._fut_waiter  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public access to it
    if waiter is None or isinstance(waiter, asyncio.Task) or type(waiter).__module__ == "asyncio.tasks":
        return False
    callbacks = getattr(waiter, "_callbacks", None) or ()
    if any(_shields_a_task(call) for call, *_ in callbacks):  # the shielded task is checked itself
        return False
    *_, (before, _), (last, function) = [("", ""), ("", ""), *_functions_of(task.get_coro())]
    if last == "asyncio.locks":  # anyio waits for its sockets with asyncio's events
        return before.startswith("anyio.")
    if last.startswith("anyio.") and function == _TEST_RUNNER:
        return False
    return not last.startswith(_INNER_WAITS) or last.startswith(_OUTER_WAITS)


def _shields_a_task(call: Any) -> bool:
    """Return whether *call* is the callback with which ``asyncio.shield`` connects a future to a task."""
    return getattr(call, "__qualname__", "").startswith("shield.") and any(
        isinstance(cell.cell_contents, asyncio.Task) for cell in call.__closure__ or ()
    )


def _functions_of(coroutine: Any) -> Iterator[tuple[str, str]]:
    """Yield the modules and names of the coroutines that await one another, as far as Python shows them."""
    while coroutine is not None:
        if type(coroutine).__name__.startswith("async_generator_"):  # a step of ``async for``, or of its end
            referents = gc.get_referents(coroutine)
            coroutine = next((one for one in referents if isinstance(one, AsyncGeneratorType)), None)
        frame = next((found for name in _FRAMES if (found := getattr(coroutine, name, None)) is not None), None)
        if frame is None:
            return
        yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        coroutine = next((found for name in _AWAITED if (found := getattr(coroutine, name, None)) is not None), None)


class _VirtualSelector:
    """Wraps the loop's selector. When the selector would sleep, it advances the clock instead."""

    def __init__(
        self,
        inner: Any,
        now: float,
        busy: tuple[Callable[[], bool], ...],
        next_timer: Callable[[], float],
        tasks: Callable[[], Iterable[asyncio.Task[Any]]],
    ) -> None:
        self.inner = inner
        self.now = now
        self.threads: set[Any] = set()
        self.busy = list(busy)
        self._next_timer = next_timer
        self._tasks = tasks
        self._waits: dict[asyncio.Task[Any], tuple[Any, bool]] = {}
        self._sockets_before = len(inner.get_map())
        self._threads_before = set(threading.enumerate())
        # One socket is the loop's own, and one thread is this one.
        self._others_before = self._sockets_before > 1 or len(self._threads_before) > 1

    def select(self, timeout: float | None = None) -> Any:
        """Return the ready events. If there are none, advance the clock by *timeout*."""
        ready = self.inner.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads or any(busy() for busy in self.busy):
            started = time.monotonic()
            ready = self.inner.select(THREAD_SECONDS if timeout is None else min(timeout, THREAD_SECONDS))
            self.now += time.monotonic() - started
            return ready
        if timeout is not None and self._has_unknown_waits():
            ready = self.inner.select(timeout / SPEEDUP)
            if ready:
                return ready
        if timeout is None:  # no timer: only a signal can wake the loop, as in real time
            return self.inner.select(None)
        target, timer = self.now + timeout, self._next_timer()
        self.now = timer if abs(timer - target) < ROUNDING_SECONDS else target
        return []

    def _has_unknown_waits(self) -> bool:
        """Return whether there are sockets or threads that a task may wait for."""
        if len(self.inner.get_map()) > self._sockets_before or any(
            thread not in self._threads_before and not thread.name.startswith(_KNOWN_THREADS)
            for thread in threading.enumerate()
        ):
            return True
        return self._others_before and self._has_outer_waits()

    def _has_outer_waits(self) -> bool:
        """Return whether a task waits for the world. Between two timers, most tasks wait for the same future."""
        known, self._waits = self._waits, {}
        for task in self._tasks():
            waiter = task._fut_waiter  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            found = known.get(task)
            if found is None or found[0] is not waiter:
                found = waiter, _waits_for_the_world(task)
            self._waits[task] = found
        return any(outer for _, outer in self._waits.values())

    def __getattr__(self, name: str) -> Any:
        """Forward everything else to the loop's selector."""
        return getattr(self.inner, name)
