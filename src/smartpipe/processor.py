"""From one message to one outcome: decode, call the handlers through the middleware, decide."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.breaker import Circuit
from smartpipe.decoder import Decoder
from smartpipe.delivery import Delivery
from smartpipe.errors import DecodeError, Reject, Retry, UnknownEventType
from smartpipe.gatherer import Gatherer
from smartpipe.invocation import Invocation, outcome_of
from smartpipe.middleware import Next, compose
from smartpipe.pace import Gate, TokenBucket
from smartpipe.room import Room
from smartpipe.settlement import Ack, DeadLetter, Halt, Outcome, RetryAfter, decide
from smartpipe.telemetry import current_cause

if TYPE_CHECKING:
    from smartpipe.counts import Counts
    from smartpipe.delivery import Publishes
    from smartpipe.envelope import Envelope
    from smartpipe.events import Event
    from smartpipe.handlers import Handler
    from smartpipe.message import Message
    from smartpipe.service import Service
    from smartpipe.threads import Threads
    from smartpipe.visibility import Lease


class NotBegun(Exception):
    """A message that waited for its handler's room when the worker was told to stop: no handler has seen it."""


class Processed(NamedTuple):
    """What became of a message, and whose doing it was."""

    outcome: Outcome
    envelope: Envelope | None = None
    handler: Handler | None = None


class Resources(NamedTuple):
    """What a process has one of, for all handlers.

    Args:
        state: What the service's lifespan yielded.
    """

    publisher: Publishes
    threads: Threads
    state: Any = None


class _Route(NamedTuple):
    """How a delivery gets to one handler: through the middleware, when there is room, and under its circuit."""

    handler: Handler
    call: Next[Delivery, None]
    room: Room | None
    circuit: Circuit | None


class Processor:
    """Runs the handlers of one queue; its messages' leases and slots are the consumer's.

    ``gates`` hold back the polling of its queue, as its handlers ask.
    """

    def __init__(self, service: Service, queue: str, resources: Resources, counts: Counts) -> None:
        self._service = service
        self._queue = queue
        self._resources = resources
        self._invocation = Invocation(resources.threads, counts)
        self._gatherers: list[Gatherer] = []
        self.gates: list[Gate] = []
        self.circuits: list[Circuit] = []
        self._routes: dict[type[Event], list[_Route]] = {}
        for handler in service.handlers_on(queue):
            self._routes.setdefault(handler.event, []).append(self._route(handler))
        self._decoder = Decoder(self._routes)

    async def process(self, message: Message, lease: Lease) -> Processed:
        """Return what to do with *message*. Raises nothing but NotBegun, and the CancelledError of its own task."""
        attempt = message.receive_count - lease.unbegun
        try:
            envelope = self._decoder.decode(message.body)
        except (DecodeError, UnknownEventType) as error:
            service = self._service
            return Processed(decide(error, attempt, service.retry, service.unknown_events))
        for route in self._routes[type(envelope.data)]:
            failure = await self._call(route, envelope, message, lease)
            if failure is not None:
                outcome = decide(failure, attempt, route.handler.retry)
                return Processed(_unless_open(route.circuit, outcome), envelope, route.handler)
        return Processed(Ack(), envelope, route.handler)

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
        for room in (route.room for routes in self._routes.values() for route in routes):
            if room is not None:
                room.close()

    def close(self) -> None:
        """Forget what was to happen later."""
        for circuit in self.circuits:
            circuit.close()

    def _route(self, handler: Handler) -> _Route:
        options = handler.options
        loop = asyncio.get_running_loop()
        circuit = None
        if options.breaker is not None:
            circuit = Circuit(handler.name, options.breaker, call_later=loop.call_later)
            self.circuits.append(circuit)
            self.gates.append(circuit)
        if options.rate_per_second is not None:
            self.gates.append(TokenBucket(options.rate_per_second, loop.time))
        innermost: Next[Delivery, None]
        room = None
        if options.batch is not None:
            innermost = Gatherer(
                handler,
                options.batch,
                self._invocation,
                self._resources.publisher,
                on_outcome=partial(_tell, circuit, handler),
            )
            self._gatherers.append(innermost)
        else:
            innermost = partial(_call_one, self._invocation, handler)
            room = Room(options.concurrency) if options.concurrency else None
        return _Route(handler, compose(self._service.middleware, innermost), room, circuit)

    async def _call(self, route: _Route, envelope: Envelope, message: Message, lease: Lease) -> BaseException | None:
        """Run one handler; return what it raised, or None."""
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
        current_cause.set(envelope.cause)
        seconds = handler.options.timeout_seconds
        if route.room is not None and not await route.room.enter(leaves=lease.handler is None):
            raise NotBegun
        try:
            lease.handler = handler.name
            # A batch has a time of its own, and its items wait for it.
            limit = lease.seconds_left if seconds is None or handler.options.batch else seconds
            failure = await outcome_of(partial(route.call, delivery), limit)
        finally:
            if route.room is not None:
                route.room.leave()
        if handler.options.batch is None:  # a batch is one call, whatever the number of its items
            _tell(route.circuit, handler, failure)
        return failure


async def _call_one(invocation: Invocation, handler: Handler, delivery: Delivery) -> None:
    await invocation.call(handler, delivery.event, delivery)


def _tell(circuit: Circuit | None, handler: Handler, failure: BaseException | None) -> None:
    if circuit is None:
        return
    if failure is None:
        circuit.succeeded()
    elif not isinstance(failure, (Retry, Reject, *handler.retry.never_on)):
        circuit.failed()


def _unless_open(circuit: Circuit | None, outcome: Outcome) -> Outcome:
    """Give back what an outage would push into the dead-letter queue."""
    if circuit is None or circuit.closed or not isinstance(outcome, (DeadLetter, Halt)):
        return outcome
    return RetryAfter(round(circuit.reset_seconds), outcome.error) if outcome.kind == "retries-exhausted" else outcome
