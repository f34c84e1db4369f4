"""Threads for sync handlers, which can be abandoned but not stopped."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from smartpipe.handling.capacity import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable


class _Job(NamedTuple):
    future: Future[Any]
    context: contextvars.Context
    function: Callable[..., Any]
    arguments: list[Any]


_Jobs: TypeAlias = "SimpleQueue[_Job | None]"
"""Of one thread; None ends it."""


class Threads:
    """Runs functions in threads, each with the caller's context variables.

    A ThreadPoolExecutor cannot do this: a thread that cannot be started leaves its function in the executor's queue,
    to be run later, although ``submit`` has failed.

    Args:
        size: How many run at once; callers bound that themselves, so nothing queues here. Abandoned functions have
            threads besides these, bounded by ``capacity``.
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
        """How many abandoned functions still run."""
        return len(self._abandoned)

    @property
    def running(self) -> bool:
        """Whether a function runs that somebody waits for."""
        return bool(self._running)

    async def run(
        self, function: Callable[..., Any], arguments: list[Any], on_abandoned: Callable[[], None], name: str = ""
    ) -> Any:
        """Return what *function* returns. Cancelled, it leaves the function running and calls *on_abandoned*.

        Args:
            name: The handler's, for the log.

        Raises:
            RuntimeError: The operating system refuses another thread, or ``close`` was called: nothing has run.
            MemoryError: Likewise.
        """
        future: Future[Any] = Future()
        job = _Job(future, contextvars.copy_context(), function, arguments)
        (self._idle.pop() if self._idle else self._new_thread()).put(job)
        del job  # its thread alone keeps it, until it has run
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
        """Take no more functions; those that run are not waited for."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _abandon(self, future: Future[Any], name: str) -> None:
        loop = asyncio.get_running_loop()

        def ended(_: Future[Any]) -> None:  # in its thread
            self._abandoned.discard(future)
            try:
                loop.call_soon_threadsafe(self.capacity.remove, future)
            except RuntimeError:  # the loop is closed, and nobody counts any more
                return

        self._abandoned.add(future)
        self.capacity.add(future, name)
        future.add_done_callback(ended)

    def _new_thread(self) -> _Jobs:
        if self._closed:
            msg = "these threads are closed"
            raise RuntimeError(msg)
        jobs: _Jobs = SimpleQueue()
        # A daemon: the interpreter does not wait at its end for a handler that never ends.
        Thread(target=self._work, args=(jobs,), name="smartpipe-handler", daemon=True).start()
        return jobs

    def _work(self, jobs: _Jobs) -> None:
        while (job := jobs.get()) is not None:
            result = failure = None
            wanted = job.future.set_running_or_notify_cancel()
            try:
                if wanted:
                    result = job.context.run(_call, job.function, job.arguments)
            except BaseException as error:  # noqa: BLE001 - the caller gets it, as from any call
                failure = error
            idle = not self._closed and len(self._idle) < self._size
            if idle:  # before anybody hears of the end, so that the next function finds this thread
                self._idle.append(jobs)
                if self._closed:  # just now
                    jobs.put(None)
            if wanted and failure is None:
                job.future.set_result(result)
            elif wanted:
                job.future.set_exception(failure)
            del job, result, failure  # an idle thread keeps no event
            if not idle:
                return


def _call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    try:
        return function(*arguments)
    except StopIteration as error:  # no future can carry it: whoever waited would wait for ever
        msg = "the handler raised StopIteration"
        raise RuntimeError(msg) from error
