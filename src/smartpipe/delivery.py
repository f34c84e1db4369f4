"""A delivery: everything besides the event that a handler can know about the message it handles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Unpack, overload

from typing_extensions import TypeVar  # the standard one has no default before Python 3.13

from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.extensions import find_extensions
from smartpipe.envelope.ids import DerivedIds, current_cause
from smartpipe.envelope.traceparent import trace_fields, trace_id
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    import asyncpg

    from smartpipe.connections import C, Engine, Factory, Pool
    from smartpipe.consumer.guard import ClaimHandle
    from smartpipe.consumer.leases import Lease
    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.message import Attribute, AttributeValue, Message
    from smartpipe.options import PublishOptions
    from smartpipe.publisher.publisher import Publisher


S = TypeVar("S", default=Any)
"""The type of the value that a service's lifespan yields."""


class Delivery(Generic[S]):
    """One delivery of one message to one handler. Do not use it after the handler has returned.

    ``state`` is the value that the service's ``lifespan`` yielded, None without a lifespan. Annotate the parameter of
    your handler as ``Delivery[State]``, and type checkers know its type.

    ``attempt`` is the attempt number that the retry policy counts: 1 for the first. Deliveries that no handler has seen
    do not count, as far as this worker knows of them.
    """

    __slots__ = (
        "_lease", "_publisher", "attempt", "calls", "claim", "envelope", "handler", "ids", "message", "queue",
        "service", "state",
    )  # fmt: skip

    def __init__(
        self,
        envelope: Envelope,
        message: Message,
        *,
        handler: str,
        service: str,
        queue: str,
        lease: Lease,
        publisher: Publisher,
        state: Any = None,
    ) -> None:
        self.envelope = envelope
        self.message = message
        self.handler = handler
        self.service = service
        self.queue = queue
        self.state: S = state
        self.attempt = message.receive_count
        self.claim: ClaimHandle | None = None
        self.calls = 0
        self.ids: DerivedIds | None = None
        self._lease = lease
        self._publisher = publisher

    @property
    def event(self) -> Event:
        """The event; in a raw handler, the message as its model."""
        return self.envelope.data

    @property
    def event_id(self) -> str:
        """The envelope's id. It is the same in every delivery of the event, in each SQS message that carries it."""
        return self.envelope.id

    @property
    def source(self) -> str:
        """The component that published the event."""
        return self.envelope.source

    @property
    def version(self) -> str:
        """The version in which the event was sent, ``major.minor``. It is older than the class if data was upcast."""
        return self.envelope.version

    @property
    def time(self) -> datetime | None:
        """When the event was published, by the producer's clock; or the time that its producer has passed."""
        return self.envelope.time

    @property
    def subject(self) -> str | None:
        """The CloudEvents ``subject``, which other producers set; None if there is none. It is read when you ask."""
        subject = find_extensions(self.message).get("subject")
        return subject if isinstance(subject, str) else None

    @property
    def extensions(self) -> dict[str, str | int | float | bool]:
        """The CloudEvents extension attributes that the envelope does not have, such as ``tracestate``.

        They are read from the body each time that you ask, which takes some milliseconds for a large one.
        """
        return {name: value for name, value in find_extensions(self.message).items() if name != "subject"}

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """The message attributes, as in a raw delivery, even if SNS has put them into a notification."""
        return self.message.attributes

    def attribute(self, name: str) -> AttributeValue | None:
        """Return the value of a message attribute: text, a number, a list or bytes; None if there is none.

        Args:
            name: The name of the attribute.
        """
        found = self.message.attributes.get(name)
        return None if found is None else found.parsed

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

        Check it before an effect that must not happen twice. It becomes true if the event loop was blocked, or the
        lease could not be extended, for as long as the visibility timeout, and after 12 hours.
        """
        return self._lease.lost

    @property
    def log_message(self) -> str:
        """The text of the log line after the delivery was handled."""
        return f"Handled by {self.handler}"

    @property
    def log_fields(self) -> dict[str, str | int | None]:
        """The fields of a log line that identify the delivery."""
        envelope, message = self.envelope, self.message
        return {
            "service": self.service,
            "queue": self.queue,
            "handler": self.handler,
            "event_id": envelope.id,
            "event_type": envelope.type,
            "message_id": message.message_id,
            **trace_fields(envelope.traceparent),
            "attempt": self.attempt,
            "receive_count": message.receive_count,
        }

    @overload
    def transaction(self, /) -> AbstractAsyncContextManager[asyncpg.Connection]: ...

    @overload
    def transaction(self, source: asyncpg.Pool, /) -> AbstractAsyncContextManager[asyncpg.Connection]: ...

    @overload
    def transaction(self, source: C, /) -> AbstractAsyncContextManager[C]: ...

    @overload
    def transaction(self, source: Factory[C] | Engine[C] | Pool[C], /) -> AbstractAsyncContextManager[C]: ...

    def transaction(self, source: Any = None, /) -> AbstractAsyncContextManager[Any]:
        """Return a context manager for a PostgreSQL transaction that commits your changes and the claim together.

        ``async with delivery.transaction(sessions) as session:``. Even if the worker is killed right after the commit,
        no other delivery runs this handler again. If the block raises, everything is rolled back, and so it is if the
        worker has lost the claim. It can be used once.

        Args:
            source: An ``async_sessionmaker`` of SQLAlchemy or another function that returns an AsyncSession, an
                AsyncEngine, or a pool of asyncpg or psycopg: it provides the session or connection that the block gets,
                which is closed or returned afterwards. Or an AsyncSession, AsyncConnection or connection of asyncpg or
                psycopg, which the block gets and you close. It must not be in a transaction, and must lead to the
                database that has the claims. By default, the block gets a connection of asyncpg from a pool of ten.

        Raises:
            ConfigError: The handler is not idempotent, the claims are not stored in PostgreSQL, or *source* cannot be
                used or leads to another database.
            StoreError: No connection could be made, or the claim could not be completed.
        """
        if self.claim is None:
            msg = f"handler {self.handler}: delivery.transaction() is for idempotent handlers: add idempotent=True"
            raise ConfigError(msg)
        return self.claim.transaction(source)

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* as the service, with the trace of this event and with its id as the cause.

        If OpenTelemetry has a current span, the trace is that of the span. The options replace any part of this
        context. The id of *event* is derived from this event and the handler, so it is the same at the next attempt.
        See Publisher.publish for options and errors.
        """
        envelope = current_envelope.set(self.envelope)  # the caller may be a task that the handler left behind
        cause = current_cause.set(self)
        try:
            return await self._publisher.publish(event, **options)
        finally:
            current_cause.reset(cause)
            current_envelope.reset(envelope)

    @property
    def cause(self) -> tuple[str, ...]:
        """The handler and the event, from which the ids of published events are derived.

        The field that an idempotent handler claims by is not part of it. After the claim has expired, another event
        with the same value is handled, and the events published then are new.
        """
        return (self.service, self.queue, self.handler, self.source, self.event_id)

    def derive_ids(self) -> DerivedIds:
        """Return the ids of the events that this delivery publishes, from the first on."""
        return DerivedIds("event", *self.cause, call=self.calls, time_of=self.event_id)
