"""The asyncio publisher: turns events into PublishBatch requests."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

from smartpipe.batching.resend import send_with_retries
from smartpipe.batching.timers import Timers
from smartpipe.envelope.encode import source_errors
from smartpipe.envelope.traceparent import OPENTELEMETRY
from smartpipe.errors import ConfigError, PublishError, PublishFailure, TransportError
from smartpipe.message import Failure
from smartpipe.middleware import Middleware, compose, validate_middleware
from smartpipe.payload_offload import PayloadOffload
from smartpipe.publisher.prepare import (
    PreparedEvent,
    Publication,
    PublishReport,
    prepare,
    read_many_options,
    read_options,
)
from smartpipe.publisher.publish_many import add_failures, publish_each, publish_in_chunks
from smartpipe.publisher.publish_one import SinglePublisher
from smartpipe.publisher.traced import find_publish_tracing
from smartpipe.telemetry.call_metrics import PublishMetrics
from smartpipe.telemetry.histograms import FOLD_AT
from smartpipe.telemetry.spans import is_ready
from smartpipe.topics import Topic
from smartpipe.transports.measured import MeasuredTransport
from smartpipe.transports.open import open_transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from smartpipe.events import Event
    from smartpipe.options import PublishManyOptions, PublishOptions
    from smartpipe.publisher.traced import PublicationFields, PublishTracing
    from smartpipe.telemetry.call_metrics import CallMetrics
    from smartpipe.telemetry.families import Family
    from smartpipe.transport import Transport

log = logging.getLogger("smartpipe.publisher")


class Publisher:
    """Publishes events to their topics. One publisher for a process is enough. It belongs to one event loop.

    Large events are compressed or stored in S3, as set in ``SMARTPIPE_COMPRESSION`` and ``SMARTPIPE_CLAIM_CHECK_URL``.

    Use it as an async context manager, or call ``aclose`` at the end.

    Args:
        source: The CloudEvents ``source``: the component that publishes, such as ``"signup-api"``.
        transport: The transport to publish with; by default AWS as set in the environment (region, credentials,
            ``AWS_ENDPOINT_URL``, ``SMARTPIPE_PREFIX``).
        linger_seconds: How long a single ``publish`` waits for others to share its request. 0 turns this off. By
            default it waits only while another request to its topic or queue is open, and at most 5 ms.
        deadline_seconds: How long temporary failures of SNS (throttling, 5xx, a lost connection) are retried, with full
            jitter.
        middleware: Functions around each event's publication, the first outermost; see ``smartpipe.middleware``. With
            middleware, ``publish_many`` publishes the events one by one.
        metrics: Count results and measure calls, for ``collect_metrics``.

    Raises:
        ConfigError: The source is empty, longer than 256 characters or not a URI reference (RFC 3986), a time is
            negative, or a setting in the environment is invalid.
    """

    def __init__(
        self,
        source: str,
        *,
        transport: Transport | None = None,
        linger_seconds: float | None = None,
        deadline_seconds: float = 30.0,
        middleware: Sequence[Middleware[Publication, str]] = (),
        metrics: bool = True,
    ) -> None:
        errors = source_errors("Publisher", source)
        if (linger_seconds or 0) < 0 or deadline_seconds < 0:
            errors.append("Publisher: linger_seconds and deadline_seconds cannot be negative")
        if errors:
            raise ConfigError(errors)
        self.source = source
        self._owns_transport = transport is None
        self._transport = open_transport() if transport is None else transport
        self._metrics = PublishMetrics() if metrics else None
        self._calls: CallMetrics | None = None
        if metrics and not isinstance(self._transport, MeasuredTransport):  # or else a worker reports the calls
            self._transport = MeasuredTransport(self._transport)
            self._calls = self._transport.calls
        self.payloads = PayloadOffload()
        self._linger_seconds = linger_seconds
        self._deadline_seconds = deadline_seconds
        self._publish = compose(validate_middleware(middleware, f"Publisher {source!r}"), self._publish_one)
        self._middleware = bool(middleware)
        self._tracing: PublishTracing | None = None
        self._tracing_found = False
        self._single_publisher: SinglePublisher | None = None
        self._open_calls: set[asyncio.Future[None]] = set()  # of `publish_many`
        self._closed = False
        self._outage_code: str | None = None

    async def __aenter__(self) -> Self:
        """Return itself; connections open with the first publish."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and close, even if the block failed."""
        await self.aclose()

    async def publish(self, event: Event, **options: Unpack[PublishOptions]) -> str:
        """Publish *event* to its topic and return its envelope id.

        Return once SNS has accepted it; SNS delivers it to queues later. Publishing the same object again publishes
        another event with a new id. In a handler, though, the published events have the same ids at its next attempt.
        If cancelled, the event is withdrawn unless its request has started. After that it may or may not be published.

        On a FIFO topic the events of one key are sent one after the other, in the order of the calls. If one fails,
        those after it are published nevertheless, so await each call if that matters.

        Args:
            options: ``queue``, ``delay_seconds``, ``attributes``, and the context of the event: ``event_id``,
                ``time``, ``traceparent``, ``correlation_id`` and ``causation_id``; see
                ``smartpipe.options.PublishOptions``.

        Raises:
            EventTooLarge: The event exceeds its topic's ``limit_bytes``. Raised before any I/O.
            PublishError: An option is invalid, or SNS refused the event, or could not be reached until the deadline.
            ConfigError: The event's class declares no type, or the queue's name is invalid.
        """
        return await self._publish_through(Publication(event, *read_options(**options)))

    async def _publish_through(self, publication: Publication) -> str:
        event_id = await self._publish(publication)
        if not isinstance(event_id, str):
            msg = "a middleware returned no event id: write `return await call_next(publication)`, or raise an error"
            raise ConfigError(msg)
        return event_id

    async def _publish_one(self, publication: Publication) -> str:
        tracing = self._find_tracing()
        if tracing is not None:
            with tracing.trace_event(publication) as traced:
                prepared = traced.prepare(self._prepare)
                await self._publisher_of_loop().publish(prepared)
            return prepared.event_id
        prepared = self._prepare(publication)
        await self._publisher_of_loop().publish(prepared)
        return prepared.event_id

    async def publish_many(self, events: Iterable[Event], **options: Unpack[PublishManyOptions]) -> PublishReport:
        """Publish *events*, ten to a request, with several concurrent requests, and report when all are done.

        The iterable is read while requests are sent, so it may be long. An event that cannot be published does not stop
        the others, except those with its key on a FIFO topic (``GroupStopped``). An exception of the iterable itself,
        or a class that declares no type, stops the call after the events read before have been sent. A note of the
        exception lists those of them that were not published. If cancelled, the events that have not been sent are
        abandoned. The options are those of ``publish``, without ``event_id``.

        Raises:
            PublishError: Some events were not published; ``failures`` lists them. Raised after every event was tried.
            ConfigError: An event's class declares no type, or there is an ``event_id``.
        """
        fields = read_many_options(**options)
        tracing = self._find_tracing()
        if tracing is not None and not self._middleware:  # with middleware, each event has a span of its own
            with tracing.trace_many(events, fields) as (traced_events, traced_fields):
                return await self._publish_all(traced_events, traced_fields)
        return await self._publish_all(events, fields)

    async def _publish_all(self, events: Iterable[Event], fields: PublicationFields) -> PublishReport:
        publications = (Publication(event, *fields) for event in events)
        failures: list[PublishFailure] = []
        call = asyncio.get_running_loop().create_future()
        self._open_calls.add(call)
        try:
            if self._middleware:
                event_ids = await publish_each(publications, self._publish_through, failures)
            else:
                event_ids = await publish_in_chunks(publications, self._prepare, self._send_chunk, failures)
        except Exception as error:
            add_failures(error, failures)
            raise
        finally:
            call.set_result(None)
            self._open_calls.discard(call)
        if failures:
            raise PublishError(failures)
        return PublishReport(event_ids)

    def _prepare(self, publication: Publication) -> PreparedEvent:
        prepared = prepare(publication, source=self.source, encoding=self.payloads.encoding)
        if self._closed:
            detail = "the publisher is closed; publish inside its `async with` block"
            raise PublishError([prepared.make_failure(Failure(0, "PublisherClosed", detail, retryable=False))])
        return prepared

    async def aclose(self, *, timeout_seconds: float | None = None) -> None:
        """Send the pending events, wait for them and for ``publish_many``, and release connections.

        A second call does nothing. A publish after it fails.

        Args:
            timeout_seconds: How long to wait; by default the publisher's deadline.

        Raises:
            PublishError: Some pending events could not be published, or not in time.
        """
        if self._closed:
            return
        publisher = self._publisher_of_loop()
        self._closed = True
        try:
            seconds = self._deadline_seconds if timeout_seconds is None else timeout_seconds
            failures = await publisher.drain(self._open_calls, seconds)
        finally:
            publisher.timers.close()
            await self.payloads.aclose()
            if self._owns_transport:
                await self._transport.aclose()
        if failures:
            raise PublishError(failures)

    def _publisher_of_loop(self) -> SinglePublisher:
        """Return the SinglePublisher of the running loop. When an earlier loop has ended, so has every caller in it.

        Raises:
            ConfigError: The earlier loop is still running, in another thread.
        """
        if self._single_publisher is None or self._single_publisher.timers.loop is not asyncio.get_running_loop():
            if self._single_publisher is not None and self._single_publisher.timers.loop.is_running():
                raise ConfigError(
                    "this publisher is used in an event loop that is running in another thread; open one in each "
                    "event loop, or use smartpipe.blocking.Publisher in threads"
                )
            self._single_publisher = SinglePublisher(
                self._send_chunk,
                Timers(),
                linger_seconds=self._linger_seconds,
                deadline_seconds=self._deadline_seconds,
            )
        return self._single_publisher

    async def _send_chunk(
        self, chunk: list[PreparedEvent], deadline_seconds: float | None = None
    ) -> list[tuple[PreparedEvent, PublishFailure]]:
        destination = chunk[0].destination
        operation = self._transport.publish if isinstance(destination, Topic) else self._transport.send
        send = partial(operation, destination.name)

        async def call(entries: list[PreparedEvent]) -> list[Failure]:
            messages = [prepared.message for prepared in entries]
            offloaded = any(message.payload is not None for message in messages)
            try:
                with nullcontext() if self._tracing is None else self._tracing.suppress_others():
                    failed = await (self.payloads.send(messages, send) if offloaded else send(messages))
            except TransportError as error:
                self._report_outage(error)
                raise
            self._report_outage(None)
            return failed

        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        timers = self._publisher_of_loop().timers
        started = time.perf_counter()
        failed = await send_with_retries(call, chunk, deadline_seconds=seconds, timers=timers)
        if self._metrics is not None:  # the lines of ``PublishMetrics.record``, as for each histogram
            codes = [failure.code for _, failure in failed]
            self._metrics.chunks.append((destination.name, len(chunk), codes, time.perf_counter() - started))
            if len(self._metrics.chunks) >= FOLD_AT:
                self._metrics.fold()
        return [(prepared, prepared.make_failure(failure)) for prepared, failure in failed]

    def _find_tracing(self) -> PublishTracing | None:
        """Look for a tracer provider once, when the application has imported OpenTelemetry."""
        if not self._tracing_found and OPENTELEMETRY in sys.modules and is_ready():
            self._tracing, self._tracing_found = find_publish_tracing(self.source), True
        return self._tracing

    def collect_metrics(self) -> list[Family]:
        """Return the results of all events, and how long they took and their requests, each with the label ``service``.

        In a worker, ``/metrics`` has those of the publisher of its handlers. Elsewhere, write them for Prometheus with
        ``smartpipe.telemetry.render``.
        """
        labels = {"service": self.source}
        published = [] if self._metrics is None else self._metrics.collect(labels)
        return [*published, *([] if self._calls is None else self._calls.collect(labels))]

    def _report_outage(self, error: TransportError | None) -> None:
        """Log the first temporary failure, and the end of it: a publish may take its whole deadline meanwhile."""
        code = error.code if error is not None and error.retryable else None
        if code is not None and self._outage_code is None:
            log.warning("Cannot publish events, retrying for up to %g s: %s", self._deadline_seconds, error)
        elif error is None and self._outage_code is not None:
            log.info("Events can be published again")
        self._outage_code = code
