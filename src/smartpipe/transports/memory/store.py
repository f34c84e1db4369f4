"""Store the messages of one queue, and find those that SQS may deliver next."""

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
class StoredMessage:
    """A message in a queue. Times are on the event loop's clock.

    Args:
        number: Its position in the order of arrival.
        visible_at: The time from which it can be received.
        receipt: The receipt handle of the latest receive. Only this one is valid.
        moved_from: The ARN of the queue from which SQS moved it here after too many receives.
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


class MessageStore(Protocol):
    """The messages of one queue."""

    def __len__(self) -> int:
        """Return the number of messages, visible or not."""

    def __iter__(self) -> Iterator[StoredMessage]:
        """Yield every message, in no particular order."""

    def put(self, stored: StoredMessage, now: float) -> None:
        """Add *stored*, or update its place after a change of ``visible_at``."""

    def remove(self, stored: StoredMessage) -> None:
        """Remove *stored*."""

    def find_visible(self, now: float, count: int) -> list[StoredMessage]:
        """Return up to *count* messages that may be received, in order. They stay in the store."""

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden message becomes visible, or None."""


class StandardStore:
    """Any visible message may be received: in order of arrival, or in random order for a test."""

    def __init__(self, shuffle: Random | None = None) -> None:
        self._shuffle = shuffle
        self._all: dict[int, StoredMessage] = {}
        # Not a dict: iteration over a dict would step over every deleted entry at its front.
        self._visible: OrderedDict[int, StoredMessage] = OrderedDict()
        self._hidden: list[tuple[float, int, StoredMessage]] = []

    def __len__(self) -> int:
        """Return the number of messages, visible or not."""
        return len(self._all)

    def __iter__(self) -> Iterator[StoredMessage]:
        """Yield every message."""
        return iter(self._all.values())

    def put(self, stored: StoredMessage, now: float) -> None:
        """Add *stored*, or update its place after a change of ``visible_at``."""
        self._all[stored.number] = stored
        if stored.visible_at <= now:
            self._visible[stored.number] = stored
        else:
            self._visible.pop(stored.number, None)
            heapq.heappush(self._hidden, (stored.visible_at, stored.number, stored))

    def remove(self, stored: StoredMessage) -> None:
        """Remove *stored*."""
        self._all.pop(stored.number, None)
        self._visible.pop(stored.number, None)

    def find_visible(self, now: float, count: int) -> list[StoredMessage]:
        """Return up to *count* visible messages."""
        while self._hidden and self._hidden[0][0] <= now:
            visible_at, number, stored = heapq.heappop(self._hidden)
            if number in self._all and stored.visible_at == visible_at:  # else it was hidden again, or removed
                self._visible[number] = stored
        if self._shuffle is not None:
            return self._shuffle.sample(list(self._visible.values()), min(count, len(self._visible)))
        return list(islice(self._visible.values(), count))

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden message becomes visible."""
        while self._hidden:
            visible_at, number, stored = self._hidden[0]
            if visible_at > now and number in self._all and stored.visible_at == visible_at:
                return visible_at
            if visible_at <= now:
                return now
            heapq.heappop(self._hidden)
        return None


class FifoStore:
    """In each group, only the messages before its first hidden one may be received, in order."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[int, StoredMessage]] = {}

    def __len__(self) -> int:
        """Return the number of messages, visible or not."""
        return sum(map(len, self._groups.values()))

    def __iter__(self) -> Iterator[StoredMessage]:
        """Yield every message, group by group."""
        return (stored for group in self._groups.values() for stored in group.values())

    def put(self, stored: StoredMessage, now: float) -> None:  # noqa: ARG002 - visibility is checked on receive
        """Add *stored*, or update its place after a change of ``visible_at``."""
        self._groups.setdefault(stored.content.group_id or "", {})[stored.number] = stored

    def remove(self, stored: StoredMessage) -> None:
        """Remove *stored*, and its group if it was the last message of it."""
        group_id = stored.content.group_id or ""
        group = self._groups.get(group_id, {})
        group.pop(stored.number, None)
        if not group:
            self._groups.pop(group_id, None)

    def find_visible(self, now: float, count: int) -> list[StoredMessage]:
        """Return up to *count* messages, group by group."""
        return list(islice(self._iterate_visible(now), count))

    def next_visible_at(self, now: float) -> float | None:
        """Return when the next hidden first message of a group becomes visible."""
        times = (next(iter(group.values())).visible_at for group in self._groups.values())
        return min((visible_at for visible_at in times if visible_at > now), default=None)

    def _iterate_visible(self, now: float) -> Iterator[StoredMessage]:
        for group in self._groups.values():
            for stored in group.values():
                if stored.visible_at > now:
                    break
                yield stored
