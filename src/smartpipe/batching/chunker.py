"""Messages into requests: so many to one, so many bytes, and on FIFO one of each group. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from smartpipe.publisher.prepare import Destination, Outgoing

T = TypeVar("T")


class Chunker(Generic[T]):
    """Fills one request after another: at most 10 entries, whose bytes together stay under the limit.

    The byte limit of PublishBatch and SendMessageBatch is over the whole request, attributes counted.

    Args:
        group_of: Names what an item must not share a request with: an entry may fail alone, and those of
            its group behind it in the request would have overtaken it.
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
        """Return how many items wait."""
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether no further item can fit."""
        return len(self._items) >= self._limit_entries

    def groups_of(self, items: Sequence[T]) -> set[Hashable]:
        """Return what *items* must not share a request with."""
        return set() if self._group_of is None else {self._group_of(item) for item in items} - {None}

    def add(self, item: T) -> list[T] | None:
        """Take *item*; return the chunk that had no room for it, if there was one."""
        done = None
        size = 0
        if self._limit_bytes is not None:
            size = self._size_of(item)
            if self._items and self._bytes + size > self._limit_bytes:
                done = self.take()
        group = None if self._group_of is None else self._group_of(item)
        if len(self._items) >= self._limit_entries or group in self._groups:
            done = self.take()
        if group is not None:
            self._groups.add(group)
        self._items.append(item)
        self._bytes += size
        return done

    def take(self) -> list[T]:
        """Return what waits, and start anew."""
        items, self._items, self._groups, self._bytes = self._items, [], set(), 0
        return items


class Chunks:
    """Fills requests, each for one destination and within its limits."""

    def __init__(self) -> None:
        self._chunkers: dict[Destination, Chunker[Outgoing]] = {}

    def add(self, outgoing: Outgoing) -> list[Outgoing] | None:
        """Take *outgoing*; return its destination's chunk that had no room for it, if there was one."""
        chunker = self._chunkers.get(outgoing.destination)
        if chunker is None:
            destination = outgoing.destination
            chunker = self._chunkers[destination] = Chunker(
                destination.limit_bytes,
                lambda item: item.message.size_bytes,
                (lambda item: item.ordered_group) if destination.fifo else None,
            )
        return chunker.add(outgoing)

    def take(self) -> list[list[Outgoing]]:
        """Return what waits for each destination."""
        return [chunker.take() for chunker in self._chunkers.values() if chunker]
