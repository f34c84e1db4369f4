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
from smartpipe.transport import Depth
from smartpipe.transports.memory.store import FifoStore, MessageStore, StandardStore, StoredMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from smartpipe.message import OutgoingMessage

DEDUPLICATION_SECONDS = 300


class DeliveryFaults(NamedTuple):
    """Faults that SQS permits a standard queue, and that emulators never show.

    Args:
        duplicate_share: The share of receives, 0 to 1, after which the message is delivered once more.
        shuffle: Deliver messages in random order.
    """

    random: Random
    duplicate_share: float = 0.0
    shuffle: bool = False


class MemoryQueue:
    """A queue with AWS attributes: the values are text, as on AWS, and RedrivePolicy is a mapping.

    Args:
        clock: Returns the time in seconds, for visibility, delay and retention.
        find_queue: Returns the queue with an ARN, which may be a dead-letter queue.
        on_redrive: Called with the name of this queue and each message that it moves to its dead-letter queue.
    """

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        clock: Callable[[], float],
        find_queue: Callable[[str], MemoryQueue | None],
        on_redrive: Callable[[str, StoredMessage], None],
        faults: DeliveryFaults,
    ) -> None:
        self.name = name
        self.fifo = name.endswith(FIFO_SUFFIX)
        self.attributes = dict(attributes)
        self._clock = clock
        self._find_queue = find_queue
        self._on_redrive = on_redrive
        self._faults = faults
        shuffle = faults.random if faults.shuffle else None
        self._store: MessageStore = FifoStore() if self.fifo else StandardStore(shuffle)
        self._messages: dict[str, StoredMessage] = {}
        self._sent_at: dict[str, float] = {}  # by deduplication id, in order of time
        self._numbers = count()
        self._oldest = math.inf  # the time of the oldest message, or a lower bound

    def __len__(self) -> int:
        """Return the number of messages. It includes expired ones until ``expire`` is called."""
        return len(self._store)

    @property
    def limit_bytes(self) -> int:
        """The maximum size of a message, and of a batch of messages."""
        return int(self.attributes.get("MaximumMessageSize", MAX_MESSAGE_BYTES))

    @property
    def depth(self) -> Depth:
        """The number of messages by state."""
        now = self._clock()
        self.expire()
        hidden = [stored for stored in self._store if stored.visible_at > now]
        delayed = sum(stored.receive_count == 0 for stored in hidden)
        return Depth(len(self._store) - len(hidden), len(hidden) - delayed, delayed)

    def send(self, message: OutgoingMessage) -> Failure | None:
        """Accept *message*, or return a failure for position 0."""
        error = self._validate(message)
        if error is not None:
            return Failure(0, *error, retryable=False)
        now = self._clock()
        if self.fifo and self._is_duplicate(message.deduplication_id or "", now):
            return None
        delay = message.delay_seconds or int(self.attributes.get("DelaySeconds", 0))
        self._add(StoredMessage(next(self._numbers), str(uuid4()), message, now, now + delay), now)
        return None

    def receive(self, max_messages: int, visibility_timeout_seconds: float) -> list[StoredMessage]:
        """Deliver visible messages. Move those with too many receives to the dead-letter queue instead."""
        now = self._clock()
        self.expire()
        policy: Mapping[str, Any] = self.attributes.get("RedrivePolicy") or {}
        max_receives = int(policy.get("maxReceiveCount", MAX_RECEIVES))
        received: list[StoredMessage] = []
        while len(received) < max_messages:
            candidates = self._store.find_visible(now, max_messages - len(received))
            moved = False
            for stored in candidates:
                is_exhausted = stored.receive_count >= max_receives
                dead_letter_queue = self._find_queue(policy["deadLetterTargetArn"]) if policy and is_exhausted else None
                if dead_letter_queue is not None:
                    self._remove(stored)
                    account, _, _ = policy["deadLetterTargetArn"].rpartition(":")
                    dead_letter_queue.accept_moved(stored, f"{account}:{self.name}")
                    self._on_redrive(self.name, stored)
                    moved = True
                else:
                    received.append(self._deliver(stored, now, visibility_timeout_seconds))
            if not moved:  # else more messages may follow the moved ones
                break
        return received

    def delete(self, receipt: str) -> tuple[str, str] | None:
        """Delete the message of *receipt*. Return the error code and text of SQS if the receipt is invalid."""
        message_id, _, queue = receipt.partition("#")
        if not queue.endswith("#" + self.name):
            return "ReceiptHandleIsInvalid", "The input receipt handle is invalid."
        stored = self._messages.get(message_id)
        if stored is None:
            return None
        if self.fifo and (stored.receipt != receipt or stored.visible_at <= self._clock()):
            return "InvalidParameterValue", "The receipt handle has expired."
        if stored.receipt == receipt:  # a standard queue reports success for an older receipt, and deletes nothing
            self._remove(stored)
        return None

    def change_visibility(self, receipt: str, seconds: float) -> tuple[str, str] | None:
        """Hide the message for *seconds* from now. Return the error code and text of SQS if it refuses."""
        stored, now = self._messages.get(receipt.partition("#")[0]), self._clock()
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
        """Return when the next hidden message becomes visible, or None."""
        return self._store.next_visible_at(self._clock())

    def accept_moved(self, stored: StoredMessage, source: str) -> None:
        """Accept a message that SQS moves here from the queue with the ARN *source*.

        It keeps its id and its receive count. On a standard queue it also keeps its age.
        """
        now = self._clock()
        moved = StoredMessage(
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

    def contents(self) -> list[StoredMessage]:
        """Return every message, in order of arrival."""
        self.expire()
        return sorted(self._store, key=lambda stored: stored.number)

    def _deliver(self, stored: StoredMessage, now: float, seconds: float) -> StoredMessage:
        stored.receive_count += 1
        stored.received_at = now
        if stored.first_received_at is None:
            stored.first_received_at = now
        stored.receipt = f"{stored.message_id}#{stored.receive_count}#{self.name}"
        share = 0.0 if self.fifo else self._faults.duplicate_share
        is_duplicated = share > 0 and self._faults.random.random() < share
        stored.visible_at = now if is_duplicated else now + seconds
        self._store.put(stored, now)
        return stored

    def _is_duplicate(self, deduplication_id: str, now: float) -> bool:
        """Return whether a message with this id was sent in the last five minutes. If not, record the id."""
        while self._sent_at and now - next(iter(self._sent_at.values())) >= DEDUPLICATION_SECONDS:
            del self._sent_at[next(iter(self._sent_at))]
        if deduplication_id in self._sent_at:
            return True
        self._sent_at[deduplication_id] = now
        return False

    def _add(self, stored: StoredMessage, now: float) -> None:
        self._messages[stored.message_id] = stored
        self._oldest = min(self._oldest, stored.sent_at)
        self._store.put(stored, now)

    def _remove(self, stored: StoredMessage) -> None:
        self._store.remove(stored)
        self._messages.pop(stored.message_id, None)

    def expire(self) -> None:
        """Delete messages that are older than the retention period."""
        oldest = self._clock() - int(self.attributes.get("MessageRetentionPeriod", 345_600))
        if self._oldest >= oldest:
            return
        for stored in [stored for stored in self._store if stored.sent_at < oldest]:
            self._remove(stored)
        self._oldest = min((stored.sent_at for stored in self._store), default=math.inf)

    def _validate(self, message: OutgoingMessage) -> tuple[str, str] | None:
        """Return the error code and text with which SendMessage would refuse *message*, or None."""
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
