"""A broker in memory that runs services as a worker does, on virtual time, and knows what happened."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar

from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.processor import Resources
from smartpipe.consumer.threads import Threads
from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_text
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.message import OutgoingMessage, utf8_length
from smartpipe.names import name_of
from smartpipe.publisher.publisher import Publisher
from smartpipe.settings import AwsSettings
from smartpipe.testing.clock import virtual_time
from smartpipe.testing.recorder import Recorder
from smartpipe.testing.records import DeadLettered, Delivered, Handled, Published, Record, Retried, fits
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING
from smartpipe.transports.open import use_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.service import Service
    from smartpipe.topics import Queue

E = TypeVar("E", bound="Event")
T = TypeVar("T")

POLL_SECONDS = 20
REAL_POLL_SECONDS = 1
LOOK_EVERY_SECONDS = 5.0
"""Of a drain: some of what happens to a queue, such as the end of its retention, nobody does."""
DRAIN_LIMIT_SECONDS = 86_400.0
DAYS_OF_HANDLERS_SECONDS = 1_000_000.0

entered: deque[MemoryBroker] = deque(maxlen=10)
"""The last of those that the running test has entered, for the pytest plugin to show what happened on them."""


class MemoryBroker:
    """SNS and SQS in memory, with *services* running on it: real semantics, no network, and virtual time.

    An async context manager. Inside of it, every ``Publisher`` that is opened without a transport
    publishes here, so code under test needs no change. Services run as in a worker, with the same
    retries, leases, groups and drains; the topology is derived from them.

    Args:
        concurrency: As that of a worker.
        virtual: Let the loop's clock jump over waiting; see ``virtual_time``. Else time is real.
        duplicate_share: 0 to below 1: this part of the receives from standard queues hands its message
            out twice, which SQS may do.
        shuffle: Standard queues hand out messages in any order, which SQS may do.
        seed: Of the two above: the same seed does the same again.
        idempotency_url: Where idempotent handlers claim, as ``SMARTPIPE_IDEMPOTENCY_URL``; by default in memory.
            With PostgreSQL, handlers can use ``delivery.transaction()``. A server does not follow virtual time, so it
            needs ``virtual=False``.

    Raises:
        ConfigError: What the services declare contradicts itself, the loop's time cannot be virtual, or the store
            cannot be used.
        StoreError: The store cannot be asked.
    """

    def __init__(
        self,
        *services: Service,
        concurrency: int = 10,
        virtual: bool = True,
        duplicate_share: float = 0.0,
        shuffle: bool = False,
        seed: int = 0,
        idempotency_url: str | None = None,
    ) -> None:
        if virtual and idempotency_url is not None:
            raise ConfigError(
                "MemoryBroker(idempotency_url=...): a server does not follow virtual time; add virtual=False"
            )
        self._services = services
        self._store_url = idempotency_url
        self._concurrency = concurrency
        self._virtual = virtual
        self._weather: dict[str, Any] = {"duplicate_share": duplicate_share, "shuffle": shuffle, "seed": seed}
        self._recorder: Recorder | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._consumers: dict[str, Consumer] = {}
        self._claims: Claims | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Create the topology and start the services."""
        threads = Threads(1_000, Capacity(sum(service.slots(self._concurrency) for service in self._services)))
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.callback(threads.close)
            if self._virtual:
                stack.enter_context(virtual_time(lambda: threads.running))
            self._recorder = Recorder(**self._weather)
            self._recorder.apply(derive(self._services, NAMING))
            stack.enter_context(use_transport(self._recorder))
            self._publisher = await stack.enter_async_context(Publisher("test", transport=self._recorder))
            stack.callback(self._consumers.clear)
            store = MemoryStore() if self._store_url is None else open_store(self._store_url)
            self._claims = Claims(store, prefix=AwsSettings.load().prefix)
            stack.push_async_callback(self._claims.aclose)
            await self._claims.store.open()
            for service in self._services:
                await self._start(service, threads, stack)
            self._stack = stack.pop_all()
        entered.append(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let running handlers end, stop, and close what the services' lifespans opened."""
        await self._stack.aclose()

    @property
    def transport(self) -> Recorder:
        """The transport to it, for a Publisher or Worker of your own."""
        if self._recorder is None:
            msg = "the broker does not run: use it inside of `async with MemoryBroker(service) as broker:`"
            raise RuntimeError(msg)
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:  # looked at afterwards
            return self._recorder
        if here is not self._loop and self._consumers:
            msg = "this broker was entered on another event loop: give its fixture and its test the same one"
            raise RuntimeError(msg)
        return self._recorder

    async def publish(
        self,
        event: Event,
        *,
        queue: Queue | str | None = None,
        delay_seconds: float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Publish *event* as the component ``test``; see Publisher.publish."""
        return await self._publisher.publish(event, queue=queue, delay_seconds=delay_seconds, attributes=attributes)

    async def send(self, queue: str, body: str) -> None:
        """Put any text into a queue: what nobody's publisher would send, but something will.

        Raises:
            TransportError: There is no such queue.
            ValueError: SQS would not take it.
        """
        failures = await self.transport.send(queue, [OutgoingMessage(body, utf8_length(body))])
        if failures:
            raise ValueError(failures[0].detail)

    async def drain(self, *, limit_seconds: float = DRAIN_LIMIT_SECONDS) -> None:
        """Wait until the services have nothing left to do: every message is handled or dead-lettered.

        Raises:
            AssertionError: They are not done after *limit_seconds* (of virtual time); it says what is left.
        """
        transport = self.transport
        try:
            async with asyncio.timeout(limit_seconds):
                while self._busy():
                    try:
                        await asyncio.wait_for(transport.wait_for_change(), LOOK_EVERY_SECONDS)
                    except TimeoutError:
                        for name in self._consumers:
                            transport.queue(name).expire()
        except TimeoutError:
            left = ", ".join(self._left())
            raise AssertionError(self._told(f"after {limit_seconds:g} s there is still work left: {left}")) from None

    def pause(self, queue: str) -> None:
        """Stop the service's polling of *queue*, as ``Worker.pause``.

        A poll that is open, for up to 20 s, still brings what comes: let these pass first.

        Raises:
            ConfigError: No service polls it.
        """
        self._consumer(queue).poller.pause()

    def resume(self, queue: str) -> None:
        """Let the service poll *queue* again."""
        self._consumer(queue).poller.resume()

    def published(self, event: type[E], **fields: Any) -> list[E]:
        """Return the published events of this class whose fields have these values, in order."""
        return self._events(Published, event, fields)

    def handled(self, event: type[E], *, by: Callable[..., Any] | None = None, **fields: Any) -> list[E]:
        """Return the events whose delivery succeeded; *by* this handler, if it was the last of its delivery."""
        return self._events(Handled, event, fields, by)

    def retried(self, event: type[Event] | None = None, **fields: Any) -> list[Retried]:
        """Return each failed delivery that was given back: ``after_seconds``, ``error``, ``receive_count``."""
        return self._of(Retried, event, fields)

    def dead_lettered(self, event: type[Event] | None = None, **fields: Any) -> list[DeadLettered]:
        """Return what was dead-lettered: ``kind``, ``reason``, ``error``, ``body``. Without a class, all of it."""
        return self._of(DeadLettered, event, fields)

    def assert_published(self, event: type[E], *, times: int | None = None, **fields: Any) -> list[E]:
        """Assert that such events were published, exactly *times* if given; return them."""
        return self._checked("published", event, self.published(event, **fields), times, fields)

    def assert_handled(
        self, event: type[E], *, by: Callable[..., Any] | None = None, times: int | None = None, **fields: Any
    ) -> list[E]:
        """Assert that such events were handled, exactly *times* if given; return them."""
        return self._checked("handled", event, self.handled(event, by=by, **fields), times, fields)

    def assert_dead_lettered(self, event: type[Event], *, kind: str | None = None, **fields: Any) -> DeadLettered:
        """Assert that one such event was dead-lettered, for this *kind* of reason; return its record."""
        found = [one for one in self.dead_lettered(event, **fields) if kind in (None, one.kind)]
        return self._checked(f"dead-lettered{f' as {kind}' if kind else ''}", event, found, 1, fields)[0]

    def assert_nothing_dead_lettered(self) -> None:
        """Assert that the dead-letter queues are as empty as they should be."""
        if self.dead_lettered():
            raise AssertionError(self._told("something was dead-lettered"))

    @property
    def timeline(self) -> str:
        """All that happened, a line for each."""
        return "\n".join(escape_text(str(record)) for record in self.transport.records)

    async def _start(self, service: Service, threads: Threads, stack: AsyncExitStack) -> None:
        state = await stack.enter_async_context(service.open())
        publisher = await stack.enter_async_context(Publisher(service.name, transport=self.transport))
        for binding in service.bindings:
            consumer = Consumer(
                service,
                binding.queue,
                self.transport,
                resources=Resources(publisher, threads, publisher.payloads, state, self._claims),
                concurrency=self._concurrency,
                poll_seconds=POLL_SECONDS if self._virtual else REAL_POLL_SECONDS,
                observer=self.transport.settled,
            )
            self.transport.dead_letter_names.add(binding.queue.dead_letter_name)
            self._consumers[binding.queue.name] = consumer
            consumer.start()
            stack.push_async_callback(_stop, consumer)

    def _consumer(self, queue: str) -> Consumer:
        if queue not in self._consumers:
            msg = f"queue {queue!r} is none of those that the services poll: {', '.join(self._consumers) or 'none'}"
            raise ConfigError(msg)
        return self._consumers[queue]

    def _busy(self) -> bool:
        return any(consumer.in_flight or len(self.transport.queue(name)) for name, consumer in self._consumers.items())

    def _left(self) -> list[str]:
        """Say what is in the services' queues, or still in their hands."""
        left = []
        for name, consumer in self._consumers.items():
            visible, in_flight, delayed = self.transport.queue(name).depth
            if visible or in_flight or delayed or consumer.in_flight:
                left.append(f"{name} has {visible} visible, {in_flight} in flight, {delayed} delayed")
        return left

    def _of(self, kind: type[Any], event: type[Event] | None, fields: Mapping[str, Any]) -> list[Any]:
        return [one for one in self.transport.records if isinstance(one, kind) and fits(one, event, fields)]

    def _events(
        self, kind: type[Record], event: type[E], fields: Mapping[str, Any], by: Callable[..., Any] | None = None
    ) -> list[E]:
        found: list[Record] = self._of(kind, event, fields)
        if by is not None:
            name = name_of(by)
            found = [one for one in found if isinstance(one, Delivered) and _function(one.handler) == name]
        return [one.event for one in found if isinstance(one.event, event)]

    def _checked(
        self, word: str, event: type[Event], found: list[T], times: int | None, fields: Mapping[str, Any]
    ) -> list[T]:
        if found if times is None else len(found) == times:
            return found
        such = f"{event.__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
        wanted = "" if times is None else f" {times} time{'' if times == 1 else 's'}, but {len(found)}"
        raise AssertionError(self._told(f"{such} was not {word}{wanted}"))

    def _told(self, fault: str) -> str:
        return f"{fault}. What happened:\n{self.timeline or '           nothing'}"


def _function(handler: str | None) -> str:
    """Return the name of a handler's function, which several handlers may have."""
    return (handler or "").partition("#")[0]


async def _stop(consumer: Consumer) -> None:
    until = asyncio.get_running_loop().time() + DAYS_OF_HANDLERS_SECONDS
    await consumer.drain(handlers_until=until, flush_until=until, hard=asyncio.Event())
