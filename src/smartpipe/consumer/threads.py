"""Threads for sync handlers. A function in a thread can be abandoned, but not stopped."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from smartpipe.consumer.capacity import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable


class _Job(NamedTuple):
    future: Future[Any]
    context: contextvars.Context
    function: Callable[..., Any]
    arguments: list[Any]


_Jobs: TypeAlias = "SimpleQueue[_Job | None]"
"""The jobs of one thread; None ends it."""


class Threads:
    """Runs functions in threads, each with the caller's context variables.

    A ThreadPoolExecutor cannot do this: if a thread cannot be started, ``submit`` fails, but the function stays in the
    executor's queue and runs later.

    Args:
        size: The maximum number of idle threads to keep. Callers limit the number of concurrent functions, so nothing
            waits in a queue here. Abandoned functions have further threads, which ``capacity`` limits.
        capacity: Where abandoned functions are counted; by default one for *size* slots.
    """

    def __init__(self, size: int, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity(size)
        self._size = size
        self._idle: list[_Jobs] = []
        self._closed = False
        self._abandoned: set[Future[Any]] = set()
        self._running: set[Future[Any]] = set()

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
        future: Future[Any] = Future()
        job = _Job(future, contextvars.copy_context(), function, arguments)
        (self._idle.pop() if self._idle else self._new_thread()).put(job)
        del job  # only its thread keeps it, and only until it has run
        self._running.add(future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done() and not future.cancel():  # a function that has not begun is not abandoned
                self._abandon(future, name)
                on_abandoned()
            raise
        finally:
            self._running.discard(future)

    def close(self) -> None:
        """Accept no more functions; do not wait for those that are running."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _abandon(self, future: Future[Any], name: str) -> None:
        self._abandoned.add(future)
        future.add_done_callback(self._abandoned.discard)
        self.capacity.abandon(future, name)

    def _new_thread(self) -> _Jobs:
        if self._closed:
            msg = "the worker's handler threads are closed"
            raise RuntimeError(msg)
        jobs: _Jobs = SimpleQueue()
        # A daemon thread: the interpreter does not wait at its exit for a handler that never ends.
        Thread(target=self._work, args=(jobs,), name="smartpipe-handler", daemon=True).start()
        return jobs

    def _work(self, jobs: _Jobs) -> None:
        while (job := jobs.get()) is not None:
            result = failure = None
            wanted = job.future.set_running_or_notify_cancel()
            try:
                if wanted:
                    result = job.context.run(_call, job.function, job.arguments)
            except BaseException as error:  # noqa: BLE001 - raised in the caller, as from any call
                failure = error
            idle = not self._closed and len(self._idle) < self._size
            if idle:  # before the future is done, so that the next function finds this thread
                self._idle.append(jobs)
                if self._closed:  # `close` has run since the check above
                    jobs.put(None)
            if wanted and failure is None:
                job.future.set_result(result)
            elif wanted:
                job.future.set_exception(failure)
            del job, result, failure  # an idle thread must not keep an event in memory
            if not idle:
                return


def _call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    try:
        return function(*arguments)
    except StopIteration as error:  # a future refuses this exception, so its awaiter would wait for ever
        msg = "the handler raised StopIteration"
        raise RuntimeError(msg) from error


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
