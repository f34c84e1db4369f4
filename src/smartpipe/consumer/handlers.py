"""Handlers: functions with a checked signature, the events and the options with which they are called."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from smartpipe.batch import Batch
from smartpipe.consumer.breaker import CircuitBreaker
from smartpipe.consumer.signature import Parameter, find_dependency, name_classes, read_signature
from smartpipe.envelope.decode import MessageReader
from smartpipe.errors import ConfigError
from smartpipe.events import Event, contract_of, declared_events, fields_of
from smartpipe.idempotency.store import HandlerName, Idempotency
from smartpipe.limits import MAX_VISIBILITY_SECONDS
from smartpipe.names import name_of
from smartpipe.raw_messages import RawReader, RawType, is_model
from smartpipe.retry import RetryPolicy
from smartpipe.settings import MAX_CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from smartpipe.payload_offload import PayloadOffload
    from smartpipe.topics import Queue


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
        subscribed: The classes that it is subscribed to. Those without a type are base classes of events.
        raw: The type of the messages of a raw handler, which is subscribed to no class.
        state: The values that the lifespan provides for its parameters, by the parameter's name.
    """

    name: str
    service: str
    function: Callable[..., Any]
    subscribed: tuple[type[Event], ...]
    options: HandlerOptions
    parameters: tuple[Parameter, ...]
    is_async: bool
    raw: RawType | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def queue(self) -> Queue:
        """The queue that it is subscribed on."""
        return self.options.queue

    @property
    def event_types(self) -> list[str]:
        """The types of its events or messages, for metrics."""
        return [contract_of(event).type for event in self.events] if self.raw is None else [self.raw.name]

    @property
    def route_keys(self) -> tuple[type[Event] | str, ...]:
        """The classes of the events that it takes, or the name of the type of its raw messages."""
        return self.events if self.raw is None else (self.raw.name,)

    @property
    def taken(self) -> str:
        """The names of the classes, or of the type of raw messages, that it is subscribed to."""
        return name_classes(self.subscribed) if self.raw is None else self.raw.name

    @property
    def retry(self) -> RetryPolicy:
        """The policy by which its failures are retried."""
        return self.options.retry

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The events that it handles. Of a base class, they are the events that are declared when a worker starts.

        Raises:
            ConfigError: A base class has no events, or their topic does not fit the queue.
        """
        known = self.known_events
        errors = [
            f"{one.__qualname__} is the base class of no event: declare a subclass with type= and version=, in a "
            "module that the service imports"
            for one in self.subscribed
            if not declared_events(one)
        ]
        errors += _find_topic_errors(known, self.queue)
        if errors:
            raise ConfigError([f"handler {self.name}: {error}" for error in errors])
        return known

    @property
    def known_events(self) -> tuple[type[Event], ...]:
        """The events that it handles, as far as they have been declared until now."""
        return tuple(dict.fromkeys(event for one in self.subscribed for event in declared_events(one)))

    def overlaps(self, other: Handler) -> bool:
        """Return whether an event, or a raw message, can be handled by both."""
        if self.raw is not None:
            return self.raw is other.raw
        pairs = [(mine, theirs) for mine in self.subscribed for theirs in other.subscribed]
        return any(_contains(mine, theirs) or _contains(theirs, mine) for mine, theirs in pairs)

    def claims_like(self, other: Handler) -> bool:
        """Return whether their claims on an event, or on raw messages of one model, differ only by their names."""
        if self.raw is None or other.raw is None:
            return self.overlaps(other)
        return self.raw.model.__name__ == other.raw.model.__name__

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


def handlers_by_event(handlers: Iterable[Handler]) -> Mapping[type[Event], list[Handler]]:
    """Return the handlers of each event, in the order of their registration.

    Raises:
        ConfigError: A base class has no events, or two handlers of an event have one name.
    """
    found: dict[type[Event], list[Handler]] = {}
    for handler in handlers:
        for event in handler.events:
            others = found.setdefault(event, [])
            if any(one.name == handler.name for one in others):
                raise ConfigError(
                    f"handler {handler.name}: it is subscribed to two base classes of {event.__qualname__}, and would "
                    "handle it twice. Subscribe it to one of them, or give each function a name of its own"
                )
            others.append(handler)
    return found


def slots_for(handlers: Sequence[Handler], concurrency: int) -> int:
    """Return the maximum number of messages that a queue's consumer holds; *concurrency* is the worker's.

    It is the number that the handlers ask for, if every kind of event has a handler that does, and never less than a
    full batch. The events of one handler share the number that it asks for.
    """
    asking: dict[type[Event] | str, Handler] = {}
    for handler in handlers:
        if handler.options.concurrency is None and handler.options.batch is None:
            continue
        for key in handler.route_keys:
            other = asking.get(key)
            if other is None or _slots_of(other) < _slots_of(handler):
                asking[key] = handler
    asked = sum(map(_slots_of, set(asking.values())))
    if all(handler.options.concurrency is not None for handler in handlers):
        return asked
    return max(concurrency, asked)


def rate_of(handlers: Sequence[Handler]) -> float:
    """Return the maximum rate at which a process receives from the queue of these handlers: the lowest of theirs."""
    rates = (handler.options.rate_per_second for handler in handlers)
    return min((rate for rate in rates if rate is not None), default=math.inf)


def _slots_of(handler: Handler) -> int:
    options = handler.options
    return (options.batch.size if options.batch else 1) * (options.concurrency or 1)


def read_subscription(event: Any) -> tuple[type[Event], ...]:
    """Return the classes in the argument of ``subscribe``: one class, or those of a union.

    Raises:
        ConfigError: It is something else, or Event itself.
    """
    classes = tuple(_list_members(event))
    for one in classes:
        if is_model(one) and not issubclass(one, Event):
            msg = (
                f"subscribe({one.__qualname__}): it is not an event. For messages of other systems, write "
                f"@service.subscribe_raw({one.__name__}); an event is a subclass of smartpipe.Event"
            )
            raise ConfigError(msg)
    if not all(isinstance(one, type) and issubclass(one, Event) for one in classes):
        msg = f"subscribe({event!r}): write @service.subscribe(UserSignedUp), with the event's class in parentheses"
        raise ConfigError(msg)
    if Event in classes:
        msg = (
            "subscribe(Event) would depend on the modules that a process has imported: declare a base class of the "
            "events, as in class OrderEvent(Event, topic=orders), and subscribe to it"
        )
        raise ConfigError(msg)
    return tuple(dict.fromkeys(classes))


def _list_members(event: Any) -> Iterator[Any]:
    event = getattr(event, "__value__", event)  # of a type alias
    if get_origin(event) not in (Union, UnionType):
        yield event
        return
    for one in get_args(event):
        yield from _list_members(one)


def make_reader(handlers: Sequence[Handler], payloads: PayloadOffload) -> MessageReader:
    """Return a reader of the messages of a queue with these handlers."""
    raw = dict.fromkeys(handler.raw for handler in handlers if handler.raw is not None)
    return MessageReader(handlers_by_event(handlers), payloads, RawReader(tuple(raw)) if raw else None)


def make_handler(
    function: Callable[..., Any],
    taken: tuple[type[Event], ...] | RawType,
    options: HandlerOptions,
    *,
    service: str,
    provides_state: bool,
) -> Handler:
    """Check *function* and return it as a handler in *service* of events, or of raw messages.

    Raises:
        ConfigError: With the handler's name and every error.
    """
    name = name_of(function)
    errors = options.find_errors()
    subscribed = () if isinstance(taken, RawType) else taken
    errors += _find_topic_errors([event for one in subscribed for event in declared_events(one)], options.queue)
    errors += _find_key_errors(taken, options.idempotency)
    models = (taken.model,) if isinstance(taken, RawType) else taken
    signature = read_signature(function, models, batch=options.batch is not None, state=provides_state)
    errors += signature.errors
    if errors:
        raise ConfigError([f"handler {name}: {error}" for error in dict.fromkeys(errors)])
    raw = taken if isinstance(taken, RawType) else None
    return Handler(name, service, function, subscribed, options, signature.parameters, signature.is_async, raw)


def _find_key_errors(taken: tuple[type[Event], ...] | RawType, idempotency: Idempotency | None) -> list[str]:
    if idempotency is None:
        return []
    if isinstance(taken, RawType):
        models = [(taken.model.__qualname__, taken.field_names)]
    else:
        models = [(event.__qualname__, tuple(event.model_fields)) for event in taken]
    return [
        f"its idempotency key {field!r} is not a field of {name} ({', '.join(fields) or 'it has none'})"
        for name, fields in models
        for field in fields_of(idempotency.key)
        if field not in fields
    ]


def _find_topic_errors(events: Iterable[type[Event]], queue: Queue) -> list[str]:
    if not queue.fifo:
        return []
    topics = dict.fromkeys(contract_of(event).topic for event in events)
    return [
        f"queue {queue.name!r} is FIFO and topic {topic.name!r} is not, and SNS does not connect them: make the topic "
        "FIFO, or handle its events on a standard queue"
        for topic in topics
        if not topic.fifo
    ]


def _contains(base: type[Event], event: type[Event]) -> bool:
    """Return whether a handler of *base* also handles *event*, or the events that are declared from it."""
    return base is event or (base.__contract__ is None and issubclass(event, base))
