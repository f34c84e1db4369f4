"""A broker in memory that runs services as a worker does, on virtual time, and records events and deliveries."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from uuid import uuid4

from smartpipe.consumer.capacity import Capacity
from smartpipe.consumer.consumer import Consumer
from smartpipe.consumer.threads import Threads
from smartpipe.errors import ConfigError
from smartpipe.escaping import escape_text
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.open_store import open_store
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.limits import ATTRIBUTE_NAME, MESSAGE_ID
from smartpipe.message import OutgoingMessage, make_attribute, size_bytes
from smartpipe.names import name_of
from smartpipe.publisher.publisher import Publisher
from smartpipe.settings import AwsSettings, ConcurrencySettings
from smartpipe.testing.clock import virtual_time
from smartpipe.testing.recorder import Recorder
from smartpipe.testing.records import DeadLettered, Delivered, Handled, Published, Record, Retried, matches
from smartpipe.topics import FIFO_SUFFIX
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING
from smartpipe.transports.open import use_transport
from smartpipe.worker.runtime import Shared, open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.idempotency.claims import OpenTransaction
    from smartpipe.idempotency.store import Store
    from smartpipe.message import Attribute, NewAttribute
    from smartpipe.options import PublishOptions
    from smartpipe.service import Service

E = TypeVar("E")
"""An event, or the model of a raw handler."""
T = TypeVar("T")

POLL_SECONDS = 20
REAL_POLL_SECONDS = 1
EXPIRE_SECONDS = 5.0
"""A drain removes expired messages this often, because the end of a retention period wakes no task."""
DRAIN_LIMIT_SECONDS = 86_400.0
STOP_SECONDS = 1_000_000.0
_SERVERS = tuple(f"smartpipe.idempotency.stores.{name}" for name in ("dynamodb", "postgres", "redis"))
"""The modules of stores whose time is that of a server."""

entered: deque[MemoryBroker] = deque(maxlen=10)
"""The last brokers that the running test has entered. The pytest plugin prints their timelines."""


class MemoryBroker:
    """SNS and SQS in memory, with *services* running on it: real semantics, no network, and virtual time.

    An async context manager. Inside of it, every ``Publisher`` that is opened without a transport publishes here, so
    the code under test needs no change. Services run as in a worker, with the same retries, leases, groups and drains.
    The topology is derived from them.

    Args:
        concurrency: The same as for a worker.
        virtual: Let the event loop's clock skip waiting time; see ``virtual_time``. Otherwise time is real.
        duplicate_share: The share of receives from standard queues, 0 to below 1, whose message is delivered twice.
            SQS may do that.
        shuffle: Deliver messages of standard queues in random order. SQS may do that.
        seed: The seed of the two faults above. The same seed repeats the same faults.
        idempotency_url: The store for the claims of idempotent handlers, as in ``SMARTPIPE_IDEMPOTENCY_URL``. The
            default is a store in memory. With PostgreSQL, handlers can use ``delivery.transaction()``. A server does
            not follow virtual time, so it needs ``virtual=False``.
        store: The store itself, instead of its URL. The broker opens it, and closes it at the end.
        transaction: Provides the transactions of ``delivery.transaction()``, without PostgreSQL: a function that takes
            the arguments of that call and returns an async context manager. ``lambda sessions: sessions.begin()`` runs
            on any database of SQLAlchemy, and an ``@asynccontextmanager`` function may yield a fake. The event counts
            as handled when the context manager has exited without an error.

    Raises:
        ConfigError: The declarations of the services contradict each other, the loop does not support virtual time, the
            store cannot be used, or two of the last three arguments are set.
        StoreError: The store cannot be reached.
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
        store: Store | None = None,
        transaction: OpenTransaction | None = None,
    ) -> None:
        given = {"idempotency_url": idempotency_url, "store": store, "transaction": transaction}
        names = [f"{name}=..." for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigError(f"MemoryBroker({', '.join(names)}): set one of them; each decides where claims are kept")
        if virtual and (idempotency_url is not None or type(store).__module__ in _SERVERS):
            raise ConfigError(f"MemoryBroker({names[0]}): a server does not follow virtual time; add virtual=False")
        self._services = services
        self._store = store
        self._store_url = idempotency_url
        self._transaction = transaction
        self._concurrency = concurrency
        self._virtual = virtual
        self._faults: dict[str, Any] = {"duplicate_share": duplicate_share, "shuffle": shuffle, "seed": seed}
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
            self._recorder = Recorder(**self._faults)
            self._recorder.apply(derive(self._services, NAMING))
            stack.enter_context(use_transport(self._recorder))
            self._publisher = await stack.enter_async_context(Publisher("test", transport=self._recorder))
            stack.callback(self._consumers.clear)
            store = self._store
            if store is None:
                store = MemoryStore() if self._store_url is None else open_store(self._store_url)
            self._claims = Claims(store, prefix=AwsSettings.load().prefix, transaction=self._transaction)
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
        """Let running handlers end, stop the services, and close the resources of their lifespans."""
        await self._stack.aclose()

    @property
    def transport(self) -> Recorder:
        """The transport to this broker, for your own Publisher or Worker."""
        if self._recorder is None:
            msg = "the broker is not running: use it inside `async with MemoryBroker(service) as broker:`"
            raise RuntimeError(msg)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the test reads the records afterwards
            return self._recorder
        if loop is not self._loop and self._consumers:
            msg = "this broker was entered on another event loop: run its fixture and its test on the same loop"
            raise RuntimeError(msg)
        return self._recorder

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* as the component ``test``; see Publisher.publish."""
        return await self._publisher.publish(event, **options)

    async def send(
        self,
        queue: str,
        body: str | Mapping[str, Any],
        *,
        attributes: Mapping[str, NewAttribute] | None = None,
        group_id: str | None = None,
    ) -> None:
        """Send any message to a queue, such as one of another system, or a malformed one.

        Args:
            body: Text, or a JSON object.
            attributes: Message attributes: text, numbers or lists.
            group_id: The group of a message for a FIFO queue.

        Raises:
            TransportError: The queue does not exist, or the text is longer than it accepts.
            ValueError: SQS would refuse the message for another reason.
        """
        text = body if isinstance(body, str) else json.dumps(body)
        made = {name: _make_attribute(name, value) for name, value in (attributes or {}).items()}
        if group_id is not None and not MESSAGE_ID.fullmatch(group_id):
            raise ValueError(
                f"group_id {group_id!r:.200} is invalid in SQS (letters, digits and punctuation, at most 128)"
            )
        deduplication_id = str(uuid4()) if group_id is not None and queue.endswith(FIFO_SUFFIX) else None
        message = OutgoingMessage(text, size_bytes(text, made), made, group_id, deduplication_id)
        failures = await self.transport.send(queue, [message])
        if failures:
            raise ValueError(failures[0].detail)

    async def drain(self, *, limit_seconds: float = DRAIN_LIMIT_SECONDS) -> None:
        """Wait until the services have nothing left to do: every message is handled or dead-lettered.

        Raises:
            AssertionError: Messages remain after *limit_seconds* (of virtual time). The error lists them.
        """
        __tracebackhide__ = True
        transport = self.transport
        try:
            async with asyncio.timeout(limit_seconds):
                while self._has_work():
                    try:
                        await asyncio.wait_for(transport.wait_for_change(), EXPIRE_SECONDS)
                    except TimeoutError:
                        for name in self._consumers:
                            transport.queue(name).expire()
        except TimeoutError:
            remaining = ", ".join(self._describe_remaining())
            raise AssertionError(
                self._with_timeline(f"the services have not finished after {limit_seconds:g} s: {remaining}")
            ) from None

    def pause(self, queue: str) -> None:
        """Stop the service's polling of *queue*, as ``Worker.pause``.

        A receive call that is already open, for up to 20 s, still returns messages. Wait that long first.

        Raises:
            ConfigError: No service polls this queue.
        """
        self._get_consumer(queue).pause()

    def resume(self, queue: str) -> None:
        """Let the service poll *queue* again."""
        self._get_consumer(queue).resume()

    def published(self, event: type[E], **fields: Any) -> list[E]:
        """Return the published events of this class whose fields have these values, in order."""
        return self._find_events(Published, event, fields)

    def handled(self, event: type[E], *, by: Callable[..., Any] | None = None, **fields: Any) -> list[E]:
        """Return the events whose delivery succeeded. *by* selects deliveries whose last handler was this one."""
        return self._find_events(Handled, event, fields, by)

    def retried(self, event: type[Any] | None = None, **fields: Any) -> list[Retried]:
        """Return the failed deliveries that were retried: ``after_seconds``, ``error``, ``receive_count``."""
        return self._find_records(Retried, event, fields)

    def dead_lettered(self, event: type[Any] | None = None, **fields: Any) -> list[DeadLettered]:
        """Return the dead-lettered messages: ``kind``, ``reason``, ``error``, ``body``. Without a class, return all."""
        return self._find_records(DeadLettered, event, fields)

    def assert_published(self, event: type[E], *, times: int | None = None, **fields: Any) -> list[E]:
        """Assert that matching events were published (exactly *times*, if set), and return them."""
        __tracebackhide__ = True
        return self._check_count("published", event, self.published(event, **fields), times, fields)

    def assert_handled(
        self, event: type[E], *, by: Callable[..., Any] | None = None, times: int | None = None, **fields: Any
    ) -> list[E]:
        """Assert that matching events were handled (exactly *times*, if set), and return them."""
        __tracebackhide__ = True
        return self._check_count("handled", event, self.handled(event, by=by, **fields), times, fields)

    def assert_dead_lettered(self, event: type[Any], *, kind: str | None = None, **fields: Any) -> DeadLettered:
        """Assert that one matching event was dead-lettered, with this *kind* of reason, and return its record."""
        __tracebackhide__ = True
        found = [record for record in self.dead_lettered(event, **fields) if kind in (None, record.kind)]
        return self._check_count(f"dead-lettered{f' as {kind}' if kind else ''}", event, found, 1, fields)[0]

    def assert_nothing_dead_lettered(self) -> None:
        """Assert that no message was dead-lettered."""
        __tracebackhide__ = True
        if self.dead_lettered():
            raise AssertionError(self._with_timeline("messages were dead-lettered"))

    @property
    def timeline(self) -> str:
        """Everything that happened, one line each."""
        return "\n".join(escape_text(str(record)) for record in self.transport.records)

    async def _start(self, service: Service, threads: Threads, stack: AsyncExitStack) -> None:
        settings = ConcurrencySettings(concurrency=self._concurrency)
        runtime = await stack.enter_async_context(
            open_runtime(service, self.transport, settings, shared=Shared(threads, self._claims))
        )
        for binding in service.bindings:
            consumer = Consumer(
                service,
                binding.queue,
                self.transport,
                resources=runtime.resources(),
                concurrency=self._concurrency,
                poll_seconds=POLL_SECONDS if self._virtual else REAL_POLL_SECONDS,
                observer=self.transport.record_settled,
            )
            self.transport.dead_letter_names.add(binding.queue.dead_letter_name)
            self._consumers[binding.queue.name] = consumer
            consumer.start()
            stack.push_async_callback(_stop, consumer)

    def _get_consumer(self, queue: str) -> Consumer:
        if queue not in self._consumers:
            msg = f"no service polls queue {queue!r}; they poll {', '.join(self._consumers) or 'no queue'}"
            raise ConfigError(msg)
        return self._consumers[queue]

    def _has_work(self) -> bool:
        return any(consumer.in_flight or len(self.transport.queue(name)) for name, consumer in self._consumers.items())

    def _describe_remaining(self) -> list[str]:
        """Return a text for each queue that still has messages."""
        remaining = []
        for name, consumer in self._consumers.items():
            visible, in_flight, delayed = self.transport.queue(name).depth
            if visible or in_flight or delayed or consumer.in_flight:
                remaining.append(f"{name} has {visible} visible, {in_flight} in flight, {delayed} delayed")
        return remaining

    def _find_records(self, kind: type[Any], event: type[Any] | None, fields: Mapping[str, Any]) -> list[Any]:
        return [
            record for record in self.transport.records if isinstance(record, kind) and matches(record, event, fields)
        ]

    def _find_events(
        self, kind: type[Record], event: type[E], fields: Mapping[str, Any], by: Callable[..., Any] | None = None
    ) -> list[E]:
        records: list[Record] = self._find_records(kind, event, fields)
        if by is not None:
            name = name_of(by)
            records = [one for one in records if isinstance(one, Delivered) and _function_name(one.handler) == name]
        return [record.event for record in records if isinstance(record.event, event)]

    def _check_count(
        self, word: str, event: type[Any], found: list[T], times: int | None, fields: Mapping[str, Any]
    ) -> list[T]:
        __tracebackhide__ = True
        if found if times is None else len(found) == times:
            return found
        pattern = f"{event.__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
        wanted = "" if times is None else f" {times} time{'' if times == 1 else 's'}, but {len(found)}"
        raise AssertionError(self._with_timeline(f"{pattern} was not {word}{wanted}"))

    def _with_timeline(self, error: str) -> str:
        return f"{error}. Timeline:\n{self.timeline or '           empty'}"


def _make_attribute(name: str, value: NewAttribute) -> Attribute:
    if not ATTRIBUTE_NAME.fullmatch(name):
        raise ValueError(f"attribute name {name!r:.100} is invalid in SQS (letters, digits, '_', '-', inner '.')")
    try:
        return make_attribute(value)
    except ValueError as error:
        raise ValueError(f"attribute {name!r} {error}: {value!r:.100}") from None


def _function_name(handler: str | None) -> str:
    """Return the name of the handler's function, which several handlers may share."""
    return (handler or "").partition("#")[0]


async def _stop(consumer: Consumer) -> None:
    until = asyncio.get_running_loop().time() + STOP_SECONDS
    await consumer.drain(handlers_until=until, flush_until=until, hard=asyncio.Event())
