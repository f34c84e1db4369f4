"""Threads for sync handlers. A function in a thread can be abandoned, but not stopped."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Lock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

from smartpipe.consumer.capacity import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable


SHORT_SECONDS = 0.0001
"""A function that takes less than this is over before another thread would have been woken."""
CHECK_SECONDS = 0.001
"""While functions wait for a thread, the event loop checks this often whether another one has to be woken."""


class _Completions:
    """Hands the results of functions over to their event loop: one wake-up for all that end in one of its turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended: deque[_Call] = deque()
        self.wake_planned = False
        self.checking = False
        self._scheduled = False

    def schedule(self) -> None:
        """Complete the calls that have ended soon. Called in a thread."""
        if not self._scheduled:
            self._scheduled = True
            with suppress(RuntimeError):  # the loop is closed, and nothing awaits the call
                self.loop.call_soon_threadsafe(self.complete)

    def complete(self) -> None:
        """Complete the calls that have ended. Called in the event loop."""
        self._scheduled = False  # first: what is added from now on either is found below or wakes the loop again
        while self.ended:
            self.ended.popleft().complete()


class _Call:
    """One call of a function in a thread. Its *future* belongs to the event loop."""

    __slots__ = (
        "_arguments", "_context", "_failure", "_function", "_result", "_unclaimed", "abandoned", "completions", "ended",
        "future",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], arguments: list[Any], completions: _Completions) -> None:
        self.future: asyncio.Future[Any] = completions.loop.create_future()
        self.completions = completions
        self.ended = False
        self.abandoned: Future[None] | None = None
        self._function = function
        self._arguments = arguments
        self._context = contextvars.copy_context()
        self._result: Any = None
        self._failure: BaseException | None = None
        self._unclaimed = [None]

    def claim(self) -> bool:
        """Return True to the first of the two that ask: the thread that would begin, or a caller that is cancelled."""
        try:
            self._unclaimed.pop()  # atomic
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Call the function, and keep its result. Called in the thread."""
        try:
            self._result = self._context.run(self._function, *self._arguments)
        except StopIteration as error:  # a future refuses this exception, so its awaiter would wait for ever
            self._failure = RuntimeError("the handler raised StopIteration")
            self._failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised in the caller, as from any call
            self._failure = error

    def complete(self) -> None:
        """Give the result to the caller. Called in the event loop."""
        if self.abandoned is not None:
            self.abandoned.set_result(None)
        elif self.future.done():  # cancelled
            pass
        elif self._failure is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._failure)


class Threads:
    """Runs functions in threads, each with the caller's context variables.

    A woken thread costs more than a short function: two system calls, and a wait until another thread leaves Python's
    interpreter to it. So the threads share one queue. At the end of its turn, the event loop wakes one of them, and
    each that takes a call and leaves more behind wakes the next, before it runs its own. So long functions run in
    parallel. While functions are short, no other thread is woken: one runs them all, and gives their results to the
    event loop when no more are waiting. If one of them turns out to be long, the event loop wakes another thread for
    those behind it, a millisecond later.

    A ThreadPoolExecutor cannot do this: it wakes a thread for each function. And if a thread cannot be started,
    ``submit`` fails, but the function stays in the executor's queue and runs later.

    Args:
        size: The maximum number of idle threads to keep. Callers limit the number of concurrent functions, and there is
            a thread for each of them. Abandoned functions have further threads, which ``capacity`` limits.
        capacity: Where abandoned functions are counted; by default one for *size* slots.
    """

    def __init__(self, size: int, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity(size)
        self._size = size
        self._closed = False
        self._abandoned: set[Future[None]] = set()
        self._running: set[_Call] = set()
        self._completions: _Completions | None = None
        self._lock = Lock()
        # Held for these.
        self._waiting: deque[_Call] = deque()
        self._threads = 0
        self._busy = 0
        self._asleep: list[Lock] = []
        self._waking = False
        self._short = False  # the last call was
        self._draining = False  # a thread will soon take the next call

    @property
    def abandoned(self) -> int:
        """The number of abandoned functions that are still running."""
        return len(self._abandoned)

    @property
    def running(self) -> bool:
        """Whether a function is running whose result is still awaited."""
        return bool(self._running)

    async def run(
        self, function: Callable[..., Any], arguments: list[Any], on_abandoned: Callable[[], None], name: str = ""
    ) -> Any:
        """Return the result of *function*. If cancelled, leave the function running and call *on_abandoned*.

        Args:
            name: The handler's name, for the log.

        Raises:
            RuntimeError: The operating system cannot start another thread, or ``close`` was called. Nothing has run.
            MemoryError: Likewise.
        """
        loop = asyncio.get_running_loop()
        if self._completions is None or self._completions.loop is not loop:
            self._completions = _Completions(loop)
        call = _Call(function, arguments, self._completions)
        self._submit(call)
        self._running.add(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            if not call.claim() and not call.ended:  # a function that has not begun is not abandoned
                self._abandon(call, name)
                on_abandoned()
            raise
        finally:
            self._running.discard(call)

    def close(self) -> None:
        """Accept no more functions; do not wait for those that are running."""
        with self._lock:
            self._closed = True
            asleep, self._asleep = self._asleep, []
        for thread in asleep:
            thread.release()

    def _abandon(self, call: _Call, name: str) -> None:
        # Completed in the loop, so a function that ends at this moment finds it too.
        future: Future[None] = Future()
        call.abandoned = future
        self._abandoned.add(future)
        future.add_done_callback(self._abandoned.discard)
        self.capacity.abandon(future, name)

    def _submit(self, call: _Call) -> None:
        with self._lock:
            if self._busy + len(self._waiting) >= self._threads:
                self._start_thread()
            self._waiting.append(call)
        if not call.completions.wake_planned:
            call.completions.wake_planned = True
            call.completions.loop.call_soon(self._wake, call.completions)

    def _wake(self, completions: _Completions) -> None:
        """Wake a thread for the calls of this turn of the event loop, unless one runs that will soon take them."""
        completions.wake_planned = False
        with self._lock:
            thread = None if self._draining else self._choose_to_wake()
        if thread is not None:
            thread.release()
        if not completions.checking:
            completions.checking = True
            completions.loop.call_later(CHECK_SECONDS, self._check, completions)

    def _check(self, completions: _Completions) -> None:
        """Wake a thread for calls that still wait, because one before them is long."""
        with self._lock:
            thread = self._choose_to_wake()
            completions.checking = bool(self._waiting)
            if thread is not None:
                self._draining = self._short = False  # the call before them is long, so theirs may be, too
        if thread is not None:
            thread.release()
        if completions.checking:
            completions.loop.call_later(CHECK_SECONDS, self._check, completions)
        completions.complete()

    def _start_thread(self) -> None:
        if self._closed:
            msg = "the worker's handler threads are closed"
            raise RuntimeError(msg)
        # A daemon thread: the interpreter does not wait at its exit for a handler that never ends.
        Thread(target=self._work, name="smartpipe-handler", daemon=True).start()
        self._threads += 1

    def _choose_to_wake(self) -> Lock | None:
        """Return a sleeping thread to wake for calls that wait, unless one that was woken has not begun to work yet."""
        if not self._waiting or not self._asleep or self._waking:
            return None
        self._waking = True
        return self._asleep.pop()

    def _work(self) -> None:
        """Run calls, and sleep between them, until enough other threads sleep."""
        sleep, call, woken, leaving, later = Lock(), None, False, False, False
        sleep.acquire()
        while not leaving:
            ended = call
            with self._lock:
                if woken:
                    self._waking = woken = False
                if ended is not None:
                    self._busy -= 1  # before its future is done, so that the next function finds this thread
                call = self._waiting.popleft() if self._waiting else None
                if call is not None:
                    self._busy += 1
                elif self._closed or len(self._asleep) >= self._size:
                    self._threads -= 1
                    leaving = True
                else:
                    self._asleep.append(sleep)
                self._draining = self._short and call is not None
                following = None if self._draining else self._choose_to_wake()
                if ended is not None:
                    ended.completions.ended.append(ended)
                    # The results of short functions wait for the last of them, as long as `_check` will look for them.
                    later = self._draining and ended.completions.checking
            if following is not None:
                following.release()
            if ended is not None and not later:
                ended.completions.schedule()
            ended = None  # a sleeping thread must not keep an event in memory
            if call is not None:
                began = perf_counter()
                if call.claim():
                    call.run()
                call.ended = True
                self._short = perf_counter() - began < SHORT_SECONDS
            elif not leaving:
                sleep.acquire()
                woken = True


class LoopExecutor(ThreadPoolExecutor):
    """The executor of an event loop, for ``asyncio.to_thread`` in async handlers. It counts abandoned functions.

    A function whose caller was cancelled keeps its thread. asyncio's own executor has only a few more threads than the
    machine has cores. A few functions that hang would take them all, and every later one would wait for ever. Here each
    abandoned function counts as an overdue call, and another thread takes its place.
    """

    def __init__(self, capacity: Capacity) -> None:
        super().__init__(thread_name_prefix="smartpipe-executor")
        self._capacity = capacity

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit the function, in the event loop. Cancelling its future while it runs abandons the function."""
        future = super().submit(fn, *args, **kwargs)
        # The loop resolves names in this executor, too. Those calls are not a handler's, and end without help.
        if fn is not socket.getaddrinfo and fn is not socket.getnameinfo:
            future.cancel = partial(self._cancel, future, fn)  # type: ignore[method-assign]
        return future

    def _cancel(self, future: Future[Any], function: Callable[..., Any]) -> bool:
        if Future.cancel(future):
            return True
        if future.running():
            self._resize(1)
            self._capacity.abandon(future, f"{_inner_name(function)} in a thread of the event loop")
            future.add_done_callback(lambda _: self._resize(-1))
        return False

    def _resize(self, threads: int) -> None:
        # ThreadPoolExecutor has no public method to grow.
        self._max_workers += threads
        if threads > 0 and not self._shutdown:
            self._adjust_thread_count()


def use_loop_executor(capacity: Capacity) -> None:
    """Give the running event loop a LoopExecutor, unless the user has set an executor."""
    loop = asyncio.get_running_loop()
    if getattr(loop, "_default_executor", None) is None:
        loop.set_default_executor(LoopExecutor(capacity))


def _inner_name(function: Callable[..., Any]) -> str:
    """Return the name of the function that ``asyncio.to_thread`` wraps, or of *function* itself."""
    inner = function.args[0] if isinstance(function, partial) and function.args else function
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))
