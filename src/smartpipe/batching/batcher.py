"""Gathers single items into batches by count, bytes and a short linger."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from smartpipe.batching.chunker import Chunker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from smartpipe.batching.timers import Timer, Timers

T = TypeVar("T")


class Batcher(Generic[T]):
    """Hands each batch to *send* when it is full, or *linger_seconds* after its first item.

    A batch in flight never holds up the next, unless they share a group of the chunker's. *send* must
    not raise: what it cannot do with its items, it says to whoever waits for them.

    Args:
        timers: Of the loop in which it is used.
        linger_seconds: 0 sends each item by itself, at once.
        max_in_flight: How many calls of *send* run at once; further batches wait their turn.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[None]],
        timers: Timers,
        *,
        linger_seconds: float,
        chunker: Chunker[T] | None = None,
        max_in_flight: int = 16,
    ) -> None:
        self._send = send
        self._linger_seconds = linger_seconds
        self._chunker = Chunker[T]() if chunker is None else chunker
        self._room = asyncio.Semaphore(max_in_flight)
        self._timers = timers
        self._linger: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[Hashable, asyncio.Task[None]] = {}

    def add(self, item: T) -> None:
        """Take *item* into the batch that is being gathered."""
        ready = self._chunker.add(item)
        if ready is not None:
            self._start(ready)
        if self._chunker.full or self._linger_seconds <= 0:
            self.flush()
        elif self._linger is None:
            # In the context of the first item, as the timer would be that each batch had of its own.
            self._linger = self._timers.call_later(self._linger_seconds, partial(copy_context().run, self.flush))

    def flush(self) -> None:
        """Start sending what has been gathered, without waiting."""
        if self._linger is not None:
            self._timers.cancel(self._linger)
            self._linger = None
        if self._chunker:
            self._start(self._chunker.take())

    async def drain(self) -> None:
        """Flush, and wait until every batch has been sent; cancelling this leaves them on their way."""
        self.flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, batch: list[T]) -> None:
        groups = self._chunker.groups_of(batch)
        before = {self._last[group] for group in groups if group in self._last}
        task = asyncio.get_running_loop().create_task(self._send_in_turn(batch, before))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for group in groups:
            self._last[group] = task
        if groups:
            task.add_done_callback(lambda ended: self._forget(groups, ended))

    def _forget(self, groups: set[Hashable], ended: asyncio.Task[None]) -> None:
        for group in groups:
            if self._last.get(group) is ended:
                del self._last[group]

    async def _send_in_turn(self, batch: list[T], before: set[asyncio.Task[None]]) -> None:
        if before:  # outside of the room: those before it may have to wait for it themselves
            await asyncio.wait(before)
        async with self._room:
            await self._send(batch)
