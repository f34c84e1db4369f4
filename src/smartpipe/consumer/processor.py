"""From one message to one outcome: decode, call the handlers through the middleware, decide."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tenacity import wait_random_exponential

from smartpipe.consumer.batches import BatchCollector
from smartpipe.consumer.breaker import Circuit, CircuitBreaker
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE, remove_reason
from smartpipe.consumer.decide import ACK, Defer, Outcome, Release, WorkerLost, decide, retry_while_open
from smartpipe.consumer.guard import HANDLED, CallResult, IdempotencyGuard
from smartpipe.consumer.handler_limits import HandlerLimit, TokenBucket
from smartpipe.consumer.handlers import make_reader
from smartpipe.consumer.history import remember
from smartpipe.consumer.invoke import HandlerTimeout, Invocation, NotHandledYet
from smartpipe.consumer.isolation import NEVER, Isolation, claim_thresholds_of, thresholds_of
from smartpipe.consumer.leases import OVERDUE, RECEIVED
from smartpipe.delivery import Delivery
from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.traceparent import is_unsampled, read_trace_header, read_traceparent
from smartpipe.errors import ConfigError, MessageError, Reject, Retry, TransportError
from smartpipe.failures import FailureHooks
from smartpipe.middleware import Next, compose
from smartpipe.retry import backoff_seconds
from smartpipe.telemetry.histograms import FOLD_AT
from smartpipe.telemetry.queue_histograms import QueueHistograms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.invoke import OnOverdue
    from smartpipe.consumer.leases import Lease
    from smartpipe.consumer.slots import Gate
    from smartpipe.consumer.threads import Threads
    from smartpipe.counters import Counters
    from smartpipe.envelope.encode import Envelope
    from smartpipe.events import Event
    from smartpipe.idempotency.claims import Claims
    from smartpipe.message import Message
    from smartpipe.payload_offload import PayloadOffload
    from smartpipe.publisher.publisher import Publisher
    from smartpipe.service import Service
    from smartpipe.telemetry.histograms import Histogram
    from smartpipe.telemetry.spans import OpenSpan, Tracing


STORE = "the idempotency store"
S3_WAITS = wait_random_exponential(multiplier=1, min=1, max=300)
"""The waits are long: SQS counts these deliveries, too, and dead-letters a message after a number of them."""
DEFERRAL_WAITS = S3_WAITS
"""Likewise, for messages that this process had no resources for."""
STORE_BREAKER = CircuitBreaker(failures=1, reset_seconds=1, max_reset_seconds=30)


class Processed(NamedTuple):
    """The outcome of a message, and the handler that decided it.

    Args:
        attempt: The attempt number of the delivery; 0 if it is not known.
    """

    outcome: Outcome
    envelope: Envelope | None = None
    handler: Handler | None = None
    attempt: int = 0


SKIPPED = Processed(Release(0, "skipped"))


class Resources(NamedTuple):
    """The resources of a process that its handlers share.

    Args:
        state: The value that the service's lifespan yielded.
        claims: Claims events for idempotent handlers.
        isolation: Isolates messages of all queues; None: each queue has an isolation of its own.
        metrics: Record times and attempts, as ``Counters.histograms`` of each queue.
        tracing: Makes spans for handler calls; None: there are none.
    """

    publisher: Publisher
    threads: Threads
    payloads: PayloadOffload
    state: Any = None
    claims: Claims | None = None
    isolation: Isolation | None = None
    metrics: bool = True
    tracing: Tracing | None = None


class _Route(NamedTuple):
    """The way of a delivery to one handler: through the middleware, within its limit, and under its circuit."""

    handler: Handler
    call: Next[Delivery, None]
    limit: HandlerLimit | None
    circuit: Circuit | None
    guard: IdempotencyGuard | None
    on_timeout: OnOverdue
    histograms: Mapping[str, Histogram] | None


class Processor:
    """Runs the handlers of one queue. Its consumer owns the leases and slots of the messages.

    ``thresholds`` are the receive counts from which a message is handled alone, or dead-lettered without being handled.
    ``failure_hooks`` are the ``on_failure`` functions of the service, None if it has none.
    ``longest_seconds`` is the sum of the timeouts of all handlers, so the handlers of a message run for no longer.
    ``gates`` hold receive calls back for the limits of handlers, and while the process is short of a resource.
    ``on_overdue`` is called with the task of a handler that does not end after its timeout, and with its delivery. It
    must settle the message with the result of ``decide_overdue``, and continue with other messages.

    The processor also counts how often each message was deferred. SQS counts these deliveries, but they are not
    attempts. The idempotency store counts those among them whose handler ran and had no resources. Only deliveries of
    this process are known, for the latest 10,000 messages.
    """

    def __init__(self, service: Service, queue: str, resources: Resources, counters: Counters) -> None:
        self.on_overdue: OnOverdue = _ignore
        self._deferred: dict[str, int] = {}
        self._exhausted: dict[str, int] = {}
        self._stopped = False
        self._service = service
        self._queue = queue
        self._resources = resources
        self._call = self._call_handler if resources.tracing is None else self._call_traced_if_sampled
        self._counters = counters
        self._invocation = Invocation(resources.threads, counters)
        self._collectors: list[BatchCollector] = []
        self.gates: list[Gate] = [resources.threads.capacity.gate()]
        self.circuits: list[Circuit] = []
        self._routes: dict[type[Event] | str, list[_Route]] = {}
        handlers = service.handlers_on(queue)
        if resources.metrics:
            counters.histograms = QueueHistograms(type_ for handler in handlers for type_ in handler.event_types)
        for handler in handlers:
            route = self._create_route(handler)  # one for all of its events, which share its limits
            for key in handler.route_keys:
                self._routes.setdefault(key, []).append(route)
        hooks = service.failure_hooks
        self.failure_hooks = FailureHooks(hooks, resources.threads) if hooks else None
        self._reader = make_reader(handlers, resources.payloads)
        timeouts = (handler.options.timeout_seconds for handler in handlers)
        self.longest_seconds = sum(math.inf if seconds is None else seconds for seconds in timeouts)
        bindings = [binding for binding in service.bindings if binding.queue.name == queue]
        self.thresholds = thresholds_of(bindings[0], handlers) if bindings else NEVER
        self._store_circuit = self._open_circuit(STORE, STORE_BREAKER) if self._needs_store else None

    async def process(self, message: Message, lease: Lease) -> Processed:
        """Return the outcome of *message*. Raise nothing but the CancelledError of its own task."""
        deliveries = message.receive_count - lease.skipped
        attempt = _attempt_number(deliveries, self._deferred, message)
        message = _drop_reason(message)
        # Before decoding, which may be the step that kills the process.
        if message.receive_count - lease.returned >= self.thresholds.lost:
            lost = WorkerLost(
                f"delivered {message.receive_count} times, and no worker reported a result: it probably killed them, "
                "for instance by running out of memory, or they returned it to the queue. SQS would move it to the "
                "dead-letter queue at its next delivery"
            )
            return Processed(decide(lost, attempt, self._service.retry), attempt=attempt)
        try:
            envelope, unwrapped = await self._reader.unwrap_and_read(message)
        except TransportError as error:  # S3 is unreachable, which is not a failure of the handler
            self._count(self._deferred, message)
            return Processed(Defer(math.ceil(backoff_seconds(S3_WAITS, deliveries, error)), error))
        except Exception as error:
            deferred = self._invocation.defer_if_exhausted(error)  # a validator may run out of memory, too
            if deferred is not None:
                return Processed(self._defer(message, deferred))
            if not isinstance(error, MessageError):
                raise
            service = self._service
            return Processed(decide(error, attempt, service.retry, service.unknown_events), attempt=attempt)
        message = _drop_reason(unwrapped)  # its attributes may come from an SNS notification
        if envelope.traceparent is None:  # of another producer
            envelope = envelope._replace(traceparent=_find_trace(message))
        # In the order of registration. The first failure ends the delivery, and a retry calls all handlers again.
        for route in self._routes.get(type(envelope.data)) or self._routes[envelope.type]:
            result = await self._call(route, envelope, message, lease, attempt)
            if result is None:
                return SKIPPED
            if lease.state >= OVERDUE:  # another task has settled the message
                return Processed(ACK, envelope, route.handler)
            failure, attempted = result
            if isinstance(failure, NotHandledYet):
                return Processed(self._defer(message, failure), envelope, route.handler)
            if failure is not None:
                claimed = attempt if attempted is None else _attempt_number(attempted, self._exhausted, message)
                outcome = decide(failure, claimed, route.handler.retry)
                return Processed(retry_while_open(route.circuit, outcome), envelope, route.handler, claimed)
        if self._deferred:
            self._deferred.pop(message.message_id, None)
            self._exhausted.pop(message.message_id, None)
        return Processed(ACK, envelope, route.handler, attempt)

    def decide_overdue(self, delivery: Delivery, lease: Lease) -> Processed:
        """Return the outcome of a message whose handler does not end. The handler's own end will change nothing."""
        lease.mark_overdue()  # first: from now on, the old task and its handler may not settle the message
        envelope, message, claim = delivery.envelope, delivery.message, delivery.claim
        routes = self._routes.get(type(envelope.data)) or self._routes[envelope.type]
        route = next(one for one in routes if one.handler.name == delivery.handler)
        if route.limit is not None:
            route.limit.release(lease)  # the old task releases it again at its end, which is harmless
        count, not_attempts = message.receive_count - lease.skipped, self._deferred
        if claim is not None:
            claim.abandon()
            count, not_attempts = claim.attempt, self._exhausted
        error = HandlerTimeout("it ran into its timeout, and does not end although it was cancelled")
        if route.histograms is not None:
            _record_call(route.histograms, error, route.handler.options.timeout_seconds or 0.0)
        _record_in_circuit(route.circuit, route.handler, error)
        attempt = _attempt_number(count, not_attempts, message)
        outcome = decide(error, attempt, route.handler.retry)
        return Processed(retry_while_open(route.circuit, outcome), envelope, route.handler, attempt)

    def _report_overdue(self, task: asyncio.Task[Any], delivery: Delivery) -> None:
        self.on_overdue(task, delivery)

    def _defer(self, message: Message, deferred: NotHandledYet) -> Defer:
        seconds = deferred.seconds
        self._count(self._deferred, message)
        if deferred.exhausted:
            seconds = max(seconds, backoff_seconds(DEFERRAL_WAITS, message.receive_count, deferred))
            self._count(self._exhausted, message)
        return Defer(math.ceil(seconds), deferred)

    @staticmethod
    def _count(deliveries: dict[str, int], message: Message) -> None:
        remember(deliveries, message.message_id, deliveries.get(message.message_id, 0) + 1)

    @property
    def _needs_store(self) -> bool:
        return any(route.guard for routes in self._routes.values() for route in routes)

    @property
    def has_batch_handlers(self) -> bool:
        """Whether the queue has handlers that take batches."""
        return bool(self._collectors)

    @property
    def pending(self) -> int:
        """The number of messages that wait for their batch to fill."""
        return sum(collector.pending for collector in self._collectors)

    def list_pending(self) -> set[str]:
        """Return the ids of these messages."""
        return {id_ for collector in self._collectors for id_ in collector.list_pending()}

    def flush(self) -> None:
        """Start the pending batches, although they are not full."""
        for collector in self._collectors:
            collector.flush()

    def stop(self) -> None:
        """Start batches without waiting for more items, now and later, and begin no call that waits for a limit."""
        self._stopped = True
        for collector in self._collectors:
            collector.close()
        for limit in (route.limit for routes in self._routes.values() for route in routes):
            if limit is not None:
                limit.close()

    def close(self) -> None:
        """Cancel the timers of handlers and circuits."""
        self._invocation.close()
        for circuit in self.circuits:
            circuit.close()

    def _create_route(self, handler: Handler) -> _Route:
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
                on_outcome=partial(_record_in_circuit, circuit, handler),
                tracing=self._resources.tracing,
            )
            self._collectors.append(innermost)
        else:
            innermost = _make_call(self._invocation, handler)
            handler_limit = HandlerLimit(options.concurrency) if options.concurrency else None
        on_timeout = self._invocation.make_canceller(handler, self._report_overdue)
        middleware = compose(self._service.middleware, innermost)
        histograms = self._counters.histograms
        calls = None if histograms is None else histograms.add_handler(handler.name)
        return _Route(handler, middleware, handler_limit, circuit, self._create_guard(handler), on_timeout, calls)

    def _open_circuit(self, name: str, breaker: CircuitBreaker) -> Circuit:
        circuit = Circuit(name, breaker, call_later=asyncio.get_running_loop().call_later)
        self.circuits.append(circuit)
        self.gates.append(circuit)
        return circuit

    def _create_guard(self, handler: Handler) -> IdempotencyGuard | None:
        options, claims = handler.options.idempotency, self._resources.claims
        if options is None:
            return None
        if claims is None:
            raise ConfigError(f"handler {handler.name} is idempotent, but this process has no idempotency store")
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

    async def _call_handler(
        self,
        route: _Route,
        envelope: Envelope,
        message: Message,
        lease: Lease,
        attempt: int,
        opened: OpenSpan | None = None,
    ) -> CallResult | None:
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
        delivery.attempt = attempt
        current_envelope.set(envelope)
        options = handler.options
        # After another handler has run, the message must not be skipped: its delivery counts as an attempt.
        stop_when_closed = lease.state is RECEIVED
        if self._stopped and not stop_when_closed:
            _raise_if_cancelled()
        if route.limit is not None and not await route.limit.acquire(lease, stop_when_closed=stop_when_closed):
            return None
        started = time.perf_counter()
        try:
            lease.begin(handler.name)  # after the wait: until now, a drain could return the message as skipped
            # A batch handler's timeout is that of its batch, which its items wait for.
            seconds = options.timeout_seconds
            limit = lease.seconds_left if seconds is None or options.batch is not None else seconds
            if route.guard is None:
                failure = await self._invocation.run(route.call, delivery, limit, route.on_timeout)
                result = HANDLED if failure is None else CallResult(failure)
            else:
                # Inside the limit, so that no claim is held while its call waits.
                call = partial(self._invocation.run, route.call, delivery, limit, route.on_timeout)
                not_counted = self._exhausted.get(message.message_id, 0)
                result = await route.guard.run(delivery, lease, call, not_counted=not_counted)
                self._record_store_result(result.failure)
        finally:
            if route.limit is not None:
                route.limit.release(lease)
        if route.histograms is not None and lease.state < OVERDUE:
            _record_call(route.histograms, result.failure, time.perf_counter() - started, opened)
        # A batch records one call for all of its items. `decide_overdue` has recorded an overdue call. A guard that
        # returns HANDLED itself has skipped a duplicate, which says nothing about the handler.
        if options.batch is None and lease.state < OVERDUE and (route.guard is None or result is not HANDLED):
            _record_in_circuit(route.circuit, handler, result.failure)
        return result

    def _call_traced_if_sampled(
        self, route: _Route, envelope: Envelope, message: Message, lease: Lease, attempt: int
    ) -> Awaitable[CallResult | None]:
        # No coroutine of its own, which would cost an event that is not sampled more than all the rest.
        tracing = self._resources.tracing
        if tracing is None or is_unsampled(envelope.traceparent):
            return self._call_handler(route, envelope, message, lease, attempt)
        return self._call_traced(tracing, route, envelope, message, lease, attempt)

    async def _call_traced(
        self, tracing: Tracing, route: _Route, envelope: Envelope, message: Message, lease: Lease, attempt: int
    ) -> CallResult | None:
        """Call one handler within a span, unless its event is not sampled. A batch has one span for all of its events.

        The duration, and the age of a handled event, become exemplars of their histograms.
        """
        handler = route.handler
        batch = handler.options.batch is not None
        opened = None if batch else tracing.start_process(self._queue, handler.name, envelope, message)
        if opened is None:
            return await self._call_handler(route, envelope, message, lease, attempt)
        failure: BaseException | None = None
        try:
            result = await self._call_handler(route, envelope, message, lease, attempt, opened)
            if result is None or isinstance(result.failure, NotHandledYet):
                tracing.set_attributes(opened, {"smartpipe.outcome": "skipped" if result is None else "deferred"})
            else:
                failure = result.failure
        except BaseException as error:
            failure = error
            raise
        finally:
            tracing.end(opened, failure)
        histograms, trace_id = self._counters.histograms, opened.sampled_trace_id
        handled = result is not None and result.failure is None
        if handled and histograms is not None and trace_id is not None and envelope.time is not None:
            histograms.add_exemplar(envelope.type, envelope.time, trace_id)
        return result

    def _record_store_result(self, failure: BaseException | None) -> None:
        """Hold receive calls back while the store is unavailable: their messages could only be deferred."""
        if self._store_circuit is None:
            return
        if isinstance(failure, NotHandledYet) and failure.store_failed:
            self._store_circuit.record_failure()
        else:
            self._store_circuit.record_success()


def _raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled while its last call ended as a success."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _attempt_number(count: int, not_attempts: Mapping[str, int], message: Message) -> int:
    """Return the attempt number of a delivery: its *count* without the deliveries that are *not_attempts*."""
    return max(1, count - not_attempts.get(message.message_id, 0)) if not_attempts else count


def _drop_reason(message: Message) -> Message:
    """Remove the reason of a dead letter: a producer has set it, or a redrive with another tool has left it."""
    return remove_reason(message) if REASON_ATTRIBUTE in message.attributes else message


def _find_trace(message: Message) -> str | None:
    """Return the trace in the attribute ``traceparent``, as instrumented clients send it, or in the header of X-Ray."""
    attribute = message.attributes.get("traceparent")
    found = None if attribute is None else read_traceparent(attribute.value)
    return found or (read_trace_header(message.trace_header) if message.trace_header else None)


def _record_call(
    histograms: Mapping[str, Histogram], failure: BaseException | None, seconds: float, opened: OpenSpan | None = None
) -> None:
    """Record the duration of a handler call. The lines of ``Histogram.record`` are written out, which saves a call."""
    histogram = histograms["handled" if failure is None else _outcome_of(failure)]
    histogram.waiting.append(seconds)
    if len(histogram.waiting) >= FOLD_AT:
        histogram.fold()
    trace_id = None if opened is None else opened.sampled_trace_id
    if trace_id is not None:
        histogram.add_exemplar(seconds, trace_id)


def _outcome_of(failure: BaseException) -> str:
    """Return the outcome of a failed call, one of CALL_OUTCOMES."""
    if isinstance(failure, HandlerTimeout):
        return "timed_out"
    return "deferred" if isinstance(failure, NotHandledYet) else "failed"


def _ignore(task: asyncio.Task[Any], delivery: Delivery) -> None:
    """Do nothing: the default of ``Processor.on_overdue``."""


def _make_call(invocation: Invocation, handler: Handler) -> Next[Delivery, None]:
    def call(delivery: Delivery) -> Awaitable[None]:
        return invocation.call(handler, delivery.envelope.data, delivery)

    return call


def _record_in_circuit(circuit: Circuit | None, handler: Handler, failure: BaseException | None) -> None:
    if circuit is None:
        return
    if failure is None:
        circuit.record_success()
    elif not isinstance(failure, (Retry, Reject, NotHandledYet, *handler.retry.never_on)):
        circuit.record_failure()
