"""Handlers: functions with a checked signature, and how they are called, paced and retried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smartpipe.batch import Batch
from smartpipe.consumer.breaker import CircuitBreaker
from smartpipe.consumer.signature import Parameter, find_dependency, read_signature
from smartpipe.errors import ConfigError
from smartpipe.events import Event, contract_of
from smartpipe.idempotency.store import HandlerName, Idempotency
from smartpipe.limits import MAX_VISIBILITY_SECONDS
from smartpipe.names import name_of
from smartpipe.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.topics import Queue

MAX_CONCURRENCY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """How a handler is called.

    Args:
        timeout_seconds: After so long it is cancelled, which counts as a failure. None: when the
            lease cannot be extended any more, 12 hours after the delivery.
        batch: It takes lists of events.
        concurrency: It runs at most so often at once; None: as often as there are slots.
        rate_per_second: Its queue is received from no faster than this.
        breaker: What its failures one after the other do to its queue.
        idempotency: Its effect happens once for each event.
    """

    queue: Queue
    retry: RetryPolicy
    timeout_seconds: float | None = None
    batch: Batch | None = None
    concurrency: int | None = None
    rate_per_second: float | None = None
    breaker: CircuitBreaker | None = None
    idempotency: Idempotency | None = None

    def problems(self) -> list[str]:
        """Say what is out of its range or does not fit together."""
        problems = [
            f"{label}={value!r} is no {expected.__name__}: write {label}={expected.__name__}(...)"
            for label, value, expected in (
                ("retry", self.retry, RetryPolicy),
                ("batch", self.batch, Batch),
                ("breaker", self.breaker, CircuitBreaker),
                ("idempotency", self.idempotency, Idempotency),
            )
            if value is not None and not isinstance(value, expected)
        ]
        numbers = {name: getattr(self, name) for name in ("timeout_seconds", "concurrency", "rate_per_second")}
        problems += [
            f"{name}={value!r} is no number"
            for name, value in numbers.items()
            if value is not None and not isinstance(value, (int, float))
        ]
        return problems or self._range_problems()

    def _range_problems(self) -> list[str]:
        problems = []
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds <= MAX_VISIBILITY_SECONDS:
            problems.append(f"timeout_seconds={self.timeout_seconds} is outside of 0 to 43,200")
        if self.concurrency is not None and not 1 <= self.concurrency <= MAX_CONCURRENCY:
            problems.append(f"concurrency={self.concurrency} is outside of 1 to {MAX_CONCURRENCY:,}")
        if self.rate_per_second is not None and not 0 < self.rate_per_second < float("inf"):
            problems.append(f"rate_per_second={self.rate_per_second} must be above 0")
        if self.retry.on_exhausted == "halt" and not self.queue.fifo:
            problems.append(
                f'on_exhausted="halt" stops a message group, and {self.queue.name!r} is a standard queue, which has '
                "none: declare it Queue(..., fifo=True)"
            )
        return problems


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A registered handler.

    Args:
        name: The function's module and qualified name.
        service: The name of the service that it belongs to.
        state: What the lifespan provides for each of its parameters that asks for it, by name.
    """

    name: str
    service: str
    function: Callable[..., Any]
    event: type[Event]
    options: HandlerOptions
    parameters: tuple[Parameter, ...]
    is_async: bool
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def queue(self) -> Queue:
        """The queue it is subscribed on."""
        return self.options.queue

    @property
    def retry(self) -> RetryPolicy:
        """When its failures are tried again."""
        return self.options.retry

    def named(self, prefix: str) -> HandlerName:
        """Return its full name in the environment with this *prefix*."""
        return HandlerName(prefix, self.service, self.queue.name, self.name)

    def bind(self, state: Any) -> list[str]:
        """Find what the lifespan provides for its parameters; return what it does not."""
        faults = []
        for parameter in self.parameters:
            if parameter.wants == "state":
                self.state[parameter.name], fault = find_dependency(state, parameter)
                if fault:
                    faults.append(f"handler {self.name}: {fault}")
        return faults


def slots_for(handlers: Sequence[Handler], concurrency: int) -> int:
    """Return how many messages a queue's consumer holds at once, *concurrency* being the worker's.

    As many as the handlers ask for, if each kind of event has one that does; never fewer than fill a batch.
    """
    asked: dict[type[Event], int] = {}
    for handler in handlers:
        options = handler.options
        size = options.batch.size if options.batch else 1
        if options.concurrency is not None or options.batch is not None:
            asked[handler.event] = max(asked.get(handler.event, 0), size * (options.concurrency or 1))
    if all(handler.options.concurrency is not None for handler in handlers):
        return sum(asked.values())
    return max(concurrency, sum(asked.values()))


def make_handler(
    function: Callable[..., Any],
    event: type[Event],
    options: HandlerOptions,
    *,
    service: str,
    provides_state: bool = False,
) -> Handler:
    """Check *function* and make it a handler of *event* in *service*.

    Raises:
        ConfigError: Naming the handler, and all that is wrong with it.
    """
    name = name_of(function)
    topic = contract_of(event).topic
    problems = options.problems()
    if options.queue.fifo and not topic.fifo:
        problems.append(
            f"queue {options.queue.name!r} is FIFO and topic {topic.name!r} is not, which SNS refuses to connect; make "
            "the topic FIFO, or handle its events on a standard queue"
        )
    if options.idempotency is not None and options.idempotency.key not in (None, *event.model_fields):
        problems.append(
            f"its idempotency key {options.idempotency.key!r} is none of the fields of {event.__qualname__} "
            f"({', '.join(event.model_fields) or 'it has none'})"
        )
    signature = read_signature(function, event, batch=options.batch is not None, state=provides_state)
    problems += signature.faults
    if problems:
        raise ConfigError([f"handler {name}: {problem}" for problem in problems])
    return Handler(name, service, function, event, options, signature.parameters, signature.is_async)
