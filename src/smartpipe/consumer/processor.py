"""From one message to one outcome: decode, call the handlers through the middleware, decide."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tenacity import wait_random_exponential

from smartpipe.consumer.batches import BatchCollector
from smartpipe.consumer.breaker import Circuit, CircuitBreaker
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE, without_reason
from smartpipe.consumer.decide import ACK, DeadLetter, Defer, Halt, Outcome, Release, RetryAfter, WorkerLost, decide
from smartpipe.consumer.guard import HANDLED, GuardedResult, IdempotencyGuard
from smartpipe.consumer.handler_limits import HandlerLimit, TokenBucket
from smartpipe.consumer.history import remember
from smartpipe.consumer.invoke import Deferred, HandlerTimeout, Invocation
from smartpipe.consumer.isolation import NEVER, Isolation, claim_thresholds_of, thresholds_of
from smartpipe.consumer.leases import OVERDUE, RECEIVED
from smartpipe.delivery import Delivery
from smartpipe.envelope.decode import MessageReader
from smartpipe.envelope.encode import current_envelope
from smartpipe.errors import ConfigError, MessageError, Reject, Retry, TransportError
from smartpipe.middleware import Next, compose
from smartpipe.retry import backoff_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.invoke import OnOverdue
    from smartpipe.consumer.leases import Lease
    from smartpipe.consumer.slots import Gate
    from smartpipe.consumer.threads import Threads
    from smartpipe.counters import Counters
    from smartpipe.delivery import Publishes
    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.idempotency.claims import Claims
    from smartpipe.message import Message
    from smartpipe.payload_offload import PayloadOffload
    from smartpipe.service import Service


STORE = "the idempotency store"
S3_WAITS = wait_random_exponential(multiplier=1, min=1, max=300)
"""Long ones: SQS counts these deliveries too, and dead-letters a message after some, though nothing failed."""
DEFERRAL_WAITS = S3_WAITS
"""Likewise, of messages that this process had no resources for."""
STORE_BREAKER = CircuitBreaker(failures=1, reset_seconds=1, max_reset_seconds=30)


class Processed(NamedTuple):
    """The outcome of a message, and the handler that decided it."""

    outcome: Outcome
    envelope: Envelope | None = None
    handler: Handler | None = None


SKIPPED = Processed(Release(0, "skipped"))


class Resources(NamedTuple):
    """What a process has one of, for all handlers.

    Args:
        state: What the service's lifespan yielded.
        claims: What idempotent handlers claim with.
        isolation: Of the messages of all queues; None: each queue has one of its own.
    """

    publisher: Publishes
    threads: Threads
    payloads: PayloadOffload
    state: Any = None
    claims: Claims | None = None
    isolation: Isolation | None = None


class _Route(NamedTuple):
    """How a delivery gets to one handler: through the middleware, when there is room, and under its circuit."""

    handler: Handler
    call: Next[Delivery, None]
    limit: HandlerLimit | None
    circuit: Circuit | None
    guard: IdempotencyGuard | None
    on_timeout: OnOverdue


class Processor:
    """Runs the handlers of one queue; its messages' leases and slots are the consumer's.

    ``thresholds`` are the receive counts from which a message is handled alone, and dead-lettered unseen. ``gates``
    hold back receive calls, as the handlers ask, or when the process can take on nothing more.
    ``on_overdue`` is called with the task of a handler that does not end after its timeout, and its delivery. It must
    settle the message with the result of ``timed_out``, and go on with other messages.

    The processor also remembers how often messages were deferred because a resource had run out. SQS and the
    idempotency store count these deliveries, too. Only those of this process are known, of the latest 10,000 messages.
    """

    def __init__(self, service: Service, queue: str, resources: Resources, counters: Counters) -> None:
        self.on_overdue: OnOverdue = _ignore
        self._spared: dict[str, int] = {}
        self._service = service
        self._queue = queue
        self._resources = resources
        self._counters = counters
        self._invocation = Invocation(resources.threads, counters)
        self._gatherers: list[BatchCollector] = []
        self.gates: list[Gate] = [resources.threads.capacity.gate()]
        self.circuits: list[Circuit] = []
        self._routes: dict[type[Event], list[_Route]] = {}
        for handler in service.handlers_on(queue):
            self._routes.setdefault(handler.event, []).append(self._route(handler))
        self._reader = MessageReader(self._routes, resources.payloads)
        bindings = [binding for binding in service.bindings if binding.queue.name == queue]
        self.thresholds = thresholds_of(bindings[0], service.handlers_on(queue)) if bindings else NEVER
        self._store_circuit = self._open_circuit(STORE, STORE_BREAKER) if self._guarded else None

    async def process(self, message: Message, lease: Lease) -> Processed:
        """Return the outcome of *message*. Raises nothing but the CancelledError of its own task."""
        attempt = self._attempt(message.receive_count - lease.skipped, message)
        if REASON_ATTRIBUTE in message.attributes:  # set by a producer, or left by a redrive of another tool
            message = without_reason(message)
        if message.receive_count - lease.returned >= self.thresholds.lost:
            lost = WorkerLost(
                f"delivered {message.receive_count} times, and no worker reported a result: it probably killed them, "
                "by running out of memory for instance, or they gave it back. SQS would move it at its next delivery"
            )
            return Processed(decide(lost, attempt, self._service.retry))
        try:
            envelope = await self._reader.read(message)
        except TransportError as error:  # an outage of S3 is nobody's failure
            return Processed(Defer(math.ceil(backoff_seconds(S3_WAITS, attempt, error)), error))
        except Exception as error:
            deferred = self._invocation.deferred(error)  # of a validator that found no memory, too
            if deferred is not None:
                return Processed(self._defer(message, deferred))
            if not isinstance(error, MessageError):
                raise
            service = self._service
            return Processed(decide(error, attempt, service.retry, service.unknown_events))
        for route in self._routes[type(envelope.data)]:
            guarded = await self._call(route, envelope, message, lease)
            if guarded is None:
                return SKIPPED
            if lease.state >= OVERDUE:  # another task has settled the message
                return Processed(ACK, envelope, route.handler)
            failure, attempted = guarded
            if isinstance(failure, Deferred):
                return Processed(self._defer(message, failure), envelope, route.handler)
            if failure is not None:
                claimed = attempt if attempted is None else self._attempt(attempted, message)
                outcome = decide(failure, claimed, route.handler.retry)
                return Processed(_unless_open(route.circuit, outcome), envelope, route.handler)
        if self._spared:
            self._spared.pop(message.message_id, None)
        return Processed(ACK, envelope, route.handler)

    def timed_out(self, delivery: Delivery, lease: Lease) -> Processed:
        """Return the outcome of a message whose handler does not end; the handler's own end will change nothing."""
        lease.overrun()
        envelope, message, claim = delivery.envelope, delivery.message, delivery.holding
        route = next(one for one in self._routes[type(envelope.data)] if one.handler.name == delivery.handler)
        if route.limit is not None:
            route.limit.release(lease)
        count = message.receive_count - lease.skipped
        if claim is not None:
            claim.abandon()
            count = claim.attempt
        error = HandlerTimeout("it ran into its timeout, and does not end although it was cancelled")
        _tell(route.circuit, route.handler, error)
        outcome = decide(error, self._attempt(count, message), route.handler.retry)
        return Processed(_unless_open(route.circuit, outcome), envelope, route.handler)

    def _overdue(self, task: asyncio.Task[Any], delivery: Delivery) -> None:
        self.on_overdue(task, delivery)

    def _attempt(self, count: int, message: Message) -> int:
        """Return which attempt a delivery is, by its count without those that were deferred for want of a resource."""
        return max(1, count - self._spared.get(message.message_id, 0)) if self._spared else count

    def _defer(self, message: Message, deferred: Deferred) -> Defer:
        seconds = deferred.seconds
        if deferred.exhausted:
            seconds = max(seconds, backoff_seconds(DEFERRAL_WAITS, message.receive_count, deferred))
            remember(self._spared, message.message_id, self._spared.get(message.message_id, 0) + 1)
        return Defer(math.ceil(seconds), deferred)

    @property
    def _guarded(self) -> bool:
        return any(route.guard for routes in self._routes.values() for route in routes)

    @property
    def gathers(self) -> bool:
        """Whether it has handlers of batches."""
        return bool(self._gatherers)

    @property
    def gathered(self) -> int:
        """How many messages wait for their batch to fill."""
        return sum(gatherer.gathered for gatherer in self._gatherers)

    def flush(self) -> None:
        """Let batches go out though they are not full."""
        for gatherer in self._gatherers:
            gatherer.flush()

    def stop(self) -> None:
        """Let batches go out, now and from now on, and begin nothing that waits for room: the worker is draining."""
        for gatherer in self._gatherers:
            gatherer.close()
        for limit in (route.limit for routes in self._routes.values() for route in routes):
            if limit is not None:
                limit.close()

    def close(self) -> None:
        """Forget what was to happen later."""
        self._invocation.close()
        for circuit in self.circuits:
            circuit.close()

    def _route(self, handler: Handler) -> _Route:
        options = handler.options
        circuit = None if options.breaker is None else self._open_circuit(handler.name, options.breaker)
        if options.rate_per_second is not None:
            self.gates.append(TokenBucket(options.rate_per_second, asyncio.get_running_loop().time))
        innermost: Next[Delivery, None]
        handler_limit = None
        if options.batch is not None:
            innermost = BatchCollector(
                handler,
                options.batch,
                self._invocation,
                self._resources.publisher,
                on_outcome=partial(_tell, circuit, handler),
            )
            self._gatherers.append(innermost)
        else:
            innermost = _one_by_one(self._invocation, handler)
            handler_limit = HandlerLimit(options.concurrency) if options.concurrency else None
        on_timeout = self._invocation.cancelling(handler, self._overdue)
        middleware = compose(self._service.middleware, innermost)
        return _Route(handler, middleware, handler_limit, circuit, self._guard(handler), on_timeout)

    def _open_circuit(self, name: str, breaker: CircuitBreaker) -> Circuit:
        circuit = Circuit(name, breaker, call_later=asyncio.get_running_loop().call_later)
        self.circuits.append(circuit)
        self.gates.append(circuit)
        return circuit

    def _guard(self, handler: Handler) -> IdempotencyGuard | None:
        options, claims = handler.options.idempotency, self._resources.claims
        if options is None:
            return None
        if claims is None:
            raise ConfigError(f"handler {handler.name} is idempotent, and there is nothing to claim with")
        seconds = handler.queue.visibility_timeout_seconds
        thresholds = claim_thresholds_of(handler)
        isolation = self._resources.isolation
        return IdempotencyGuard(
            handler,
            options,
            claims,
            lease_seconds=seconds,
            thresholds=thresholds,
            isolation=isolation,
            counters=self._counters,
        )

    async def _call(self, route: _Route, envelope: Envelope, message: Message, lease: Lease) -> GuardedResult | None:
        """Call one handler, unless it has handled the event before; return the result, or None if it did not begin."""
        handler = route.handler
        delivery = Delivery(
            envelope,
            message,
            handler=handler.name,
            service=self._service.name,
            queue=self._queue,
            lease=lease,
            publisher=self._resources.publisher,
            state=self._resources.state,
        )
        current_envelope.set(envelope)
        options = handler.options
        may_leave = lease.state is RECEIVED  # the worker stops, and no handler has seen the message
        if route.limit is not None and not await route.limit.acquire(lease, may_leave=may_leave):
            return None
        try:
            lease.begin(handler.name)
            # A batch has a time of its own, and its items wait for it.
            seconds = options.timeout_seconds
            limit = lease.seconds_left if seconds is None or options.batch is not None else seconds
            if route.guard is None:
                failure = await self._invocation.outcome_of(route.call, delivery, limit, route.on_timeout)
                guarded = HANDLED if failure is None else GuardedResult(failure)
            else:
                call = partial(self._invocation.outcome_of, route.call, delivery, limit, route.on_timeout)
                spared = self._spared.get(message.message_id, 0)
                guarded = await route.guard.run(delivery, lease, call, spared=spared)
                self._tell_of_store(guarded.failure)
        finally:
            if route.limit is not None:
                route.limit.release(lease)
        if options.batch is None and lease.state < OVERDUE:  # a batch is one call, whatever the number of its items
            _tell(route.circuit, handler, guarded.failure)
        return guarded

    def _tell_of_store(self, failure: BaseException | None) -> None:
        """Hold polls back while the store cannot be asked: their messages could only be deferred."""
        if self._store_circuit is None:
            return
        if isinstance(failure, Deferred) and failure.store_failed:
            self._store_circuit.failed()
        else:
            self._store_circuit.succeeded()


def _ignore(task: asyncio.Task[Any], delivery: Delivery) -> None:
    """Do nothing about a handler that does not end."""


def _one_by_one(invocation: Invocation, handler: Handler) -> Next[Delivery, None]:
    def call(delivery: Delivery) -> Awaitable[None]:
        return invocation.call(handler, delivery.envelope.data, delivery)

    return call


def _tell(circuit: Circuit | None, handler: Handler, failure: BaseException | None) -> None:
    if circuit is None:
        return
    if failure is None:
        circuit.succeeded()
    elif not isinstance(failure, (Retry, Reject, Deferred, *handler.retry.never_on)):
        circuit.failed()


def _unless_open(circuit: Circuit | None, outcome: Outcome) -> Outcome:
    """Give back what an outage would push into the dead-letter queue."""
    if circuit is None or circuit.closed or not isinstance(outcome, (DeadLetter, Halt)):
        return outcome
    return RetryAfter(round(circuit.reset_seconds), outcome.error) if outcome.kind == "retries-exhausted" else outcome
