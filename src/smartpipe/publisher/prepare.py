"""Prepares an event: from an event to the message that is published. Pure; both publishers use it."""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from smartpipe.envelope.body_encoding import NO_ENCODING, RESERVED_ATTRIBUTES
from smartpipe.envelope.encode import MAX_ID_CHARACTERS, encode, wrap
from smartpipe.envelope.ids import current_cause, next_event_id
from smartpipe.envelope.structure import VALUES_FOR_EACH_OBJECT, has_too_many_values
from smartpipe.envelope.traceparent import (
    OPENTELEMETRY,
    current_traceparent,
    format_trace_header,
    is_sampled,
    read_traceparent,
)
from smartpipe.errors import ConfigError, EventTooLarge, PublishError, PublishFailure
from smartpipe.events import Event, contract_of, text_of
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.keys import sqs_id
from smartpipe.limits import ATTRIBUTE_NAME, MAX_ATTRIBUTES, MAX_DELAY_SECONDS
from smartpipe.message import (
    Attribute,
    Failure,
    NewAttribute,
    OutgoingMessage,
    construct,
    make_attribute,
    size_bytes,
    utf8_length,
)
from smartpipe.topics import FIFO_SUFFIX, Queue, Topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.envelope.body_encoding import BodyEncoding
    from smartpipe.envelope.encode import Envelope

Destination: TypeAlias = Topic | Queue

MANY_VALUES_CHARACTERS = 65_536
"""A shorter body cannot have more values than consumers accept by default."""
RESERVED_PREFIX = "smartpipe_"
"""Message attributes with this prefix are reserved, such as the reason of a dead-letter message."""


# CloudEvents 1.0.2, "Type System": a String has no control characters, surrogates or noncharacters.
_ID = re.compile(rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]{{1,{MAX_ID_CHARACTERS}}}")


class EventContext(NamedTuple):
    """The context of an event that its publisher sets. See PublishOptions; None: the default."""

    event_id: str | None = None
    time: datetime | None = None
    traceparent: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


NO_CONTEXT = EventContext()


class Publication(NamedTuple):
    """An event to publish, and its destination.

    Args:
        attributes: Further message attributes.
        queue: The queue that it is sent to directly; None: it is published to its topic.
        delay_seconds: How long that queue hides it.
        context: Its id, time, trace and cause; None: all have their defaults.
    """

    event: Event
    attributes: Mapping[str, NewAttribute] | None = None
    queue: Queue | None = None
    delay_seconds: float | None = None
    context: EventContext | None = None

    def replace_context(self, **changes: Any) -> Publication:
        """Return it with changes of its context, for middleware: ``publication.replace_context(correlation_id=...)``.

        Raises:
            TypeError: A name is not one of EventContext.
        """
        return self._replace(context=(self.context or NO_CONTEXT)._replace(**changes))

    @property
    def destination(self) -> Destination:
        """The queue, or the topic of the event's class."""
        return self.queue or contract_of(type(self.event)).topic

    @property
    def ordered_group(self) -> tuple[Destination, str] | None:
        """The destination and the group within which events keep their order; None on a standard destination."""
        group = group_id_of(self.event, fifo=True) if self.destination.fifo else None
        return None if group is None else (self.destination, group)

    @property
    def log_message(self) -> str:
        """The text of the log line after it was published."""
        return f"Published to {self.destination.name}"

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of a log line that identify it. Its id is not known until it is prepared."""
        return {"destination": self.destination.name}

    def make_failure(self, failure: Failure) -> PublishFailure:
        """Return the failure of this event, which has no id yet."""
        return PublishFailure(self.event, "", failure.code, failure.detail, failure.retryable)


def read_options(
    *,
    queue: Queue | str | None = None,
    delay_seconds: float | None = None,
    attributes: Mapping[str, NewAttribute] | None = None,
    **context: Any,
) -> tuple[Mapping[str, NewAttribute] | None, Queue | None, float | None, EventContext | None]:
    """Return the options of ``publish`` as the fields of a Publication.

    Raises:
        ConfigError: The queue's name is invalid.
    """
    return (
        attributes,
        queue_of(queue) if queue else None,
        delay_seconds,
        EventContext(**context) if context else None,
    )


def read_many_options(
    **options: Any,
) -> tuple[Mapping[str, NewAttribute] | None, Queue | None, float | None, EventContext | None]:
    """Return the options of ``publish_many`` as the fields of each Publication.

    Raises:
        ConfigError: The queue's name is invalid, or there is an event id, which several events cannot share.
    """
    if options.get("event_id") is not None:
        raise ConfigError(
            f"publish_many(event_id={options['event_id']!r:.100}): each event needs an id of its own, and consumers "
            "would take the second one for a copy; call publish(event, event_id=...) for each"
        )
    return read_options(**options)


class PreparedEvent(NamedTuple):
    """An event with its id, its destination and its message, ready to be sent."""

    event: Event
    event_id: str
    destination: Destination
    message: OutgoingMessage

    @property
    def ordered_group(self) -> tuple[Destination, str | None] | None:
        """The destination and the group within which events keep their order; None on a standard destination."""
        return (self.destination, self.message.group_id) if self.destination.fifo else None

    def make_failure(self, failure: Failure) -> PublishFailure:
        """Return the failure of this event, from the service's failure of its entry."""
        return PublishFailure(self.event, self.event_id, failure.code, failure.detail, failure.retryable)


class PublishReport(NamedTuple):
    """The result of ``publish_many``: the envelope ids of all events, in their order."""

    event_ids: list[str]


def prepare(publication: Publication, *, source: str, encoding: BodyEncoding = NO_ENCODING) -> PreparedEvent:
    """Wrap and encode the event. Its type becomes a message attribute, which filter policies match.

    Args:
        encoding: How large bodies are compressed or offloaded.

    Raises:
        ConfigError: The event's class declares no type.
        EventTooLarge: The event alone exceeds the destination's limit.
        PublishError: SNS or SQS would refuse the message or, worse, drop it silently.
    """
    event, attributes = publication.event, publication.attributes
    if not isinstance(event, Event):
        msg = f"cannot publish a {type(event).__name__}, which is not an Event: {event!r}"
        raise ConfigError(msg)
    contract, queue = type(event).__contract__ or contract_of(type(event)), publication.queue
    destination = queue or contract.topic
    context = publication.context
    event_id = None if context is None else context.event_id
    if event_id is None and current_cause.get() is not None:
        # Events that are equal in these respects share an id sequence, so that a retry derives the same ids.
        alike = contract.type, str(contract.major), queue.name if queue else "", text_of(event, contract.key) or ""
        event_id = next_event_id(*alike)
    envelope, trace_header = wrap(event, source=source, event_id=event_id), None
    if context is not None or OPENTELEMETRY in sys.modules:
        envelope = _set_context(envelope, context or NO_CONTEXT)
        trace_header = _find_trace_header(envelope.traceparent)
    group_id = group_id_of(event, fifo=destination.fifo) if destination.fifo or contract.tenant else None
    if attributes or publication.delay_seconds is not None or destination.fifo:
        _raise_errors(publication, envelope.id, group_id)
    body = encode(envelope)
    all_attributes, attributes_bytes = _type_attribute(envelope.type)
    if attributes:
        all_attributes = {**all_attributes, **{name: make_attribute(value) for name, value in attributes.items()}}
        attributes_bytes = size_bytes("", all_attributes)
    message = OutgoingMessage(
        body,
        (len(body) if body.isascii() else utf8_length(body)) + attributes_bytes,
        all_attributes,
        group_id,
        sqs_id(envelope.id) if destination.fifo else None,
        math.ceil(publication.delay_seconds or 0),
        None,
        trace_header,
    )
    if len(body) > MANY_VALUES_CHARACTERS and has_too_many_values(body, encoding.limit_objects):
        _raise_too_many_values(event, envelope.id, encoding.limit_objects)
    limit = destination.limit_bytes
    if message.size_bytes > encoding.untouched_bytes or message.size_bytes > limit:
        message = encoding.encode(
            message, envelope.id, limit_bytes=limit, free_attributes=MAX_ATTRIBUTES - len(all_attributes)
        )
        if message.size_bytes > limit:
            raise EventTooLarge(event, envelope.id, size_bytes=message.size_bytes, limit_bytes=limit)
    return construct(PreparedEvent, (event, envelope.id, destination, message))


def _find_trace_header(traceparent: str | None) -> str | None:
    """Return the header of AWS X-Ray for an event whose span is sampled."""
    return format_trace_header(traceparent) if traceparent and is_sampled(traceparent) else None


def _set_context(envelope: Envelope, context: EventContext) -> Envelope:
    """Return *envelope* with the context that the caller passed, or else the trace of OpenTelemetry's current span."""
    error = _find_context_error(context)
    if error is not None:
        event_id = "" if context.event_id is not None else envelope.id
        raise PublishError([PublishFailure(envelope.data, event_id, "InvalidContext", error, retryable=False)])
    return envelope._replace(
        time=envelope.time if context.time is None else context.time.astimezone(UTC),
        traceparent=context.traceparent or current_traceparent() or envelope.traceparent,
        correlation_id=context.correlation_id or envelope.correlation_id,
        causation_id=context.causation_id or envelope.causation_id,
    )


def _find_context_error(context: EventContext) -> str | None:
    for name in ("event_id", "correlation_id", "causation_id"):
        value = getattr(context, name)
        if value is not None and not (isinstance(value, str) and _ID.fullmatch(value)):
            length = f" It has {len(value):,} characters." if isinstance(value, str) else ""
            return (
                f"{name}={value!r:.100} must be text of 1 to {MAX_ID_CHARACTERS} characters, without control "
                f"characters: consumers refuse any other.{length}"
            )
    traceparent, time = context.traceparent, context.time
    if traceparent is not None and read_traceparent(traceparent) is None:
        return (
            f"traceparent={traceparent!r:.100} is not one of W3C Trace Context, such as "
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01; for the header of a request, which may be "
            "anything, write traceparent=smartpipe.envelope.read_traceparent(header)"
        )
    if time is not None and not (isinstance(time, datetime) and time.utcoffset() is not None):
        return f"time={time!r:.100} must be a datetime with a time zone, as in datetime.now(UTC)"
    try:
        _ = time and time.astimezone(UTC)
    except OverflowError:
        return f"time={time!r:.100} is outside of the years 1 to 9999 in UTC"
    return None


@lru_cache(maxsize=1024)
def _type_attribute(type_: str) -> tuple[Mapping[str, Attribute], int]:
    """Return the attributes of a message without any of the user's, and their size in bytes."""
    attributes = {TYPE_ATTRIBUTE: Attribute("String", type_)}
    return MappingProxyType(attributes), size_bytes("", attributes)


def _raise_too_many_values(event: Event, event_id: str, limit_objects: int) -> None:
    detail = (
        f"the event has more than {limit_objects:,} objects and arrays, or {limit_objects * VALUES_FOR_EACH_OBJECT:,} "
        "values, and consumers would dead-letter it; split it, or raise SMARTPIPE_PAYLOAD_LIMIT_OBJECTS for publishers "
        "and consumers"
    )
    raise PublishError([PublishFailure(event, event_id, "TooManyValues", detail, retryable=False)])


def _raise_errors(publication: Publication, event_id: str, group_id: str | None) -> None:
    event, attributes, destination = publication.event, publication.attributes, publication.destination
    for code, error in (
        ("InvalidAttribute", _find_attribute_error(attributes) if attributes else None),
        ("InvalidDelay", _find_delay_error(publication)),
        ("MissingKey", _describe_missing_key(event, destination) if destination.fifo and group_id is None else None),
    ):
        if error is not None:
            raise PublishError([PublishFailure(event, event_id, code, error, retryable=False)])


def group_id_of(event: Event, *, fifo: bool) -> str | None:
    """Return the MessageGroupId: of the event's key on FIFO, of its tenant on standard topics and queues.

    SQS accepts 128 characters of ASCII without spaces. Any other value is replaced by its SHA-256. Values of different
    types with the same text are one group, because the text that is sent as ``partitionkey`` orders the events.
    """
    contract = contract_of(type(event))
    value = text_of(event, contract.key if fifo else contract.tenant)
    if not value:
        return None
    return sqs_id(value)


@lru_cache(maxsize=1024)
def queue_of(queue: Queue | str | None) -> Queue | None:
    """Return the queue that a caller has named or passed; None for None."""
    if not queue or isinstance(queue, Queue):
        return queue or None
    return Queue(queue, fifo=queue.endswith(FIFO_SUFFIX))


def _describe_missing_key(event: Event, destination: Destination) -> str:
    key = contract_of(type(event)).key
    reason = f"its key, {key!r}, is empty" if key else "its class declares no key="
    return (
        f"{destination.name!r} is FIFO, so the event needs a key that it is ordered by, but {reason}; set the key, or "
        "publish to a standard topic or queue"
    )


def _find_delay_error(publication: Publication) -> str | None:
    seconds, queue = publication.delay_seconds, publication.queue
    if seconds is None:
        return None
    if queue is None:
        return (
            "SNS has no delays: send the event to a queue, publish(event, queue=..., delay_seconds=...), or use "
            "EventBridge Scheduler to publish it later"
        )
    if queue.fifo:
        return (
            f"SQS has no delay for single messages of a FIFO queue such as {queue.name!r}: declare "
            "Queue(..., fifo=True, delay_seconds=...) to delay them all, or send to a standard queue"
        )
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        return (
            f"delay_seconds={seconds} must be 0 to {MAX_DELAY_SECONDS}, the longest delay of SQS; use EventBridge "
            "Scheduler to send it later than that"
        )
    return None


def _find_attribute_error(attributes: Mapping[str, NewAttribute]) -> str | None:
    if len(attributes) + 1 > MAX_ATTRIBUTES:
        return (
            f"{len(attributes)} attributes and the event's type are more than {MAX_ATTRIBUTES}, and with raw delivery "
            "SNS drops such a message on its way to a queue; move some of them into the event"
        )
    for name, value in attributes.items():
        reserved = name == TYPE_ATTRIBUTE or name in RESERVED_ATTRIBUTES or name.lower().startswith(RESERVED_PREFIX)
        if reserved or not ATTRIBUTE_NAME.fullmatch(name):
            return f"attribute name {name!r} is reserved, or invalid in SQS (letters, digits, '_', '-', inner '.')"
        try:
            make_attribute(value)
        except ValueError as error:
            return f"attribute {name!r} {error}: {value!r:.200}"
    return None
