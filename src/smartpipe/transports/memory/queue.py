"""One SQS queue in memory: visibility, receive counts, redrive, FIFO groups, deduplication, delay, retention.

Sources: Amazon SQS API reference (SendMessage, ReceiveMessage, DeleteMessage, ChangeMessageVisibility)
and developer guide ("visibility timeout", "dead-letter queues", "FIFO delivery logic").
"""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from smartpipe.limits import (
    MAX_ATTRIBUTES,
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    MAX_RECEIVES,
    MAX_VISIBILITY_SECONDS,
    MESSAGE_TEXT,
)
from smartpipe.message import Failure
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.transports.memory.store import FifoStore, StandardStore, Store, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from smartpipe.message import OutgoingMessage

DEDUPLICATION_SECONDS = 300


class Depth(NamedTuple):
    """How many messages can be received, are being handled, or are delayed."""

    visible: int
    in_flight: int
    delayed: int


class Weather(NamedTuple):
    """What a standard queue does that it may do, and emulators never do.

    Args:
        duplicate_share: 0 to 1: which part of the receives hands its message out once more.
        shuffle: Hand messages out in any order.
    """

    random: Random
    duplicate_share: float = 0.0
    shuffle: bool = False


class MemoryQueue:
    """A queue by its AWS attributes (values as text, as AWS has them; RedrivePolicy as a mapping).

    Args:
        clock: Seconds; visibility, delay and retention follow it.
        find: Returns the queue with an ARN, to redrive to.
        redriven: Called with its name and each message that it moves there.
    """

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        clock: Callable[[], float],
        find: Callable[[str], MemoryQueue | None],
        redriven: Callable[[str, Stored], None],
        weather: Weather,
    ) -> None:
        self.name = name
        self.fifo = name.endswith(FIFO_SUFFIX)
        self.attributes = dict(attributes)
        self._clock = clock
        self._find = find
        self._redriven = redriven
        self._weather = weather
        self._store: Store = FifoStore() if self.fifo else StandardStore(weather.random if weather.shuffle else None)
        self._live: dict[str, Stored] = {}
        self._sent_at: dict[str, float] = {}  # by deduplication id, the oldest first
        self._numbers = count()
        self._oldest = math.inf  # no message was sent before

    def __len__(self) -> int:
        """Return how many messages there are, also those whose retention is over, until ``expire``."""
        return len(self._store)

    @property
    def limit_bytes(self) -> int:
        """The largest message, and batch of messages, that it takes."""
        return int(self.attributes.get("MaximumMessageSize", MAX_MESSAGE_BYTES))

    @property
    def depth(self) -> Depth:
        """What is in it."""
        now = self._clock()
        self.expire()
        hidden = [stored for stored in self._store if stored.visible_at > now]
        delayed = sum(stored.receive_count == 0 for stored in hidden)
        return Depth(len(self._store) - len(hidden), len(hidden) - delayed, delayed)

    def send(self, message: OutgoingMessage) -> Failure | None:
        """Take *message*, or say (of position 0) why not."""
        problem = self._problem(message)
        if problem is not None:
            return Failure(0, *problem, retryable=False)
        now = self._clock()
        if self.fifo and self._is_duplicate(message.deduplication_id or "", now):
            return None
        delay = message.delay_seconds or int(self.attributes.get("DelaySeconds", 0))
        self._add(Stored(next(self._numbers), str(uuid4()), message, now, now + delay), now)
        return None

    def receive(self, max_messages: int, visibility_timeout_seconds: float) -> list[Stored]:
        """Hand out what is visible; what was received too often goes to the dead-letter queue instead."""
        now = self._clock()
        self.expire()
        policy: Mapping[str, Any] = self.attributes.get("RedrivePolicy") or {}
        max_receives = int(policy.get("maxReceiveCount", MAX_RECEIVES))
        taken: list[Stored] = []
        while len(taken) < max_messages:
            found = self._store.available(now, max_messages - len(taken))
            moved = False
            for stored in found:
                too_often = stored.receive_count >= max_receives
                dead_letters = self._find(policy["deadLetterTargetArn"]) if policy and too_often else None
                if dead_letters is not None:
                    self._remove(stored)
                    account, _, _ = policy["deadLetterTargetArn"].rpartition(":")
                    dead_letters.adopt(stored, f"{account}:{self.name}")
                    self._redriven(self.name, stored)
                    moved = True
                else:
                    taken.append(self._hand_out(stored, now, visibility_timeout_seconds))
            if not moved:  # else there may be more behind what was moved
                break
        return taken

    def delete(self, receipt: str) -> tuple[str, str] | None:
        """Delete by *receipt*; return SQS's code and words if it refuses."""
        message_id, _, queue = receipt.partition("#")
        if not queue.endswith("#" + self.name):
            return "ReceiptHandleIsInvalid", "The input receipt handle is invalid."
        stored = self._live.get(message_id)
        if stored is None:
            return None
        if self.fifo and (stored.receipt != receipt or stored.visible_at <= self._clock()):
            return "InvalidParameterValue", "The receipt handle has expired."
        if stored.receipt == receipt:  # a standard queue says yes to an older one, and does nothing
            self._remove(stored)
        return None

    def change_visibility(self, receipt: str, seconds: float) -> tuple[str, str] | None:
        """Hide the message for so long from now; return SQS's code and words if it refuses."""
        stored, now = self._live.get(receipt.partition("#")[0]), self._clock()
        if not receipt.endswith("#" + self.name):
            return "ReceiptHandleIsInvalid", "The input receipt handle is invalid."
        if stored is None or stored.receipt != receipt or stored.visible_at <= now:
            return "MessageNotInflight", "The message referred to is not in flight."
        if not 0 <= seconds <= MAX_VISIBILITY_SECONDS or now + seconds > stored.received_at + MAX_VISIBILITY_SECONDS:
            return "InvalidParameterValue", "Total VisibilityTimeout for the message is beyond the limit of 12 hours."
        stored.visible_at = now + seconds
        self._store.put(stored, now)
        return None

    def next_visible_at(self) -> float | None:
        """Return when a hidden message comes into sight, or None."""
        return self._store.next_visible_at(self._clock())

    def adopt(self, stored: Stored, source: str) -> None:
        """Take a message that SQS itself moves here from *source*, an ARN.

        Its id and its count stay, and so does a standard one's age.
        """
        now = self._clock()
        moved = Stored(
            next(self._numbers),
            stored.message_id,
            stored.content,
            now if self.fifo else stored.sent_at,
            now,
            stored.receive_count,
            first_received_at=stored.first_received_at,
            moved_from=source,
        )
        self._add(moved, now)

    def contents(self) -> list[Stored]:
        """Return every message, in order of arrival."""
        self.expire()
        return sorted(self._store, key=lambda stored: stored.number)

    def _hand_out(self, stored: Stored, now: float, seconds: float) -> Stored:
        stored.receive_count += 1
        stored.received_at = now
        if stored.first_received_at is None:
            stored.first_received_at = now
        stored.receipt = f"{stored.message_id}#{stored.receive_count}#{self.name}"
        share = 0.0 if self.fifo else self._weather.duplicate_share
        again = share > 0 and self._weather.random.random() < share
        stored.visible_at = now if again else now + seconds
        self._store.put(stored, now)
        return stored

    def _is_duplicate(self, deduplication_id: str, now: float) -> bool:
        """Return whether it was sent within five minutes; else remember that it was now."""
        while self._sent_at and now - next(iter(self._sent_at.values())) >= DEDUPLICATION_SECONDS:
            del self._sent_at[next(iter(self._sent_at))]
        if deduplication_id in self._sent_at:
            return True
        self._sent_at[deduplication_id] = now
        return False

    def _add(self, stored: Stored, now: float) -> None:
        self._live[stored.message_id] = stored
        self._oldest = min(self._oldest, stored.sent_at)
        self._store.put(stored, now)

    def _remove(self, stored: Stored) -> None:
        self._store.remove(stored)
        self._live.pop(stored.message_id, None)

    def expire(self) -> None:
        """Delete what has been kept for as long as its retention."""
        oldest = self._clock() - int(self.attributes.get("MessageRetentionPeriod", 345_600))
        if self._oldest >= oldest:
            return
        for stored in [stored for stored in self._store if stored.sent_at < oldest]:
            self._remove(stored)
        self._oldest = min((stored.sent_at for stored in self._store), default=math.inf)

    def _problem(self, message: OutgoingMessage) -> tuple[str, str] | None:
        """Say what SQS would refuse; SendMessage."""
        if not MESSAGE_TEXT.fullmatch(message.body):
            return "InvalidMessageContents", "Invalid characters found."
        limit = self.limit_bytes
        if message.size_bytes > limit or len(message.attributes) > MAX_ATTRIBUTES:
            return "InvalidParameterValue", f"The message is larger than {limit} bytes or has over 10 attributes."
        if self.fifo and not message.group_id:
            return "MissingParameter", "The request must contain the parameter MessageGroupId."
        if self.fifo and not message.deduplication_id:
            return "InvalidParameterValue", "The queue needs MessageDeduplicationId: ContentBasedDeduplication is off."
        if not self.fifo and message.deduplication_id:
            return "InvalidParameterValue", "MessageDeduplicationId is not valid for this queue type."
        if message.delay_seconds and (self.fifo or not 0 <= message.delay_seconds <= MAX_DELAY_SECONDS):
            return "InvalidParameterValue", f"DelaySeconds={message.delay_seconds} is not valid for this queue."
        return None
