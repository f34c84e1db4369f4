"""What a handler sees of the message it handles, besides the event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Unpack

from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.ids import DerivedIds, current_cause
from smartpipe.envelope.traceparent import trace_id
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.message import Attribute, Message
    from smartpipe.options import PublishOptions


class Publishes(Protocol):
    """What a delivery publishes with: a Publisher."""

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish one event and return its envelope id."""


class LeaseView(Protocol):
    """What a delivery knows of its lease."""

    @property
    def lost(self) -> bool:
        """Whether the message may be somebody else's by now."""


class Transactional(Protocol):
    """What a delivery knows of its claim."""

    @property
    def attempt(self) -> int:
        """Which attempt it is, by the store's count."""

    def abandon(self) -> None:
        """Stop renewing the claim."""

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Open the one transaction that completes it."""


class Delivery:
    """One delivery of one message to one handler. It is of no use after the handler has returned.

    ``state`` is what the service's ``lifespan`` yielded, None without one.
    """

    __slots__ = (
        "_lease", "_publisher", "calls", "envelope", "handler", "holding", "ids", "message", "queue", "service",
        "state",
    )  # fmt: skip

    def __init__(
        self,
        envelope: Envelope,
        message: Message,
        *,
        handler: str,
        service: str,
        queue: str,
        lease: LeaseView,
        publisher: Publishes,
        state: Any = None,
    ) -> None:
        self.envelope = envelope
        self.message = message
        self.handler = handler
        self.service = service
        self.queue = queue
        self.state = state
        self.holding: Transactional | None = None
        self.calls = 0
        self.ids: DerivedIds | None = None
        self._lease = lease
        self._publisher = publisher

    @property
    def event(self) -> Event:
        """The event itself."""
        return self.envelope.data

    @property
    def event_id(self) -> str:
        """The envelope's id: the same in every delivery of the event, whatever the SQS message."""
        return self.envelope.id

    @property
    def source(self) -> str:
        """Which component published the event."""
        return self.envelope.source

    @property
    def time(self) -> datetime | None:
        """When it was published, by the producer's clock."""
        return self.envelope.time

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The SQS message attributes."""
        return self.message.attributes

    @property
    def receive_count(self) -> int:
        """1 on the first delivery. More than 1 does not mean that a handler has run before."""
        return self.message.receive_count

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id, 32 hex digits."""
        return trace_id(self.envelope.traceparent)

    @property
    def lease_lost(self) -> bool:
        """Whether the message may have been delivered to another worker meanwhile.

        Check it before an effect that must not happen twice. It becomes true when the event loop was
        blocked past the visibility timeout, when heartbeats failed for so long, or after 12 hours.
        """
        return self._lease.lost

    @property
    def log_message(self) -> str:
        """What a log says of it once it has been handled."""
        return f"Handled by {self.handler}"

    @property
    def log_fields(self) -> dict[str, str | int]:
        """What tells it apart in a log."""
        return {
            "service": self.service,
            "queue": self.queue,
            "handler": self.handler,
            "event_id": self.event_id,
            "message_id": self.message.message_id,
            "receive_count": self.receive_count,
        }

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Return a context manager for a PostgreSQL transaction that commits the effect and its memory together.

        ``async with delivery.transaction() as connection:`` gives an asyncpg connection. Even when the worker is
        killed right after the commit, no other delivery runs this handler again. It can be used once.

        Raises:
            ConfigError: The handler is not idempotent, or the claims are kept elsewhere than in PostgreSQL.
            StoreError: No connection could be had.
        """
        if self.holding is None:
            msg = f"handler {self.handler}: delivery.transaction() is for idempotent handlers: add idempotent=True"
            raise ConfigError(msg)
        return self.holding.transaction()

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* with this one's trace and causation, as the service; see Publisher.publish.

        Its id is derived from this event and the handler: at the next attempt it is the same again.
        """
        envelope = current_envelope.set(self.envelope)  # also from a task that the handler left behind
        cause = current_cause.set(self)
        try:
            return await self._publisher.publish(event, **options)
        finally:
            current_cause.reset(cause)
            current_envelope.reset(envelope)

    @property
    def cause(self) -> tuple[str, ...]:
        """What the ids of published events are derived from: the handler and the event.

        Not the effect that an idempotent handler claims by a field: it can happen again, for another event, when its
        memory has run out, and what that publishes is new.
        """
        return (self.service, self.queue, self.handler, self.source, self.event_id)

    def derive_ids(self) -> DerivedIds:
        """Return the ids of what this delivery publishes, from the first on."""
        return DerivedIds("event", *self.cause, call=self.calls, time_of=self.event_id)
