"""The options of ``publish`` and of ``subscribe``, each written once, for type checkers and editors.

Methods take them as ``**options: Unpack[...]``. Source: PEP 692.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, ParamSpec, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from types import EllipsisType
    from typing import Concatenate

    from smartpipe.consumer.breaker import CircuitBreaker
    from smartpipe.idempotency.store import Idempotency
    from smartpipe.message import NewAttribute
    from smartpipe.retry import RetryPolicy
    from smartpipe.topics import Queue

E = TypeVar("E")
"""The event, or the model of a raw handler."""
P = ParamSpec("P")
R = TypeVar("R")


class PublishManyOptions(TypedDict, total=False):
    """How the events of one call are published. None is the same as leaving an option out.

    Args:
        queue: Send the events to this queue, and not to their topics: by name, or with its settings.
        delay_seconds: How long that queue hides them: 0 to 900, in whole seconds. SNS has no delay.
        attributes: Further message attributes, up to nine, for the filter policies of other subscribers. Text becomes
            a ``String``, a number a ``Number``, which ``numeric`` in a filter policy compares, and a list a
            ``String.Array``, of which SNS compares each element. A queue that events are sent to directly keeps the
            types, but SQS itself does not use them.
        time: When the events happened, with a time zone; by default now. It is sent in UTC.
        traceparent: The W3C trace context that caused them, as in the header of an HTTP request. By default that of
            OpenTelemetry's current span, then that of the event that is being handled, then a new trace.
        correlation_id: Names the chain of events that they belong to, such as the id of an HTTP request: 1 to 256
            characters. By default that of the event that is being handled, or the event's own id.
        causation_id: The id of the event, command or request that caused them: 1 to 256 characters. By default the id
            of the event that is being handled.
    """

    queue: Queue | str | None
    delay_seconds: float | None
    attributes: Mapping[str, NewAttribute] | None
    time: datetime | None
    traceparent: str | None
    correlation_id: str | None
    causation_id: str | None


class PublishOptions(PublishManyOptions, total=False):
    """How one event is published.

    Args:
        event_id: The id of the event: 1 to 256 characters. Use it if the event has an id where it comes from, such as
            the idempotency key of a request: consumers handle two events with one id and source as copies. By default
            a new id or, in a handler, one that is the same at every attempt.
    """

    event_id: str | None


class SubscribeOptions(TypedDict, total=False):
    """How a handler is called.

    Args:
        queue: A queue other than the service's, by name or with its settings.
        retry: When failures are retried; by default the service's policy.
        timeout_seconds: By default the service's; None for no timeout. A handler that runs longer is cancelled if it is
            async. If it is sync, its thread is abandoned. Both count as failures.
        concurrency: The maximum number of concurrent calls of this handler: 1 to 10,000. If every kind of event on its
            queue has such a maximum, these replace the worker's concurrency.
        rate_per_second: The maximum rate at which messages are received from its queue, whichever handler they are for.
            Each worker process has a rate of its own.
        breaker: Stops receiving from its queue while every call of this handler fails.
        idempotent: Handle each event once, as far as the store remembers (``SMARTPIPE_IDEMPOTENCY_URL``): True, or an
            Idempotency with the field that identifies the event.
    """

    queue: Queue | str | None
    retry: RetryPolicy | None
    timeout_seconds: float | EllipsisType | None
    concurrency: int | None
    rate_per_second: float | None
    breaker: CircuitBreaker | None
    idempotent: bool | Idempotency


class Subscribe(Protocol, Generic[E]):
    """The decorator that ``subscribe`` returns: the first parameter of the function must take the event."""

    def __call__(self, function: Callable[Concatenate[E, P], R], /) -> Callable[Concatenate[E, P], R]:
        """Register *function* and return it unchanged."""


class SubscribeBatch(Protocol, Generic[E]):
    """The decorator that ``subscribe`` returns with ``batch``: the first parameter must take the list of events."""

    def __call__(self, function: Callable[Concatenate[list[E], P], R], /) -> Callable[Concatenate[list[E], P], R]:
        """Register *function* and return it unchanged."""
