"""The asyncio publisher: typed events in, PublishBatch requests out."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

from smartpipe.batching.resend import send_with_retries
from smartpipe.batching.timers import Timers
from smartpipe.envelope.encode import source_errors
from smartpipe.errors import ConfigError, PublishError, PublishFailure, TransportError
from smartpipe.message import Failure
from smartpipe.middleware import Middleware, compose, validate_middleware
from smartpipe.payload_offload import PayloadOffload
from smartpipe.publisher.prepare import Outgoing, Publication, PublishReport, prepare, publish_options
from smartpipe.publisher.publish_many import publish_each, publish_in_chunks
from smartpipe.publisher.publish_one import SinglePublisher
from smartpipe.topics import Topic
from smartpipe.transports.open import open_transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.options import PublishOptions
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.publisher")


class Publisher:
    """Publishes events to their topics. One for a process is enough; it belongs to one event loop.

    Large events are compressed, or wait in S3, as ``SMARTPIPE_COMPRESSION`` and ``SMARTPIPE_CLAIM_CHECK_URL`` say.

    Use it as an async context manager, or call ``aclose`` at the end.

    Args:
        source: CloudEvents ``source``: which component publishes, as in ``"signup-api"``.
        transport: Where to; by default AWS as the environment has it (region, credentials,
            ``AWS_ENDPOINT_URL``, ``SMARTPIPE_PREFIX``).
        linger_seconds: How long a single ``publish`` waits for others to share its request. 0 turns
            coalescing off.
        deadline_seconds: For how long what SNS refuses for the moment (throttling, 5xx, a lost
            connection) is tried again, with full jitter.
        middleware: Wrapped around each event's publication, the first outermost; see
            ``smartpipe.middleware``. With any, ``publish_many`` publishes event by event.

    Raises:
        ConfigError: A source that is empty or longer than 256 characters, a negative time, or faulty settings in the
            environment.
    """

    def __init__(
        self,
        source: str,
        *,
        transport: Transport | None = None,
        linger_seconds: float = 0.005,
        deadline_seconds: float = 30.0,
        middleware: Sequence[Middleware[Publication, str]] = (),
    ) -> None:
        problems = source_errors("Publisher", source)
        if linger_seconds < 0 or deadline_seconds < 0:
            problems.append("Publisher: linger_seconds and deadline_seconds cannot be negative")
        if problems:
            raise ConfigError(problems)
        self.source = source
        self._owns_transport = transport is None
        self._transport = open_transport() if transport is None else transport
        self.payloads = PayloadOffload()
        self._linger_seconds = linger_seconds
        self._deadline_seconds = deadline_seconds
        self._publish = compose(validate_middleware(middleware, f"Publisher {source!r}"), self._publish_one)
        self._middleware = bool(middleware)
        self._singles: SinglePublisher | None = None
        self._bulk: set[asyncio.Future[None]] = set()
        self._closed = False
        self._fault: str | None = None

    async def __aenter__(self) -> Self:
        """Return itself; connections open with the first publish."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and close, also when the block failed."""
        await self.aclose()

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* to its topic and return its envelope id.

        Returns once SNS has taken it; the delivery to queues is SNS's. Publishing the same object
        again publishes a second event with a new id; but what a handler publishes has the same ids at
        its next attempt. Cancelled, it is withdrawn if its request has
        not started; otherwise it may or may not be published.

        On a FIFO topic the events of one key leave one after the other, in the order of the calls; if
        one fails, those after it are published all the same, so await each where that matters.

        Args:
            options: ``queue``, ``delay_seconds`` and ``attributes``; see ``smartpipe.options.PublishOptions``.

        Raises:
            EventTooLarge: Before any I/O: it exceeds its topic's ``limit_bytes``.
            PublishError: It cannot be published so, SNS refused it, or could not be reached until the deadline.
            ConfigError: Its class declares no type, or the queue's name is faulty.
        """
        return await self._publish_through(Publication(event, *publish_options(**options)))

    async def _publish_through(self, publication: Publication) -> str:
        event_id = await self._publish(publication)
        if not isinstance(event_id, str):
            msg = "a middleware swallowed the event: write `return await call_next(publication)`, or raise to refuse it"
            raise ConfigError(msg)
        return event_id

    async def _publish_one(self, publication: Publication) -> str:
        outgoing = self._prepare(publication)
        await self._here().publish(outgoing)
        return outgoing.event_id

    async def publish_many(self, events: Iterable[Event], **options: Unpack[PublishOptions]) -> PublishReport:
        """Publish *events*, ten to a request, several requests at once, and report when all is done.

        The iterable is read as requests leave, so it may be long. An event that cannot be published
        does not stop the others, but for those of its key on a FIFO topic (``GroupStopped``); an
        exception of the iterable itself, or a class that declares no type, does, after what was read
        before has been sent. Cancelled, it abandons what has not been sent. Arguments are ``publish``'s.

        Raises:
            PublishError: After every event has been tried: ``failures`` has those not published.
            ConfigError: An event's class declares no type.
        """
        fields = publish_options(**options)
        publications = (Publication(event, *fields) for event in events)
        failures: list[PublishFailure] = []
        bulk = asyncio.get_running_loop().create_future()
        self._bulk.add(bulk)
        try:
            if self._middleware:
                event_ids = await publish_each(publications, self._publish_through, failures)
            else:
                event_ids = await publish_in_chunks(publications, self._prepare, self._deliver, failures)
        finally:
            bulk.set_result(None)
            self._bulk.discard(bulk)
        if failures:
            raise PublishError(failures)
        return PublishReport(event_ids)

    def _prepare(self, publication: Publication) -> Outgoing:
        outgoing = prepare(publication, source=self.source, encoding=self.payloads.encoding)
        if self._closed:
            detail = "the publisher is closed; publish inside of its `async with` block"
            raise PublishError([outgoing.failed(Failure(0, "PublisherClosed", detail, retryable=False))])
        return outgoing

    async def aclose(self, *, timeout_seconds: float | None = None) -> None:
        """Send what is being gathered, wait for it and for ``publish_many``, and release connections.

        A second call does nothing; a publish after it fails.

        Args:
            timeout_seconds: For how long it waits; by default the publisher's deadline.

        Raises:
            PublishError: Some of what was waiting could not be published, or not in time.
        """
        if self._closed:
            return
        self._closed = True
        singles = self._here()
        try:
            seconds = self._deadline_seconds if timeout_seconds is None else timeout_seconds
            failures = await singles.drain(self._bulk, seconds)
        finally:
            singles.timers.close()
            await self.payloads.aclose()
            if self._owns_transport:
                await self._transport.aclose()
        if failures:
            raise PublishError(failures)

    def _here(self) -> SinglePublisher:
        """Return what is the running loop's. What was gathered in another, which has ended, nobody waits for."""
        if self._singles is None or self._singles.timers.loop is not asyncio.get_running_loop():
            self._singles = SinglePublisher(
                self._deliver,
                Timers(),
                linger_seconds=self._linger_seconds,
                deadline_seconds=self._deadline_seconds,
            )
        return self._singles

    async def _deliver(
        self, chunk: list[Outgoing], deadline_seconds: float | None = None
    ) -> list[tuple[Outgoing, PublishFailure]]:
        destination = chunk[0].destination
        verb = self._transport.publish if isinstance(destination, Topic) else self._transport.send
        send = partial(verb, destination.name)

        async def call(entries: list[Outgoing]) -> list[Failure]:
            messages = [outgoing.message for outgoing in entries]
            offloaded = any(message.payload is not None for message in messages)
            try:
                failed = await (self.payloads.send(messages, send) if offloaded else send(messages))
            except TransportError as error:
                self._note(error)
                raise
            self._note(None)
            return failed

        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        failed = await send_with_retries(call, chunk, deadline_seconds=seconds, timers=self._here().timers)
        return [(outgoing, outgoing.failed(failure)) for outgoing, failure in failed]

    def _note(self, error: TransportError | None) -> None:
        """Say once that events wait, and once that they go out again: a publish may take its whole deadline."""
        code = error.code if error is not None and error.retryable else None
        if code is not None and self._fault is None:
            log.warning("events cannot be published for now, trying for %g s: %s", self._deadline_seconds, error)
        elif error is None and self._fault is not None:
            log.info("events can be published again")
        self._fault = code
