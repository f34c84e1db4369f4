"""Threads for sync handlers, which can be abandoned but not stopped."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Threads:
    """Runs functions in threads, each with the caller's context variables.

    Args:
        size: How many run at once; callers bound that themselves, so nothing queues here.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pool = self._new_pool()
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

    async def run(self, function: Callable[..., Any], arguments: list[Any], on_abandoned: Callable[[], None]) -> Any:
        """Return what *function* returns. Cancelled, it leaves the function running and says so."""
        context = contextvars.copy_context()
        future = self._pool.submit(context.run, _call, function, arguments)
        self._running.add(future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                self._abandon(future)
                on_abandoned()
            raise
        finally:
            self._running.discard(future)

    def close(self) -> None:
        """Take no more functions; those that run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _abandon(self, future: Future[Any]) -> None:
        self._abandoned.add(future)
        future.add_done_callback(self._abandoned.discard)
        # A fresh pool has a thread for every slot; the old one's end as they fall idle.
        self._pool.shutdown(wait=False)
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._size, thread_name_prefix="smartpipe-handler")


def _call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    try:
        return function(*arguments)
    except StopIteration as error:  # no future can carry it: whoever waited would wait for ever
        msg = "the handler raised StopIteration"
        raise RuntimeError(msg) from error
