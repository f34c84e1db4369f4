"""Virtual time: the event loop's clock jumps to the next timer whenever nothing is left to do now."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

FASTER = 50
"""With sockets open, or threads running that the loop does not know, time is at most so much faster."""
THREAD_SECONDS = 0.05
_KNOWN_THREADS = ("asyncio_", "smartpipe-")


def virtual_time(*busy: Callable[[], bool]) -> AbstractContextManager[None]:
    """Make the running event loop's time virtual inside of the block: hours of waiting take milliseconds.

    It is real while threads run (``asyncio.to_thread``, ``run_in_executor``, sync handlers). While
    sockets are open, or other threads alive, nobody can know whether they are waited for: it is 50
    times as fast then. ``time.time()`` stays as it is. Inside of another such block it changes nothing.

    Args:
        busy: While one of them is true, something that the loop does not know of is being waited for.

    Raises:
        ConfigError: The loop is not one of asyncio's own, such as uvloop's.
    """
    loop: Any = asyncio.get_running_loop()
    if isinstance(getattr(loop, "_selector", None), _JumpingSelector):
        return _joined(loop._selector, busy)  # noqa: SLF001 - virtual already: one clock for all
    if not isinstance(loop, asyncio.SelectorEventLoop):
        msg = f"virtual time needs asyncio's own event loop, not {type(loop).__module__}.{type(loop).__qualname__}"
        raise ConfigError(msg)
    return _patched(loop, busy)


@contextmanager
def _joined(jumping: _JumpingSelector, busy: tuple[Callable[[], bool], ...]) -> Iterator[None]:
    jumping.busy.extend(busy)
    try:
        yield
    finally:
        for one in busy:
            jumping.busy.remove(one)


@contextmanager
def _patched(loop: Any, busy: tuple[Callable[[], bool], ...]) -> Iterator[None]:
    jumping = _JumpingSelector(loop._selector, loop.time(), busy)  # noqa: SLF001 - there is no public way in
    original_executor = loop.run_in_executor

    def run_in_executor(*arguments: Any) -> Any:
        future = original_executor(*arguments)
        jumping.threads.add(future)
        future.add_done_callback(jumping.threads.discard)
        return future

    loop._selector, loop.time, loop.run_in_executor = jumping, lambda: jumping.now, run_in_executor  # noqa: SLF001
    try:
        yield
    finally:
        loop._selector = jumping.inner  # noqa: SLF001
        del loop.time, loop.run_in_executor


class _JumpingSelector:
    """Stands before the loop's selector: where that would sleep, it moves the clock."""

    def __init__(self, inner: Any, now: float, busy: tuple[Callable[[], bool], ...]) -> None:
        self.inner = inner
        self.now = now
        self.threads: set[Any] = set()
        self.busy = list(busy)
        self._sockets_of_the_loop = len(inner.get_map())
        self._threads_before = set(threading.enumerate())

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready; with nothing ready, let *timeout* pass at once."""
        ready = self.inner.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads or any(busy() for busy in self.busy):
            started = time.monotonic()
            ready = self.inner.select(THREAD_SECONDS if timeout is None else min(timeout, THREAD_SECONDS))
            self.now += time.monotonic() - started
            return ready
        if timeout is not None and self._somebody_else():
            ready = self.inner.select(timeout / FASTER)
            if ready:
                return ready
        if timeout is None:  # no timer at all: only a signal can help, as on any loop
            return self.inner.select(None)
        self.now += timeout
        return []

    def _somebody_else(self) -> bool:
        """Return whether there are sockets or threads whose answers may be waited for."""
        return len(self.inner.get_map()) > self._sockets_of_the_loop or any(
            thread not in self._threads_before and not thread.name.startswith(_KNOWN_THREADS)
            for thread in threading.enumerate()
        )

    def __getattr__(self, name: str) -> Any:
        """Be the loop's own selector in everything else."""
        return getattr(self.inner, name)
