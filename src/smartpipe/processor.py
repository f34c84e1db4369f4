"""From one message to one outcome: decode, call the handlers, decide."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.decoder import Decoder
from smartpipe.delivery import Delivery
from smartpipe.errors import DecodeError, UnknownEventType
from smartpipe.settlement import Ack, Outcome, decide
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


class HandlerTimeout(Exception):
    """A handler ran longer than its ``timeout_seconds``."""


class Processed(NamedTuple):
    """What became of a message, and whose doing it was."""

    outcome: Outcome
    envelope: Envelope | None = None
    handler: Handler | None = None


class Processor:
    """Runs the handlers of one queue; its messages' leases and slots are the consumer's."""

    def __init__(self, service: Service, queue: str, *, publisher: Publishes, threads: Threads, counts: Counts) -> None:
        self._service = service
        self._queue = queue
        self._publisher = publisher
        self._threads = threads
        self._counts = counts
        self._handlers: dict[type[Event], list[Handler]] = {}
        for handler in service.handlers_on(queue):
            self._handlers.setdefault(handler.event, []).append(handler)
        self._decoder = Decoder(self._handlers)

    async def process(self, message: Message, lease: Lease) -> Processed:
        """Return what to do with *message*. Raises nothing but the CancelledError of its own task."""
        try:
            envelope = self._decoder.decode(message.body)
        except (DecodeError, UnknownEventType) as error:
            service = self._service
            return Processed(decide(error, message.receive_count, service.retry, service.unknown_events))
        for handler in self._handlers[type(envelope.data)]:
            failure = await self._call(handler, envelope, message, lease)
            if failure is not None:
                return Processed(decide(failure, message.receive_count, handler.retry), envelope, handler)
        return Processed(Ack(), envelope, handler)

    async def _call(self, handler: Handler, envelope: Envelope, message: Message, lease: Lease) -> BaseException | None:
        """Run one handler; return what it raised, or None."""
        lease.handler = handler.name
        delivery = Delivery(
            envelope,
            message,
            handler=handler.name,
            service=self._service.name,
            queue=self._queue,
            lease=lease,
            publisher=self._publisher,
        )
        current_cause.set(envelope.cause)
        seconds = lease.seconds_left if handler.timeout_seconds is None else handler.timeout_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._run(handler, handler.arguments(envelope.data, delivery))
        except TimeoutError as error:
            return HandlerTimeout(f"it ran longer than {seconds:g} s") if limit.expired() else error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return error  # the handler's own, not a shutdown: a failure like any other
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and a Rust panic too: the retry policy judges it
            return error
        return None

    async def _run(self, handler: Handler, arguments: list[object]) -> None:
        if handler.is_async:
            result = handler.function(*arguments)
        else:
            result = await self._threads.run(handler.function, arguments, self._abandoned)
        if inspect.isawaitable(result):  # also from a lambda, a partial or a wrapper that only looks sync
            result = await result
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            msg = f"handler {handler.name} returned a generator, which nobody iterates: nothing of it has run"
            raise TypeError(msg)

    def _abandoned(self) -> None:
        self._counts.abandoned_threads += 1
