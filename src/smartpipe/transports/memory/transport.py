"""The five verbs over topics and queues in memory. It keeps nothing when it ends, and needs no AWS client."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from smartpipe.errors import ConfigError, TransportError
from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_BATCH_ENTRIES, MAX_WAIT_SECONDS
from smartpipe.message import Failure, Message, construct
from smartpipe.names import Naming, name_in
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.transports.memory.filters import matches
from smartpipe.transports.memory.queue import MemoryQueue, Weather

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.message import OutgoingMessage
    from smartpipe.topology.resources import Attributes, Topology
    from smartpipe.transports.memory.store import Stored

NAMING = Naming("aws", "local", "000000000000")
"""Of what is in memory; it has no prefix."""


class MemoryTransport:
    """SNS and SQS in memory, on the clock of the running event loop.

    Args:
        duplicate_share: 0 to 1: which part of the receives from standard queues hands its message out twice.
        shuffle: Let standard queues hand out messages in any order.
        seed: Of the two above: the same seed does the same again.
    """

    def __init__(self, *, duplicate_share: float = 0.0, shuffle: bool = False, seed: int = 0) -> None:
        if not 0 <= duplicate_share < 1:
            msg = f"duplicate_share={duplicate_share} is outside of 0 (never) to below 1 (nearly always)"
            raise ConfigError(msg)
        self._weather = Weather(Random(seed), duplicate_share, shuffle)  # noqa: S311 - for tests
        self._topics: dict[str, Attributes] = {}
        self._queues: dict[str, MemoryQueue] = {}
        self._subscriptions: dict[tuple[str, str], Attributes] = {}
        self._changed = asyncio.Event()
        self._unix_start: float | None = None

    def apply(self, topology: Topology) -> None:
        """Create what *topology* names, or give it these attributes; what is there besides stays."""
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
                    find=lambda arn: self._queues.get(name_in(arn)),
                    redriven=self.redriven,
                    weather=self._weather,
                )
        self._subscriptions.update(
            {(name_in(topic), name_in(queue)): found for (topic, queue), found in topology.subscriptions.items()}
        )

    async def changed(self) -> None:
        """Wait until something has been done to a topic or queue."""
        await self._changed.wait()

    def redriven(self, queue: str, stored: Stored) -> None:
        """Called when *queue* has moved a message to its dead-letter queue by itself."""

    def has_topic(self, name: str) -> bool:
        """Return whether the topic exists."""
        return name in self._topics

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue of this name.

        Raises:
            TransportError: There is none.
        """
        name = name_in(name)  # it may be declared by its ARN
        if name not in self._queues:
            raise TransportError("QueueDoesNotExist", f"queue {name!r} does not exist in memory", retryable=False)
        return self._queues[name]

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Copy each message to every queue whose subscription's filter it passes."""
        await asyncio.sleep(0)
        topic = name_in(topic)  # it may be declared by its ARN
        attributes = self._topics.get(topic)
        if attributes is None:
            raise TransportError("NotFound", f"topic {topic!r} does not exist in memory", retryable=False)
        self._refuse_too_long(messages, int(attributes.get("MaximumMessageSize", DEFAULT_TOPIC_LIMIT_BYTES)))
        failures: list[Failure] = []
        for position, message in enumerate(messages):
            fifo = topic.endswith(FIFO_SUFFIX)
            if fifo and not (message.group_id and message.deduplication_id):
                detail = "a FIFO topic needs MessageGroupId and MessageDeduplicationId"
                failures.append(Failure(position, "InvalidParameter", detail, retryable=False))
                continue
            for (name, queue), subscription in self._subscriptions.items():
                if name == topic and queue in self._queues:
                    self._deliver(topic, self._queues[queue], subscription, message)
        self._wake()
        return failures

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Hand out what is visible, or wait for it. Cancelled, it strands nothing, where SQS might."""
        found = self.queue(queue)
        until = _now() + min(wait_seconds, MAX_WAIT_SECONDS)
        await asyncio.sleep(0)
        while True:
            taken = found.receive(min(max_messages, MAX_BATCH_ENTRIES), visibility_timeout_seconds)
            if taken or _now() >= until:
                now = _now()
                return [self._message(stored, now) for stored in taken]
            next_visible_at = found.next_visible_at()
            wake_at = until if next_visible_at is None else min(until, next_visible_at)
            changed = self._changed
            try:
                async with asyncio.timeout_at(wake_at):
                    await changed.wait()
            except TimeoutError:
                continue

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete by receipt handle."""
        await asyncio.sleep(0)
        found = self.queue(queue)
        outcomes = [found.delete(receipt) for receipt in receipts]
        self._wake()  # a FIFO group may go on
        return [Failure(index, *said, retryable=False) for index, said in enumerate(outcomes) if said]

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Hide messages for longer, or release them."""
        await asyncio.sleep(0)
        found = self.queue(queue)
        outcomes = [found.change_visibility(receipt, round(seconds)) for receipt, seconds in leases]
        self._wake()
        return [Failure(index, *said, retryable=False) for index, said in enumerate(outcomes) if said]

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Put messages into a queue."""
        await asyncio.sleep(0)
        found = self.queue(queue)
        self._refuse_too_long(messages, found.limit_bytes)
        outcomes = [found.send(message) for message in messages]
        self._wake()
        return [failure._replace(position=index) for index, failure in enumerate(outcomes) if failure]

    async def aclose(self) -> None:
        """Do nothing: several publishers and consumers share it."""

    def _deliver(self, topic: str, queue: MemoryQueue, subscription: Attributes, message: OutgoingMessage) -> None:
        if not matches(subscription.get("FilterPolicy"), subscription.get("FilterPolicyScope", ""), message):
            return
        if subscription.get("RawMessageDelivery") != "true":
            body = _notification(topic, message)
            message = message._replace(body=body, size_bytes=len(body.encode()), attributes={})
        if not queue.fifo:
            message = message._replace(deduplication_id=None)
        queue.send(message)  # what the queue refuses SNS drops: a client-side error, which nobody is told

    def _message(self, stored: Stored, now: float) -> Message:
        content, start = stored.content, self._unix_start
        if start is None:
            start = self._unix_start = time.time() - now  # of the loop's clock
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
            ),
        )

    def _wake(self) -> None:
        """Let every waiting receive look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    @staticmethod
    def _refuse_too_long(messages: Sequence[OutgoingMessage], limit_bytes: int) -> None:
        if sum(message.size_bytes for message in messages) > limit_bytes:
            detail = f"the batch is longer than {limit_bytes} bytes"
            raise TransportError("BatchRequestTooLong", detail, retryable=False)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _notification(topic: str, message: OutgoingMessage) -> str:
    """Return the envelope that SNS puts around a message without raw delivery."""
    attributes: dict[str, Any] = {
        name: {"Type": data_type, "Value": value}
        for name, (data_type, value) in message.attributes.items()
        if isinstance(value, str)
    }
    fields = {
        "Type": "Notification",
        "MessageId": str(uuid4()),
        "TopicArn": NAMING.topic_arn(topic),
        "Message": message.body,
        "MessageAttributes": attributes,
    }
    return json.dumps(fields)
