"""Messages of one queue, in the order in which SQS may hand them out."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from smartpipe.message import OutgoingMessage


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue; times are the event loop's.

    Args:
        number: Its place in the order of arrival.
        visible_at: From when on it can be received.
        receipt: The handle of the latest receive; only that one is good.
        moved_from: The ARN of the queue from which it was moved here, after too many receives.
    """

    number: int
    message_id: str
    content: OutgoingMessage
    sent_at: float
    visible_at: float
    receive_count: int = 0
    received_at: float = 0.0
    first_received_at: float | None = None
    receipt: str = ""
    moved_from: str | None = None


class Store(Protocol):
    """What a queue keeps its messages in."""

    def __len__(self) -> int:
        """Return how many there are, visible or not."""

    def __iter__(self) -> Iterator[Stored]:
        """Yield every message, in no particular order."""

    def put(self, stored: Stored, now: float) -> None:
        """Add it, or take note that its ``visible_at`` has changed."""

    def remove(self, stored: Stored) -> None:
        """Forget it."""

    def available(self, now: float, count: int) -> list[Stored]:
        """Return up to *count* messages that may be received, in order."""

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden message comes into sight, or None."""


class StandardStore:
    """Any visible message may be received: in order of arrival, or shuffled where a test asks for it."""

    def __init__(self, shuffle: Random | None = None) -> None:
        self._shuffle = shuffle
        self._all: dict[int, Stored] = {}
        self._visible: OrderedDict[int, Stored] = OrderedDict()  # a dict walks past all that was taken from its front
        self._hidden: list[tuple[float, int, Stored]] = []

    def __len__(self) -> int:
        """Return how many there are, visible or not."""
        return len(self._all)

    def __iter__(self) -> Iterator[Stored]:
        """Yield every message."""
        return iter(self._all.values())

    def put(self, stored: Stored, now: float) -> None:
        """Add it, or take note that its ``visible_at`` has changed."""
        self._all[stored.number] = stored
        if stored.visible_at <= now:
            self._visible[stored.number] = stored
        else:
            self._visible.pop(stored.number, None)
            heapq.heappush(self._hidden, (stored.visible_at, stored.number, stored))

    def remove(self, stored: Stored) -> None:
        """Forget it."""
        self._all.pop(stored.number, None)
        self._visible.pop(stored.number, None)

    def available(self, now: float, count: int) -> list[Stored]:
        """Return up to *count* visible messages."""
        while self._hidden and self._hidden[0][0] <= now:
            visible_at, number, stored = heapq.heappop(self._hidden)
            if number in self._all and stored.visible_at == visible_at:  # else hidden anew, or gone
                self._visible[number] = stored
        if self._shuffle is not None:
            return self._shuffle.sample(list(self._visible.values()), min(count, len(self._visible)))
        return list(islice(self._visible.values(), count))

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden message comes into sight."""
        while self._hidden:
            visible_at, number, stored = self._hidden[0]
            if visible_at > now and number in self._all and stored.visible_at == visible_at:
                return visible_at
            if visible_at <= now:
                return now
            heapq.heappop(self._hidden)
        return None


class FifoStore:
    """Of each group only those before its first hidden message may be received, in order."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[int, Stored]] = {}

    def __len__(self) -> int:
        """Return how many there are, visible or not."""
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[Stored]:
        """Yield every message, group by group."""
        return (stored for group in self._groups.values() for stored in group.values())

    def put(self, stored: Stored, now: float) -> None:  # noqa: ARG002 - asked for when it is wanted
        """Add it, or take note that its ``visible_at`` has changed."""
        self._groups.setdefault(stored.content.group_id or "", {})[stored.number] = stored

    def remove(self, stored: Stored) -> None:
        """Forget it, and its group with the last of it."""
        group_id = stored.content.group_id or ""
        group = self._groups.get(group_id, {})
        group.pop(stored.number, None)
        if not group:
            self._groups.pop(group_id, None)

    def available(self, now: float, count: int) -> list[Stored]:
        """Return up to *count* messages, of one group after the other."""
        return list(islice(self._in_order(now), count))

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden head of a group comes into sight."""
        heads = (next(iter(group.values())).visible_at for group in self._groups.values())
        return min((visible_at for visible_at in heads if visible_at > now), default=None)

    def _in_order(self, now: float) -> Iterator[Stored]:
        for group in self._groups.values():
            for stored in group.values():
                if stored.visible_at > now:
                    break
                yield stored
