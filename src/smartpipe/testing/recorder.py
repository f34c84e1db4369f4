"""A transport that remembers what was published, and turns settled deliveries into records."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic_core import from_json

from smartpipe.consumer.decide import Ack, DeadLetter
from smartpipe.envelope.decode import decoder_of
from smartpipe.envelope.encoding import decompress_body, is_encoded
from smartpipe.envelope.object_store import get_from_memory
from smartpipe.envelope.pointer import is_pointer, payload_at
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.errors import MessageError
from smartpipe.events import event_class
from smartpipe.testing.records import DeadLettered, Handled, Ignored, Published, Record, Retried
from smartpipe.topology.resources import Topology
from smartpipe.transports.memory.transport import MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.consumer.consumer import Settled
    from smartpipe.envelope.encode import Envelope
    from smartpipe.message import Attribute, Failure, OutgoingMessage
    from smartpipe.transports.memory.store import StoredMessage


LIMIT_BYTES = 2**31 - 1


class Recorder(MemoryTransport):
    """SNS and SQS in memory, with a list of all that happened.

    A topic that no service subscribes to exists as soon as something is published to it.
    """

    def __init__(self, *, duplicate_share: float, shuffle: bool, seed: int) -> None:
        super().__init__(duplicate_share=duplicate_share, shuffle=shuffle, seed=seed)
        self.records: list[Record] = []
        self.dead_letter_names: set[str] = set()
        self._started_at = asyncio.get_running_loop().time()

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish, and remember what was taken."""
        if not self.has_topic(topic):
            self.apply(Topology({f":{topic}": {}}, {}, {}))
        failures = await super().publish(topic, messages)
        self._published(topic, messages, failures)
        return failures

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send, and remember what was taken, but for dead letters."""
        failures = await super().send(queue, messages)
        if queue not in self.dead_letter_names:
            self._published(queue, messages, failures)
        return failures

    def settled(self, settled: Settled) -> None:
        """Remember how a delivery ended."""
        message, processed = settled.message, settled.processed
        envelope, outcome = processed.envelope or _decoded(message.body, message.attributes), processed.outcome
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
        elif isinstance(outcome, DeadLetter) and settled.again_seconds is None:
            self.records.append(DeadLettered(**common, kind=outcome.kind, error=outcome.error))  # type: ignore[arg-type]
        else:
            after_seconds = settled.again_seconds or 0
            self.records.append(Retried(**common, after_seconds=after_seconds, error=outcome.error))  # type: ignore[arg-type]

    def on_redrive(self, queue: str, stored: StoredMessage) -> None:
        """Remember what SQS itself moved to a dead-letter queue."""
        envelope = _decoded(stored.content.body, stored.content.attributes)
        error = RuntimeError("received as often as the queue's max_receive_count allows, and never settled")
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

    def _published(self, destination: str, messages: Sequence[OutgoingMessage], failures: Sequence[Failure]) -> None:
        failed = {failure.position for failure in failures}
        for position, message in enumerate(messages):
            if position in failed:
                continue
            envelope = _decoded(message.body, message.attributes)
            texts = {name: value for name, (_, value) in message.attributes.items() if isinstance(value, str)}
            self.records.append(
                Published(
                    event=envelope and envelope.data,
                    event_id=envelope and envelope.id,
                    at_seconds=self._now(),
                    body=message.body,
                    destination=destination,
                    attributes=texts,
                    group_id=message.group_id,
                    delay_seconds=message.delay_seconds,
                )
            )

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at


def _kept(pointer: str) -> str:
    payload = payload_at(pointer)
    TrustedLocations.from_environment().location_of(payload)
    return get_from_memory(payload)


def _decoded(body: str, attributes: Mapping[str, Attribute]) -> Envelope | None:
    """Return the event in *body*, by whatever class is declared for its type; None if it is none."""
    try:
        if is_encoded(attributes):
            body = decompress_body(_kept(body) if is_pointer(attributes) else body, attributes, LIMIT_BYTES)
        fields = from_json(body)
        cls = event_class(fields["type"], int(str(fields.get("dataversion", "1")).partition(".")[0]))
        return decoder_of(frozenset({cls})).decode(body) if cls else None
    except (ValueError, TypeError, KeyError, AttributeError, MessageError):
        return None
