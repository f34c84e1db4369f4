"""Handlers: functions with a checked signature, and the options with which they are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smartpipe.batch import Batch
from smartpipe.consumer.breaker import CircuitBreaker
from smartpipe.consumer.signature import Parameter, find_dependency, read_signature
from smartpipe.envelope.decode import MessageReader
from smartpipe.errors import ConfigError
from smartpipe.events import Event, contract_of
from smartpipe.idempotency.store import HandlerName, Idempotency
from smartpipe.limits import MAX_VISIBILITY_SECONDS
from smartpipe.names import name_of
from smartpipe.raw_messages import RawReader, RawType
from smartpipe.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from smartpipe.payload_offload import PayloadOffload
    from smartpipe.topics import Queue

MAX_CONCURRENCY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """How a handler is called.

    Args:
        timeout_seconds: The handler is cancelled after this time, which counts as a failure. None: it is cancelled when
            the lease can no longer be extended, 12 hours after the delivery.
        batch: The handler takes lists of events.
        concurrency: The maximum number of concurrent calls; None: as many as there are slots.
        rate_per_second: The maximum rate at which messages are received from its queue.
        breaker: Stops receiving from its queue while every call fails.
        idempotency: Lets the handler handle each event once.
    """

    queue: Queue
    retry: RetryPolicy
    timeout_seconds: float | None = None
    batch: Batch | None = None
    concurrency: int | None = None
    rate_per_second: float | None = None
    breaker: CircuitBreaker | None = None
    idempotency: Idempotency | None = None

    def find_errors(self) -> list[str]:
        """Return an error for each value that is out of range or does not fit the others."""
        errors = [
            f"{label}={value!r} is not of type {expected.__name__}: write {label}={expected.__name__}(...)"
            for label, value, expected in (
                ("retry", self.retry, RetryPolicy),
                ("batch", self.batch, Batch),
                ("breaker", self.breaker, CircuitBreaker),
                ("idempotency", self.idempotency, Idempotency),
            )
            if value is not None and not isinstance(value, expected)
        ]
        numbers = {name: getattr(self, name) for name in ("timeout_seconds", "concurrency", "rate_per_second")}
        errors += [
            f"{name}={value!r} is not a number"
            for name, value in numbers.items()
            if value is not None and not isinstance(value, (int, float))
        ]
        return errors or self._find_range_errors()

    def _find_range_errors(self) -> list[str]:
        errors = []
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds <= MAX_VISIBILITY_SECONDS:
            errors.append(f"timeout_seconds={self.timeout_seconds} must be above 0 and at most 43,200")
        if self.concurrency is not None and not 1 <= self.concurrency <= MAX_CONCURRENCY:
            errors.append(f"concurrency={self.concurrency} must be 1 to {MAX_CONCURRENCY:,}")
        if self.rate_per_second is not None and not 0 < self.rate_per_second < float("inf"):
            errors.append(f"rate_per_second={self.rate_per_second} must be above 0")
        if self.retry.on_exhausted == "halt" and not self.queue.fifo:
            errors.append(
                f'on_exhausted="halt" stops a message group, but {self.queue.name!r} is a standard queue and has no '
                "groups: declare it with Queue(..., fifo=True)"
            )
        return errors


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A registered handler.

    Args:
        name: The function's module and qualified name.
        service: The name of the service that it belongs to.
        event: The event that it takes, or for a raw handler the type of its messages.
        state: The values that the lifespan provides for its parameters, by the parameter's name.
    """

    name: str
    service: str
    function: Callable[..., Any]
    event: type[Event] | RawType
    options: HandlerOptions
    parameters: tuple[Parameter, ...]
    is_async: bool
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def queue(self) -> Queue:
        """The queue that it is subscribed on."""
        return self.options.queue

    @property
    def event_type(self) -> str:
        """The type of its events or messages, for metrics."""
        return self.event.name if isinstance(self.event, RawType) else contract_of(self.event).type

    @property
    def route_key(self) -> type[Event] | str:
        """The class of the events that it takes, or the name of the type of its raw messages."""
        return self.event.name if isinstance(self.event, RawType) else self.event

    @property
    def retry(self) -> RetryPolicy:
        """The policy by which its failures are retried."""
        return self.options.retry

    def full_name(self, prefix: str) -> HandlerName:
        """Return its full name in the environment that has this *prefix*."""
        return HandlerName(prefix, self.service, self.queue.name, self.name)

    def bind(self, state: Any) -> list[str]:
        """Store the values that the lifespan provides for its parameters; return an error for each missing one."""
        errors = []
        for parameter in self.parameters:
            if parameter.kind == "state":
                self.state[parameter.name], error = find_dependency(state, parameter)
                if error:
                    errors.append(f"handler {self.name}: {error}")
        return errors


def slots_for(handlers: Sequence[Handler], concurrency: int) -> int:
    """Return the maximum number of messages that a queue's consumer holds; *concurrency* is the worker's.

    It is the number that the handlers ask for, if every kind of event has a handler that does, and never less than a
    full batch.
    """
    asked: dict[type[Event] | RawType, int] = {}
    for handler in handlers:
        options = handler.options
        size = options.batch.size if options.batch else 1
        if options.concurrency is not None or options.batch is not None:
            asked[handler.event] = max(asked.get(handler.event, 0), size * (options.concurrency or 1))
    if all(handler.options.concurrency is not None for handler in handlers):
        return sum(asked.values())
    return max(concurrency, sum(asked.values()))


def make_reader(handlers: Iterable[Handler], payloads: PayloadOffload) -> MessageReader:
    """Return a reader of the messages of a queue with these handlers."""
    events = [handler.event for handler in handlers if not isinstance(handler.event, RawType)]
    raw = dict.fromkeys(handler.event for handler in handlers if isinstance(handler.event, RawType))
    return MessageReader(events, payloads, RawReader(tuple(raw)) if raw else None)


def make_handler(
    function: Callable[..., Any],
    event: type[Event] | RawType,
    options: HandlerOptions,
    *,
    service: str,
    provides_state: bool,
) -> Handler:
    """Check *function* and return it as a handler of *event* in *service*.

    Raises:
        ConfigError: With the handler's name and every error.
    """
    name = name_of(function)
    errors = options.find_errors()
    taken: Any = event.model if isinstance(event, RawType) else event
    fields = event.field_names if isinstance(event, RawType) else tuple(event.model_fields)
    topic = None if isinstance(event, RawType) else contract_of(event).topic
    if topic is not None and options.queue.fifo and not topic.fifo:
        errors.append(
            f"queue {options.queue.name!r} is FIFO and topic {topic.name!r} is not, and SNS does not connect them: "
            "make the topic FIFO, or handle its events on a standard queue"
        )
    if options.idempotency is not None and options.idempotency.key not in (None, *fields):
        errors.append(
            f"its idempotency key {options.idempotency.key!r} is not a field of {taken.__qualname__} "
            f"({', '.join(fields) or 'it has none'})"
        )
    signature = read_signature(function, taken, batch=options.batch is not None, state=provides_state)
    errors += signature.errors
    if errors:
        raise ConfigError([f"handler {name}: {error}" for error in errors])
    return Handler(name, service, function, event, options, signature.parameters, signature.is_async)
