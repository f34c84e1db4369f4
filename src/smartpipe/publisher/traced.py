"""The spans of publications, for both publishers."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from smartpipe.envelope.traceparent import read_traceparent
from smartpipe.events import Event, contract_of
from smartpipe.names import name_in
from smartpipe.publisher.prepare import NO_CONTEXT
from smartpipe.telemetry.spans import describe_event, find_tracing
from smartpipe.topics import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from smartpipe.message import NewAttribute
    from smartpipe.publisher.prepare import EventContext, PreparedEvent, Publication
    from smartpipe.telemetry.spans import OpenSpan, Tracing

    PublicationFields: TypeAlias = tuple[
        Mapping[str, NewAttribute] | None, Queue | None, float | None, EventContext | None
    ]
    """The fields of a Publication after its event."""
    Traced: TypeAlias = tuple[Iterable[Event], PublicationFields]


def find_publish_tracing(source: str) -> PublishTracing | None:
    """Return the tracing of a publisher if the application has set up OpenTelemetry, or else None."""
    tracing = find_tracing()
    return None if tracing is None else PublishTracing(tracing, source)


class PublishTracing:
    """Makes spans for the publications of one publisher."""

    def __init__(self, tracing: Tracing, source: str) -> None:
        self._tracing = tracing
        self._source = source

    def suppress_others(self) -> AbstractContextManager[None]:
        """Return a context in which instrumentations of requests make no spans."""
        return self._tracing.suppress_others()

    @contextmanager
    def trace_event(self, publication: Publication) -> Iterator[TracedPublication]:
        """Make a span for the block that publishes one event. Prepare the event with ``TracedPublication.prepare``."""
        explicit = publication.context.traceparent if publication.context else None
        if not _is_traceable(publication, explicit):
            yield TracedPublication(publication, None, self._tracing, self._source)
            return
        destination = publication.destination
        system = "sqs" if isinstance(destination, Queue) else "sns"
        with self._trace(system, name_in(destination.name), explicit) as opened:
            yield TracedPublication(publication, opened, self._tracing, self._source)

    @contextmanager
    def trace_many(self, events: Iterable[Event], fields: PublicationFields) -> Iterator[Traced]:
        """Make a span for the block that publishes many events; yield them with fields that name the span as parent.

        Source: the conventions, "Batch publishing" without a span for each message.
        """
        attributes, queue, delay_seconds, context = fields
        explicit = None if context is None else context.traceparent
        if explicit is not None and read_traceparent(explicit) is None:  # it will be refused
            yield events, fields
            return
        with self._trace("sqs" if queue else "sns", name_in(queue.name) if queue else "", explicit) as opened:
            if opened is None:
                yield events, fields
                return
            traced = (context or NO_CONTEXT)._replace(traceparent=opened.traceparent)
            number = count()
            try:
                yield (
                    (event for event, _ in zip(events, number, strict=False)),
                    (attributes, queue, delay_seconds, traced),
                )
            finally:
                self._tracing.set_attributes(opened, {"messaging.batch.message_count": next(number)})

    @contextmanager
    def _trace(self, system: str, destination: str, explicit: str | None) -> Iterator[OpenSpan | None]:
        opened = self._tracing.start_publish(system, destination, explicit)
        failure: BaseException | None = None
        try:
            yield opened
        except BaseException as error:
            failure = error
            raise
        finally:
            if opened is not None:
                self._tracing.end(opened, failure)


class TracedPublication:
    """A publication with its span; None: it has none."""

    def __init__(self, publication: Publication, opened: OpenSpan | None, tracing: Tracing, source: str) -> None:
        self._publication = publication
        self._opened = opened
        self._tracing = tracing
        self._source = source

    def prepare(self, prepare: Callable[[Publication], PreparedEvent]) -> PreparedEvent:
        """Prepare the event with the context of the span, and describe it in the span."""
        if self._opened is None:
            return prepare(self._publication)
        prepared = prepare(self._publication.replace_context(traceparent=self._opened.traceparent))
        type_ = contract_of(type(prepared.event)).type
        self._tracing.set_attributes(self._opened, describe_event(prepared.event_id, type_, self._source))
        return prepared


def _is_traceable(publication: Publication, explicit: str | None) -> bool:
    """Return whether it may have a span. What is no event, or has an invalid traceparent, will be refused."""
    valid = explicit is None or read_traceparent(explicit) is not None
    return valid and isinstance(publication.event, Event) and publication.event.__contract__ is not None
