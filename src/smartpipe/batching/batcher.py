"""Batches for SNS and SQS: entries are chunked by count, bytes and group, and collected for a short time."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from smartpipe.batching.timers import Timer, Timers

T = TypeVar("T")


class Chunker(Generic[T]):
    """Fills one request after another: at most 10 entries, whose bytes together stay below the limit. Pure.

    The byte limit of PublishBatch and SendMessageBatch is for the whole request, attributes included.

    Args:
        group_of: Returns the FIFO group of an item, or None. Items of one group never share a request: an entry may
            fail alone, and those of its group behind it in the request would have overtaken it.
    """

    def __init__(
        self,
        limit_bytes: int | None = None,
        size_of: Callable[[T], int] = lambda _: 0,
        group_of: Callable[[T], Hashable] | None = None,
        limit_entries: int = MAX_BATCH_ENTRIES,
    ) -> None:
        self._limit_entries = limit_entries
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._group_of = group_of
        self._items: list[T] = []
        self._groups: set[Hashable] = set()
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of pending items."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether no further item fits."""
        return len(self._items) >= self._limit_entries

    def groups_of(self, items: Sequence[T]) -> set[Hashable]:
        """Return the FIFO groups of *items*."""
        return set() if self._group_of is None else {self._group_of(item) for item in items} - {None}

    def add(self, item: T) -> list[T] | None:
        """Add *item*; return the chunk that it did not fit into, if there was one."""
        full = None
        size = 0
        if self._limit_bytes is not None:
            size = self._size_of(item)
            if self._items and self._bytes + size > self._limit_bytes:
                full = self.take()
        group = None if self._group_of is None else self._group_of(item)
        if len(self._items) >= self._limit_entries or group in self._groups:
            full = self.take()
        if group is not None:
            self._groups.add(group)
        self._items.append(item)
        self._bytes += size
        return full

    def take(self) -> list[T]:
        """Return the pending items, and start a new chunk."""
        items, self._items, self._groups, self._bytes = self._items, [], set(), 0
        return items


class Batcher(Generic[T]):
    """Calls *send* with each batch when it is full, or *linger_seconds* after its first item.

    A batch in flight does not hold up the next full one, unless they share a FIFO group. *send* must not raise: it
    reports failures to the callers that wait for their items.

    Args:
        timers: The timers of the event loop in which the batcher is used.
        linger_seconds: 0 sends each item immediately and alone.
        group_commit: Linger only while a batch is in flight, and no longer than until one has ended. Without any, send
            what is added in one turn of the event loop. Databases write their logs in this way (DeWitt et al.,
            "Implementation Techniques for Main Memory Database Systems", 1984).
        max_in_flight: The maximum number of concurrent calls of *send*; further batches wait.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[None]],
        timers: Timers,
        *,
        linger_seconds: float,
        group_commit: bool = False,
        chunker: Chunker[T] | None = None,
        max_in_flight: int = 16,
    ) -> None:
        self._send = send
        self._linger_seconds = linger_seconds
        self._group_commit = group_commit
        self._chunker = Chunker[T]() if chunker is None else chunker
        self._calls = asyncio.Semaphore(max_in_flight)
        self._timers = timers
        self._linger: Timer | None = None
        self._turn: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[Hashable, asyncio.Task[None]] = {}

    def add(self, item: T) -> None:
        """Add *item* to the pending batch."""
        if self._group_commit and not self._tasks and self._turn is None:
            self._turn = self._timers.loop.call_soon(self.flush)
        ready = self._chunker.add(item)
        if ready is not None:
            self._start(ready)
        if self._chunker.full or self._linger_seconds <= 0:
            self._start_pending()
        elif self._linger is None and self._turn is None:
            # The timer runs in the context of the first item, as if each batch had a timer of its own.
            self._linger = self._timers.call_later(self._linger_seconds, partial(copy_context().run, self.flush))

    def flush(self) -> None:
        """Start sending the pending batch, without waiting."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._start_pending()

    def _start_pending(self) -> None:
        if self._linger is not None:
            self._timers.cancel(self._linger)
            self._linger = None
        if self._chunker:
            self._start(self._chunker.take())

    async def drain(self) -> None:
        """Flush, and wait until every batch has been sent. If cancelled, leave the batches in flight."""
        self.flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, batch: list[T]) -> None:
        groups = self._chunker.groups_of(batch)
        before = {self._last[group] for group in groups if group in self._last}
        task = asyncio.get_running_loop().create_task(self._send_in_turn(batch, before))
        self._tasks.add(task)
        task.add_done_callback(self._end_task)
        for group in groups:
            self._last[group] = task
        if groups:
            task.add_done_callback(lambda ended: self._forget(groups, ended))

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._group_commit:
            # The callers of this batch have gone on just now, and what they have added goes with the rest.
            self.flush()

    def _forget(self, groups: set[Hashable], ended: asyncio.Task[None]) -> None:
        for group in groups:
            if self._last.get(group) is ended:
                del self._last[group]

    async def _send_in_turn(self, batch: list[T], before: set[asyncio.Task[None]]) -> None:
        if before:  # outside the semaphore: the batches before this one may wait for it, too
            await asyncio.wait(before)
        async with self._calls:
            await self._send(batch)
