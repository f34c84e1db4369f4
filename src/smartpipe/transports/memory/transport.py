"""The transport over topics and queues in memory. It needs no AWS client, and stores nothing on disk."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from smartpipe.errors import ConfigError, TransportError
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_BATCH_ENTRIES, MAX_WAIT_SECONDS
from smartpipe.message import Failure, Message, construct
from smartpipe.names import Naming, name_in
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.transports.memory.filters import matches
from smartpipe.transports.memory.queue import DeliveryFaults, MemoryQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import OutgoingMessage
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.transport import Depth
    from smartpipe.transports.memory.store import StoredMessage

NAMING = Naming("aws", "local", "000000000000")
"""The naming of resources in memory. It has no prefix."""


class MemoryTransport:
    """SNS and SQS in memory, on the clock of the running event loop.

    Args:
        duplicate_share: The share of receives from standard queues, 0 to below 1, whose message is delivered twice.
        shuffle: Deliver messages of standard queues in random order.
        seed: The seed of the two faults above. The same seed repeats the same faults.
    """

    def __init__(self, *, duplicate_share: float = 0.0, shuffle: bool = False, seed: int = 0) -> None:
        if not 0 <= duplicate_share < 1:
            msg = f"duplicate_share={duplicate_share} is outside the range 0 (never) to below 1 (nearly always)"
            raise ConfigError(msg)
        self._faults = DeliveryFaults(Random(seed), duplicate_share, shuffle)  # noqa: S311 - for tests
        self._topics: dict[str, Attributes] = {}
        self._queues: dict[str, MemoryQueue] = {}
        self._subscriptions: dict[tuple[str, str], Attributes] = {}
        self._changed = asyncio.Event()
        self._unix_start: float | None = None

    def apply(self, topology: Topology) -> None:
        """Create the resources of *topology*, or update their attributes. Other resources stay."""
        self._topics.update({name_in(arn): attributes for arn, attributes in topology.topics.items()})
        for arn, attributes in topology.queues.items():
            name = name_in(arn)
            if name in self._queues:
                self._queues[name].attributes.update(attributes)
            else:
                self._queues[name] = MemoryQueue(
                    name,
                    attributes,
                    clock=_now,
                    find_queue=lambda arn: self._queues.get(name_in(arn)),
                    on_redrive=self.on_redrive,
                    faults=self._faults,
                )
        self._subscriptions.update(
            {(name_in(topic), name_in(queue)): found for (topic, queue), found in topology.subscriptions.items()}
        )

    async def wait_for_change(self) -> None:
        """Wait until a message is published, sent, deleted, or changes its visibility."""
        await self._changed.wait()

    def on_redrive(self, queue: str, stored: StoredMessage) -> None:
        """Handle that *queue* has moved a message to its dead-letter queue. A subclass may override it."""

    def has_topic(self, name: str) -> bool:
        """Return whether the topic exists."""
        return name in self._topics

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue of this name.

        Raises:
            TransportError: The queue does not exist.
        """
        name = name_in(name)  # the name may be an ARN
        if name not in self._queues:
            raise TransportError("QueueDoesNotExist", f"queue {name!r} does not exist in memory", retryable=False)
        return self._queues[name]

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Copy each message to every queue whose subscription's filter it passes."""
        await asyncio.sleep(0)
        topic = name_in(topic)  # the name may be an ARN
        attributes = self._topics.get(topic)
        if attributes is None:
            raise TransportError("NotFound", f"topic {topic!r} does not exist in memory", retryable=False)
        self._check_size(messages, int(attributes.get("MaximumMessageSize", DEFAULT_TOPIC_LIMIT_BYTES)))
        failures: list[Failure] = []
        for position, message in enumerate(messages):
            fifo = topic.endswith(FIFO_SUFFIX)
            if fifo and not (message.group_id and message.deduplication_id):
                detail = "a FIFO topic needs MessageGroupId and MessageDeduplicationId"
                failures.append(Failure(position, "InvalidParameter", detail, retryable=False))
                continue
            for (name, queue), subscription in self._subscriptions.items():
                if name == topic and queue in self._queues:
                    self._forward(topic, self._queues[queue], subscription, message)
        self._wake()
        return failures

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Return visible messages, or wait for some. A cancelled call hides no message, unlike on SQS."""
        source = self.queue(queue)
        until = _now() + min(wait_seconds, MAX_WAIT_SECONDS)
        await asyncio.sleep(0)
        while True:
            received = source.receive(min(max_messages, MAX_BATCH_ENTRIES), visibility_timeout_seconds)
            if received or _now() >= until:
                now = _now()
                return [self._message(stored, now) for stored in received]
            next_visible_at = source.next_visible_at()
            wake_at = until if next_visible_at is None else min(until, next_visible_at)
            changed = self._changed
            try:
                async with asyncio.timeout_at(wake_at):
                    await changed.wait()
            except TimeoutError:
                continue

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete messages by receipt handle."""
        await asyncio.sleep(0)
        target = self.queue(queue)
        errors = [target.delete(receipt) for receipt in receipts]
        self._wake()  # the next message of a FIFO group may be visible now
        return [Failure(index, *error, retryable=False) for index, error in enumerate(errors) if error]

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Hide messages for longer, or make them visible."""
        await asyncio.sleep(0)
        target = self.queue(queue)
        errors = [target.change_visibility(receipt, round(seconds)) for receipt, seconds in leases]
        self._wake()
        return [Failure(index, *error, retryable=False) for index, error in enumerate(errors) if error]

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send messages to a queue."""
        await asyncio.sleep(0)
        target = self.queue(queue)
        self._check_size(messages, target.limit_bytes)
        failures = [target.send(message) for message in messages]
        self._wake()
        return [failure._replace(position=index) for index, failure in enumerate(failures) if failure]

    async def count_messages(self, queue: str) -> Depth:
        """Count the messages of a queue."""
        await asyncio.sleep(0)
        return self.queue(queue).depth

    async def aclose(self) -> None:
        """Do nothing, because several publishers and consumers share the transport."""

    def _forward(self, topic: str, queue: MemoryQueue, subscription: Attributes, message: OutgoingMessage) -> None:
        if not matches(subscription.get("FilterPolicy"), subscription.get("FilterPolicyScope", ""), message):
            return
        if subscription.get("RawMessageDelivery") != "true":
            body = _notification(topic, message)
            message = message._replace(body=body, size_bytes=len(body.encode()), attributes={})
        if not queue.fifo:
            message = message._replace(deduplication_id=None)
        queue.send(message)  # SNS drops a message that the queue refuses, and reports no error to the publisher

    def _message(self, stored: StoredMessage, now: float) -> Message:
        content, start = stored.content, self._unix_start
        if start is None:
            start = self._unix_start = time.time() - now  # the start of the event loop's clock
        return construct(
            Message,
            (
                stored.message_id,
                stored.receipt,
                content.body,
                stored.receive_count,
                content.attributes,
                content.group_id,
                start + stored.sent_at,
                None if stored.first_received_at is None else start + stored.first_received_at,
                now,
                stored.moved_from,
                content.trace_header,
                None,
            ),
        )

    def _wake(self) -> None:
        """Let every waiting receive call check its queue again."""
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    def _check_size(messages: Sequence[OutgoingMessage], limit_bytes: int) -> None:
        if sum(message.size_bytes for message in messages) > limit_bytes:
            detail = f"the batch is longer than {limit_bytes} bytes"
            raise TransportError("BatchRequestTooLong", detail, retryable=False)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _notification(topic: str, message: OutgoingMessage) -> str:
    """Return the JSON document in which SNS wraps a message without raw delivery."""
    attributes: dict[str, Any] = {
        name: {"Type": data_type, "Value": value if isinstance(value, str) else b64encode(value).decode()}
        for name, (data_type, value) in message.attributes.items()
    }
    fields = {
        "Type": "Notification",
        "MessageId": str(uuid4()),
        "TopicArn": NAMING.topic_arn(topic),
        "Message": message.body,
        "MessageAttributes": attributes,
    }
    return json.dumps(fields)
