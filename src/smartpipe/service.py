"""A service: one 12-factor component with its handlers and, by default, one queue."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import EllipsisType, UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack, get_args, overload

from smartpipe.consumer.decide import UnknownEvents
from smartpipe.consumer.handlers import (
    Handler,
    HandlerOptions,
    handlers_by_event,
    make_handler,
    read_subscription,
    slots_for,
)
from smartpipe.envelope.encode import source_errors
from smartpipe.errors import ConfigError
from smartpipe.events import Event, contract_of, list_contracts
from smartpipe.failures import validate_hook
from smartpipe.idempotency.store import Idempotency
from smartpipe.limits import MAX_RECEIVES
from smartpipe.middleware import validate_middleware
from smartpipe.raw_messages import RawType, to_matcher, validate_model
from smartpipe.retry import RetryPolicy
from smartpipe.topics import Queue
from smartpipe.topology.derive import Binding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from smartpipe.batch import Batch
    from smartpipe.consumer.breaker import CircuitBreaker
    from smartpipe.delivery import Delivery
    from smartpipe.events import Contract
    from smartpipe.failures import F, OnFailure
    from smartpipe.middleware import Middleware
    from smartpipe.options import Subscribe, SubscribeBatch, SubscribeOptions
    from smartpipe.raw_messages import Match, Matcher
    from smartpipe.worker.aws_lambda import LambdaHandler

    Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any] | AsyncIterator[Any]]

E = TypeVar("E", bound=Event)
M = TypeVar("M")
C = TypeVar("C", bound="Callable[..., Any]")

DEFAULT_TIMEOUT_SECONDS = 300.0


class Service:
    """Handlers that run together. By default they share one queue.

    Args:
        name: A name such as ``"email-verification"``. It is also the name of the queue, and the CloudEvents ``source``
            of the events that the handlers publish, so it must be a URI reference (RFC 3986).
        queue: Another name for its queue, or its settings; by default ``Queue(name)``.
        retry: The policy for handlers that name no policy.
        timeout_seconds: The timeout for handlers that name no timeout: above 0, up to 43,200, or None for no timeout.
        unknown_events: The action for a valid event that no handler takes: ``"dead-letter"``, ``"ignore"`` (delete and
            count it) or ``"retry"`` (by the service's policy).
        lifespan: An async context manager, or an async generator function, without parameters. Once per process, it
            opens the resources that handlers need, yields them, and closes them when all handlers have ended. Handlers
            find them in ``delivery.state``, or in a parameter that is annotated with their type, or with the type of
            one of their fields, items or attributes.
        middleware: Functions around every call of a handler, the first outermost; see ``smartpipe.middleware``. Each
            delivery passes separately, even to a batch handler. The handler's timeout includes the middleware.
        publishes: The events that it publishes, and the queues that it sends to directly. The worker does not enforce
            it: ``topology`` creates the events' topics, diagrams, documents and IAM policies from it. A component that
            only publishes is a Service without handlers.

    Raises:
        ConfigError: A name or an option is invalid.
    """

    def __init__(
        self,
        name: str,
        *,
        queue: Queue | str | None = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        unknown_events: UnknownEvents = "dead-letter",
        lifespan: Lifespan | None = None,
        middleware: Sequence[Middleware[Delivery, None]] = (),
        publishes: Sequence[type[Event] | Queue] = (),
    ) -> None:
        if unknown_events not in get_args(UnknownEvents):
            choices = ", ".join(get_args(UnknownEvents))
            msg = f"service {name!r}: unknown_events={unknown_events!r} must be one of {choices}"
            raise ConfigError(msg)
        self.name = name
        self.queue = Queue(name) if queue is None else Queue(queue) if isinstance(queue, str) else queue
        if errors := source_errors(f"service {name!r}", name):
            raise ConfigError(errors)
        self.retry = retry or RetryPolicy()
        self.timeout_seconds = timeout_seconds
        self.unknown_events: UnknownEvents = unknown_events
        self.middleware = validate_middleware(middleware, f"service {name!r}")
        self.publishes = _validate_publishes(name, publishes)
        self._lifespan = None if lifespan is None else _read_lifespan(name, lifespan)
        self.failure_hooks: list[OnFailure] = []
        self._handlers: list[Handler] = []
        self._queues: dict[str, Queue] = {self.queue.name: self.queue}

    @overload  # for type checkers, A | B is a UnionType; they do not check the events of the function then
    def subscribe(
        self, event: type[E] | UnionType, *, batch: None = None, **options: Unpack[SubscribeOptions]
    ) -> Subscribe[E]: ...

    @overload
    def subscribe(self, event: type[E], *, batch: Batch, **options: Unpack[SubscribeOptions]) -> SubscribeBatch[E]: ...

    @overload
    def subscribe(
        self, event: type[Any] | UnionType, *, batch: Batch, **options: Unpack[SubscribeOptions]
    ) -> Callable[[C], C]: ...

    def subscribe(
        self, event: type[Any] | UnionType, *, batch: Batch | None = None, **options: Unpack[SubscribeOptions]
    ) -> Any:
        """Register the decorated function as a handler of *event*, of its major version.

        The function is ``async def``, or ``def``, which runs in a thread. It takes the event and, if it asks for them,
        a Delivery and values from the lifespan of the service. If it returns, the event counts as handled. ``Retry``
        and ``Reject`` ask for something else. Any other exception is a failure, for which the retry policy decides.

        Several handlers of one event on one queue are one unit. They run in the order of their registration. The first
        failure fails the delivery, and a retry runs all of them again. Give a handler a queue of its own to let it
        succeed or fail alone.

        Args:
            event: An event class; a union of them, as in ``OrderPlaced | OrderCancelled``; or a base class of events
                that declares no type itself, for all events that extend it and are declared when the worker starts.
                The events share the limits, the breaker and the batches of the handler. Each has claims of its own.
            batch: The function takes a list of events and, if it asks for it, a BatchDelivery. The timeout is that of a
                whole batch. On a FIFO queue a batch has one event of each group.
            options: ``queue``, ``retry``, ``timeout_seconds``, ``concurrency``, ``rate_per_second``, ``breaker`` and
                ``idempotent``; see ``smartpipe.options.SubscribeOptions``.

        Raises:
            ConfigError: The signature does not fit, a value is out of range, or a queue is declared twice with
                different settings. The error names the handler.
        """
        subscribed = read_subscription(event)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            provides_state = self._lifespan is not None
            handler = make_handler(
                function,
                subscribed,
                self._handler_options(batch, **options),
                service=self.name,
                provides_state=provides_state,
            )
            self._refuse_second_class(handler)
            handler = self._make_name_unique(handler)
            self._handlers.append(handler)
            return function

        return register

    @overload
    def subscribe_raw(
        self, model: type[M], *, match: Match | None = None, batch: None = None, **options: Unpack[SubscribeOptions]
    ) -> Subscribe[M]: ...

    @overload
    def subscribe_raw(
        self, model: type[M], *, match: Match | None = None, batch: Batch, **options: Unpack[SubscribeOptions]
    ) -> SubscribeBatch[M]: ...

    def subscribe_raw(
        self,
        model: type[Any],
        *,
        match: Match | None = None,
        batch: Batch | None = None,
        **options: Unpack[SubscribeOptions],
    ) -> Any:
        """Register the decorated function as a handler of messages that are not events of smartpipe.

        Such a message is from another producer: a notification of S3, an event of EventBridge, or JSON of a program
        without CloudEvents. If its body is an event that a handler of the queue subscribes to, that handler takes it.
        Otherwise the raw declarations of the queue are asked in the order of their registration, and the first whose
        matcher selects the message takes it. Handlers with the same model and an equal matcher are one unit, as several
        handlers of one event are. For a message that nobody takes, ``unknown_events`` decides. A message that does not
        fit the model is dead-lettered as ``invalid-data``.

        The queue gets no subscription for it: the other system sends to the queue, or to a topic that you subscribe.

        Args:
            model: A subclass of Pydantic's BaseModel, such as one of ``smartpipe.external``; ``dict`` for any JSON
                object; or ``str`` for the text of any body.
            match: A matcher of ``smartpipe.external``, or a function that takes a RawMessage. It selects messages
                together with the matcher of the model, if the model has one. By default it selects all others.
            batch: As in ``subscribe``.
            options: As in ``subscribe``. An idempotent handler claims by the id that the model knows, otherwise by the
                id of the SQS message, or by the field that its Idempotency names.

        Raises:
            ConfigError: As in ``subscribe``; or the model or the matcher has another type.
        """
        validate_model(model)
        matcher = None if match is None else to_matcher(match)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            handler_options = self._handler_options(batch, **options)
            handler = make_handler(
                function,
                self._find_raw_type(model, matcher, handler_options.queue.name),
                handler_options,
                service=self.name,
                provides_state=self._lifespan is not None,
            )
            self._handlers.append(self._make_name_unique(handler))
            return function

        return register

    def _find_raw_type(self, model: type[Any], match: Matcher | None, queue: str) -> RawType:
        """Return the type with this model and matcher on the queue, or a new one with a name of its own.

        Raises:
            ConfigError: The model returns something else than a matcher.
        """
        known = {handler.raw.name: handler.raw for handler in self.handlers_on(queue) if handler.raw is not None}
        found = next((one for one in known.values() if one.model is model and one.match == match), None)
        if found is not None:
            return found
        count = 1 + sum(one.model.__name__ == model.__name__ for one in known.values())
        raw = RawType(model.__name__ if count == 1 else f"{model.__name__}#{count}", model, match)
        _ = raw.matcher  # raises ConfigError now, and not when a message arrives
        return raw

    def _handler_options(
        self,
        batch: Batch | None,
        *,
        queue: Queue | str | None = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float | EllipsisType | None = ...,
        concurrency: int | None = None,
        rate_per_second: float | None = None,
        breaker: CircuitBreaker | None = None,
        idempotent: bool | Idempotency = False,
    ) -> HandlerOptions:
        return HandlerOptions(
            queue=self._find_queue(queue),
            retry=retry or self.retry,
            timeout_seconds=self.timeout_seconds if isinstance(timeout_seconds, EllipsisType) else timeout_seconds,
            batch=batch,
            concurrency=concurrency,
            rate_per_second=rate_per_second,
            breaker=breaker,
            idempotency=(Idempotency() if idempotent else None) if isinstance(idempotent, bool) else idempotent,
        )

    def on_failure(self, function: F) -> F:
        """Register the decorated function to be called with each DeliveryFailure, such as to report it to Sentry.

        Write ``@service.on_failure`` above ``def report(failure: DeliveryFailure)``. It may be ``async def``, or
        ``def``, which runs in a thread. You may register several, which run concurrently.

        It is called once for each delivery that has failed, after its outcome was carried out: for an exception of a
        handler, ``Retry`` and ``Reject`` included, for a timeout, for a message that could not be decoded, and for an
        internal error. It is called for each failed item of a batch. It is not called for a delivery that was deferred
        or cancelled, nor for a message that SQS itself has moved to the dead-letter queue.

        It cannot change the outcome. Its errors are logged. It holds the slot of its message, and on a FIFO queue the
        messages behind it, for 5 s at most.

        Args:
            function: Takes one argument, the DeliveryFailure. Its result is ignored.

        Raises:
            ConfigError: It cannot be called with a DeliveryFailure.
        """
        self.failure_hooks.append(validate_hook(function, self.name))
        return function

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Run the lifespan, and bind its values to handlers' parameters; yield the state, None without a lifespan.

        Raises:
            ConfigError: A handler's parameter needs a value that the lifespan does not provide.
        """
        if self._lifespan is None:
            yield None
            return
        async with self._lifespan() as state:
            errors = [error for handler in self._handlers for error in handler.bind(state)]
            if errors:
                raise ConfigError(errors)
            yield state

    @contextmanager
    def override(self, state: Any = None, *, lifespan: Lifespan | None = None) -> Iterator[None]:
        """Replace the lifespan inside the block, for tests of a service that a module defines.

        ``with service.override(State(mail=FakeMail())): ...``. Whatever opens the service inside the block, such as a
        MemoryBroker, ``working`` or a new Lambda handler, gets the replacement. One that is open already keeps its own.
        Blocks may be nested. They are for one thread.

        Args:
            state: The value that the lifespan would yield. The lifespan itself does not run.
            lifespan: Another lifespan, instead of a value.

        Raises:
            ConfigError: The service is opened inside the block, and a handler's parameter needs a value that the
                replacement does not provide; or there are two replacements.
        """
        if state is not None and lifespan is not None:
            raise ConfigError(f"service {self.name!r}: override(state, lifespan=...): pass one of them")
        original = self._lifespan
        self._lifespan = partial(nullcontext, state) if lifespan is None else _read_lifespan(self.name, lifespan)
        try:
            yield
        finally:
            self._lifespan = original

    def lambda_handler(self) -> LambdaHandler:
        """Return this service as an AWS Lambda function: ``handler = service.lambda_handler()``.

        Map the service's queues to the function as event sources with ``ReportBatchItemFailures``. Lambda deletes
        messages that were handled or dead-lettered. It delivers the others again: by the retry policy if the function
        may call ``sqs:ChangeMessageVisibility``, otherwise after the queue's visibility timeout. A FIFO group stops at
        its first failure. The lifespan is opened at the first invocation and lasts as long as the process. Up to
        ``SMARTPIPE_CONCURRENCY`` messages of an invocation are handled concurrently. Handlers that are still running a
        second before Lambda's timeout are cancelled, and their messages are returned to the queue. Lambda receives the
        messages, so configure its event source mapping in place of ``rate_per_second`` and a circuit breaker's pauses.

        Raises:
            ConfigError: The service has no handlers, or the upcasters of an event leave a gap.
        """
        from smartpipe.worker.aws_lambda import LambdaHandler  # the only import from a module above this one

        return LambdaHandler(self)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All handlers, in the order of registration."""
        return tuple(self._handlers)

    def handlers_on(self, queue: str) -> tuple[Handler, ...]:
        """Return the handlers of the queue with this logical name."""
        return tuple(handler for handler in self._handlers if handler.queue.name == queue)

    @property
    def idempotent(self) -> bool:
        """Whether a handler needs the idempotency store."""
        return any(handler.options.idempotency for handler in self._handlers)

    def slots(self, concurrency: int) -> int:
        """Return the maximum number of messages that its consumers hold; *concurrency* is the worker's, by queue."""
        return sum(slots_for(self.handlers_on(binding.queue.name), concurrency) for binding in self.bindings)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The queues that have handlers, with the contracts that each queue needs.

        Raises:
            ConfigError: The upcasters of an event leave a gap, or do not fit each other.
        """
        used = dict.fromkeys(handler.queue for handler in self._handlers)
        return tuple(
            Binding(
                queue,
                list_contracts(handlers_by_event(self.handlers_on(queue.name)), queue),
                max(map(_attempts, (self.retry, *(handler.retry for handler in self.handlers_on(queue.name))))),
                any(one.options.breaker or one.options.idempotency for one in self.handlers_on(queue.name)),
                min(_remembered_seconds(self.handlers_on(queue.name)), default=None),
                tuple({id(one.retry): one.retry for one in self.handlers_on(queue.name)}.values()),
                tuple(dict.fromkeys(one.raw.name for one in self.handlers_on(queue.name) if one.raw is not None)),
            )
            for queue in used
        )

    @property
    def published(self) -> tuple[Contract, ...]:
        """The contracts of the events that the service publishes."""
        return tuple(contract_of(one) for one in self.publishes if not isinstance(one, Queue))

    @property
    def sends_to(self) -> tuple[Queue, ...]:
        """The queues that the service sends to directly."""
        return tuple(one for one in self.publishes if isinstance(one, Queue))

    def _find_queue(self, queue: Queue | str | None) -> Queue:
        if queue is not None and not isinstance(queue, (Queue, str)):
            raise ConfigError(f"service {self.name!r}: queue={queue!r} must be the name of a queue or a Queue")
        if queue is None:
            return self.queue
        if isinstance(queue, str):
            return self._queues.get(queue) or self._queues.setdefault(queue, Queue(queue))
        if self._queues.setdefault(queue.name, queue) != queue:
            raise ConfigError(f"service {self.name!r}: queue {queue.name!r} is declared twice with different settings")
        return queue

    def _make_name_unique(self, handler: Handler) -> Handler:
        """Number a handler whose function has the name of another handler of the same event on the same queue.

        Closures, partials and bound methods can have equal names. The ids of the events that a handler publishes depend
        on its name. So do claims, but claims must not depend on the order of registration, so an idempotent handler is
        rejected.
        """
        named = [one for one in self.handlers_on(handler.queue.name) if one.name.partition("#")[0] == handler.name]
        claiming = [one for one in named if one.options.idempotency or handler.options.idempotency]
        namesakes = [one for one in named if one.overlaps(handler)]
        if any(one.claims_like(handler) for one in claiming):
            raise ConfigError(
                f"handler {handler.name}: queue {handler.queue.name!r} already has a handler of this name for "
                f"{handler.taken.partition('#')[0]}, and an idempotent handler claims events by its name. Give each "
                "function a name of its own"
            )
        if not namesakes:
            return handler
        return replace(handler, name=f"{handler.name}#{len(namesakes) + 1}")

    def _refuse_second_class(self, handler: Handler) -> None:
        """Raise ConfigError if another class has an event's type and major version: a queue decodes them into one."""
        mine = {(contract.type, contract.major): event for event, contract in _list_contracts(handler)}
        for other in self.handlers_on(handler.queue.name):
            for event, contract in _list_contracts(other):
                if mine.get((contract.type, contract.major), event) is not event:
                    raise ConfigError(
                        f"handler {handler.name}: queue {handler.queue.name!r} already decodes {contract.type!r} "
                        f"{contract.major}.x as {event.__qualname__}, for handler {other.name}"
                    )


def _list_contracts(handler: Handler) -> Iterable[tuple[type[Event], Contract]]:
    return [(event, contract_of(event)) for event in handler.known_events]


def _read_lifespan(name: str, lifespan: Any) -> Callable[[], AbstractAsyncContextManager[Any]]:
    if not callable(lifespan):
        msg = f"service {name!r}: lifespan={lifespan!r} is not a function: write an async generator with one yield"
        raise ConfigError(msg)
    manager: Any = asynccontextmanager(lifespan) if inspect.isasyncgenfunction(lifespan) else lifespan
    return manager  # type: ignore[no-any-return]


def _validate_publishes(name: str, publishes: Any) -> tuple[type[Event] | Queue, ...]:
    if not isinstance(publishes, (list, tuple, set, frozenset)):
        raise ConfigError(f"service {name!r}: publishes={publishes!r} is not a list: write publishes=[UserSignedUp]")
    for one in publishes:
        if not (isinstance(one, Queue) or (isinstance(one, type) and issubclass(one, Event) and one.__contract__)):
            raise ConfigError(
                f"service {name!r}: publishes={one!r} must be an event class that declares a type, or a Queue"
            )
    return tuple(publishes)


def _remembered_seconds(handlers: Iterable[Handler]) -> Iterator[float]:
    """Yield how long each idempotent handler remembers an event. One with a key may well forget it on purpose."""
    for handler in handlers:
        idempotency = handler.options.idempotency
        if idempotency is not None and idempotency.key is None:
            yield idempotency.ttl_seconds


def _attempts(policy: RetryPolicy) -> int:
    """Return how many deliveries the policy needs: SQS's maximum if it halts, because a halted group keeps retrying."""
    return MAX_RECEIVES if policy.on_exhausted == "halt" else policy.attempts
