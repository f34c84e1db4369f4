"""A transport in memory that records published events and settled deliveries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic_core import from_json

from smartpipe.consumer.decide import Ack, DeadLetter
from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES, decompress_body
from smartpipe.envelope.decode import get_decoder
from smartpipe.envelope.object_store import get_from_memory
from smartpipe.envelope.pointer import is_pointer, read_pointer
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.errors import MessageError
from smartpipe.events import event_class
from smartpipe.testing.records import DeadLettered, Handled, Ignored, Published, Record, Retried
from smartpipe.topology.resources import Topology
from smartpipe.transports.memory.transport import MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.consumer.settle import Settled
    from smartpipe.envelope.encode import Envelope
    from smartpipe.message import Attribute, Failure, OutgoingMessage
    from smartpipe.transports.memory.store import StoredMessage


MAX_BODY_BYTES = 2**31 - 1


class Recorder(MemoryTransport):
    """SNS and SQS in memory, with a list of records.

    A topic that no service subscribes to is created when an event is published to it.
    """

    def __init__(self, *, duplicate_share: float, shuffle: bool, seed: int) -> None:
        super().__init__(duplicate_share=duplicate_share, shuffle=shuffle, seed=seed)
        self.records: list[Record] = []
        self.dead_letter_names: set[str] = set()
        self._envelopes: dict[str, Envelope] = {}  # of messages that are delivered again, by their ids
        self._started_at = asyncio.get_running_loop().time()

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish, and record the accepted messages."""
        if not self.has_topic(topic):
            self.apply(Topology({"topic": {f":{topic}": {}}}))
        failures = await super().publish(topic, messages)
        self._record_published(topic, messages, failures)
        return failures

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send, and record the accepted messages, except those to a dead-letter queue."""
        failures = await super().send(queue, messages)
        if queue not in self.dead_letter_names:
            self._record_published(queue, messages, failures)
        return failures

    def record_settled(self, settled: Settled) -> None:
        """Record the outcome of a delivery."""
        message, processed = settled.message, settled.processed
        envelope, outcome = processed.envelope or _decode(message.body, message.attributes), processed.outcome
        self._envelopes.pop(message.message_id, None)
        common = {
            "event": envelope and envelope.data,
            "event_id": envelope and envelope.id,
            "at_seconds": self._now(),
            "body": message.body,
            "queue": settled.queue,
            "handler": processed.handler and processed.handler.name,
            "receive_count": message.receive_count,
        }
        if isinstance(outcome, Ack):
            self.records.append((Ignored if outcome.ignored else Handled)(**common))  # type: ignore[arg-type]
        elif isinstance(outcome, DeadLetter) and settled.redelivery_seconds is None:
            self.records.append(DeadLettered(**common, kind=outcome.kind, error=outcome.error))  # type: ignore[arg-type]
        else:
            after_seconds = settled.redelivery_seconds or 0
            if envelope is not None:
                self._envelopes[message.message_id] = envelope
            self.records.append(Retried(**common, after_seconds=after_seconds, error=outcome.error))  # type: ignore[arg-type]

    def on_redrive(self, queue: str, stored: StoredMessage) -> None:
        """Record a message that SQS moved to a dead-letter queue."""
        # Without a handler's model or upcasters, a body alone may not say which event it is.
        known = self._envelopes.pop(stored.message_id, None)
        envelope = known or _decode(stored.content.body, stored.content.attributes)
        error = RuntimeError("the message reached the queue's max_receive_count without being settled")
        self.records.append(
            DeadLettered(
                event=envelope and envelope.data,
                event_id=envelope and envelope.id,
                at_seconds=self._now(),
                body=stored.content.body,
                queue=queue,
                handler=None,
                receive_count=stored.receive_count,
                kind="redriven",
                error=error,
            )
        )

    def _record_published(
        self, destination: str, messages: Sequence[OutgoingMessage], failures: Sequence[Failure]
    ) -> None:
        failed = {failure.position for failure in failures}
        for position, message in enumerate(messages):
            if position in failed:
                continue
            envelope = _decode(message.body, message.attributes)
            values = {name: attribute.parsed for name, attribute in message.attributes.items()}
            self.records.append(
                Published(
                    event=envelope and envelope.data,
                    event_id=envelope and envelope.id,
                    at_seconds=self._now(),
                    body=message.body,
                    destination=destination,
                    attributes=values,
                    group_id=message.group_id,
                    delay_seconds=message.delay_seconds,
                )
            )

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at


def _read_payload(pointer: str) -> str:
    payload = read_pointer(pointer)
    TrustedLocations.from_environment().location_of(payload)
    return get_from_memory(payload)


def _decode(body: str, attributes: Mapping[str, Attribute]) -> Envelope | None:
    """Decode *body* with the class that is declared for its type. Return None if it is not such an event."""
    try:
        if not RESERVED_ATTRIBUTES.isdisjoint(attributes):
            body = decompress_body(_read_payload(body) if is_pointer(attributes) else body, attributes, MAX_BODY_BYTES)
        fields = from_json(body)
        cls = event_class(fields["type"], int(str(fields.get("dataversion", "1")).partition(".")[0]))
        return get_decoder(frozenset({cls})).decode(body) if cls else None
    except (ValueError, TypeError, KeyError, AttributeError, MessageError):
        return None
