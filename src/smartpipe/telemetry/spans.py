"""OpenTelemetry spans for published and handled events, if the application has set up OpenTelemetry.

smartpipe never imports OpenTelemetry, and makes no span unless a tracer provider is set. Names, kinds and attributes
are those of "Semantic conventions for messaging spans" 1.44, which is still in development.

An event that its publisher did not sample gets no further spans, and costs no call of the SDK.

Samplers, span processors and the texts of exceptions are code of the application. An exception of theirs is logged once
and never reaches a message or a publication.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from threading import Thread
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from smartpipe.envelope.encode import current_envelope
from smartpipe.envelope.traceparent import OPENTELEMETRY, is_sampled, is_undecided, is_unsampled
from smartpipe.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smartpipe.envelope.encode import Envelope
    from smartpipe.message import Message

log = logging.getLogger("smartpipe.tracing")

P = ParamSpec("P")
T = TypeVar("T")

SYSTEMS = {"sns": "aws.sns", "sqs": "aws_sqs"}
"""The values of ``messaging.system``. They are as inconsistent in the conventions."""
SUPPRESSED = "suppress_instrumentation"
"""The key of a context in which instrumentations make no spans. Source: ``opentelemetry.instrumentation.utils``."""
_SPAN_API = ("get_tracer_provider", "get_current_span", "ProxyTracerProvider", "NoOpTracerProvider")


def _ignore_errors(method: Callable[Concatenate[Tracing, P], T]) -> Callable[Concatenate[Tracing, P], T | None]:
    """Log the first exception of a method of Tracing, and return None instead of raising it."""

    @wraps(method)
    def call(self: Tracing, /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a trace must not disturb a message
            self.report(error)
            return None

    return call


class OpenSpan(NamedTuple):
    """A span that has not ended.

    Args:
        token: Of the context in which the span is the current one; None: it is not current.
    """

    span: Any
    token: Any = None

    @property
    def traceparent(self) -> str:
        """The context that a published event carries."""
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def sampled_trace_id(self) -> str | None:
        """The trace id, 32 hex digits, if the span is sampled."""
        context = self.span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags & 1 else None


class Tracing:
    """Makes spans with the application's tracer provider.

    Args:
        child: The span of a handler is a child of the span that published the event. By default it begins a trace of
            its own, with a link to that span, as the conventions recommend for queues.
    """

    def __init__(self, trace: Any, *, child: bool = False) -> None:
        self._trace = trace
        self._context = sys.modules["opentelemetry.context"]
        self._child = child
        self._tracer = trace.get_tracer("smartpipe")
        self._failed = False

    def report(self, error: Exception) -> None:
        """Log the first exception of OpenTelemetry, or of the application's code that it calls."""
        if not self._failed:
            self._failed = True
            log.warning(
                "OpenTelemetry raised %s, so spans are missing. Further errors are not logged",
                type(error).__qualname__,
                exc_info=error,
            )

    @_ignore_errors
    def start_publish(self, system: str, destination: str, explicit: str | None) -> OpenSpan | None:
        """Start the span of a publication; return None if its parent is not sampled.

        Args:
            system: ``sns`` or ``sqs``.
            destination: The topic or queue; empty if there are several.
            explicit: The traceparent that the caller has passed for the event. It is the parent, if there is one.
                Otherwise that is the current span, or else the span that published the event being handled.
        """
        context = None
        current = self._trace.get_current_span().get_span_context()
        cause = current_envelope.get()
        parent = explicit if explicit is not None or cause is None or current.is_valid else cause.traceparent
        if parent is None:
            if current.is_valid and not current.trace_flags & 1:
                return None
        elif not is_undecided(parent):
            if not is_sampled(parent):
                return None
            context = self._build_context(parent)
        attributes = _describe(system, "publish", "send", destination)
        name, kind = f"publish {destination}".rstrip(), self._trace.SpanKind.PRODUCER
        span = self._tracer.start_span(name, context=context, kind=kind, attributes=attributes)
        return OpenSpan(span) if span.get_span_context().is_valid else None  # OTEL_SDK_DISABLED makes invalid ones

    @_ignore_errors
    def set_attributes(self, opened: OpenSpan, attributes: Mapping[str, Any]) -> None:
        """Add attributes to a span."""
        opened.span.set_attributes(attributes)

    @contextmanager
    def suppress_others(self) -> Iterator[None]:
        """Let instrumentations, such as botocore's, make no spans in the block: a publication has its span already."""
        token = self._context.attach(self._context.set_value(SUPPRESSED, True))
        try:
            yield
        finally:
            self._context.detach(token)

    @_ignore_errors
    def start_process(self, queue: str, handler: str, envelope: Envelope, message: Message) -> OpenSpan | None:
        """Start the span of a handler call and make it current; return None if its event is not sampled."""
        context, links = self._context.Context(), []
        traceparent = envelope.traceparent
        if is_unsampled(traceparent):
            return None
        if traceparent is not None and not is_undecided(traceparent):
            if self._child:
                context = self._build_context(traceparent)
            else:
                links.append(self._trace.Link(self._read_context(traceparent)))
        attributes = {
            **_describe("sqs", "process", "process", queue),
            "messaging.message.id": message.message_id,
            "smartpipe.handler": handler,
            "smartpipe.receive_count": message.receive_count,
            **describe_event(envelope.id, envelope.type, envelope.source),
        }
        if envelope.correlation_id is not None:
            attributes["messaging.message.conversation_id"] = envelope.correlation_id
        return self._start_current(queue, context, links, attributes)

    @_ignore_errors
    def start_batch(self, queue: str, handler: str, parents: Sequence[str | None]) -> OpenSpan | None:
        """Start the span of a batch handler's call and make it current; return None if none of its events is sampled.

        Args:
            parents: The traceparent of each event. The span has a link to each that is sampled.
        """
        open_parents = [parent for parent in parents if not is_unsampled(parent)]
        if not open_parents:
            return None
        links = [
            self._trace.Link(self._read_context(parent))
            for parent in open_parents
            if parent is not None and not is_undecided(parent)
        ]
        attributes = {
            **_describe("sqs", "process", "process", queue),
            "messaging.batch.message_count": len(parents),
            "smartpipe.handler": handler,
        }
        return self._start_current(queue, self._context.Context(), links, attributes)

    @_ignore_errors
    def record_call(
        self, operation: str, kind: str, queue: str, began_ns: int, *, messages: int, error: BaseException | None = None
    ) -> None:
        """Make the span of a call that has ended.

        Args:
            operation: ``receive``, ``delete`` or ``change_visibility``; *kind* is ``receive`` or ``settle``.
            began_ns: When it began, in nanoseconds since 1970.
        """
        attributes = {**_describe("sqs", operation, kind, queue), "messaging.batch.message_count": messages}
        span = self._tracer.start_span(
            f"{operation} {queue}",
            context=self._context.Context(),
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=began_ns,
        )
        self.end(OpenSpan(span), error)

    def end(self, opened: OpenSpan, error: BaseException | None = None) -> None:
        """End a span, with *error* if its operation failed."""
        if error is not None:
            self._record_error(opened.span, error)
        if opened.token is not None:
            self._context.detach(opened.token)  # it logs errors, and raises none
        self._end(opened.span)

    @_ignore_errors
    def _record_error(self, span: Any, error: BaseException) -> None:
        if not span.is_recording():
            return
        code = error.code if isinstance(error, TransportError) else type(error).__qualname__
        span.set_attribute("error.type", code)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, type(error).__qualname__))
        span.record_exception(error)  # last: it calls the __str__ of the application's exception

    @_ignore_errors
    def _end(self, span: Any) -> None:
        span.end()

    async def flush(self, timeout_seconds: float) -> None:
        """Let the provider export the spans that have ended, for a process that may be frozen.

        Processors may ignore the time limit, so they run in a thread that is left behind after it.
        """
        flush = getattr(self._trace.get_tracer_provider(), "force_flush", None)
        if flush is None or timeout_seconds <= 0:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def run() -> None:
            try:
                flush(round(timeout_seconds * 1_000))
            except Exception as error:  # noqa: BLE001 - as elsewhere
                self.report(error)
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(done.set)

        Thread(target=run, name="smartpipe-flush", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), timeout_seconds)

    def _start_current(self, queue: str, context: Any, links: list[Any], attributes: dict[str, Any]) -> OpenSpan:
        span = self._tracer.start_span(
            f"process {queue}",
            context=context,
            kind=self._trace.SpanKind.CONSUMER,
            links=links,
            attributes=attributes,
        )
        token = self._context.attach(self._trace.set_span_in_context(span, context))
        return OpenSpan(span, token)

    def _build_context(self, traceparent: str) -> Any:
        remote = self._trace.NonRecordingSpan(self._read_context(traceparent))
        return self._trace.set_span_in_context(remote, self._context.Context())

    def _read_context(self, traceparent: str) -> Any:
        return self._trace.SpanContext(
            trace_id=int(traceparent[3:35], 16),
            span_id=int(traceparent[36:52], 16),
            is_remote=True,
            trace_flags=self._trace.TraceFlags(int(traceparent[53:55], 16)),
        )


def find_tracing(*, child: bool = False) -> Tracing | None:
    """Return Tracing if the application has set a tracer provider, or else None."""
    if not is_ready():
        return None
    trace: Any = sys.modules[OPENTELEMETRY]
    try:
        if isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        return Tracing(trace, child=child)
    except Exception as error:  # noqa: BLE001 - such as a wrong OTEL_PYTHON_TRACER_PROVIDER
        log.warning("Cannot use OpenTelemetry, so there are no spans: %s: %s", type(error).__qualname__, error)
        return None


def is_ready() -> bool:
    """Return whether OpenTelemetry has been imported, and not only begun to be in another thread."""
    trace = sys.modules.get(OPENTELEMETRY)
    return all(hasattr(trace, name) for name in _SPAN_API)


@lru_cache(maxsize=1_024)
def _describe(system: str, name: str, kind: str, destination: str) -> Mapping[str, Any]:
    attributes = {
        "messaging.system": SYSTEMS[system],
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }
    return {**attributes, "messaging.destination.name": destination} if destination else attributes


def describe_event(event_id: str, type_: str, source: str) -> dict[str, Any]:
    """Return the attributes of an event."""
    return {
        "cloudevents.event_id": event_id,
        "cloudevents.event_source": source,
        "cloudevents.event_type": type_,
    }
