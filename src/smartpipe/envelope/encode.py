"""The envelope: CloudEvents 1.0 in structured JSON. Here it is wrapped and encoded; ``decoder`` reads it.

Context attributes beyond the specification's core: ``dataversion`` (the event's major.minor),
``partitionkey`` (CloudEvents partitioning extension), ``traceparent`` (CloudEvents distributed
tracing extension), ``correlationid`` and ``causationid`` (CloudEvents correlation extension).
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from smartpipe.envelope.ids import new_event_id
from smartpipe.envelope.traceparent import child_of, new_traceparent
from smartpipe.errors import PublishError, PublishFailure
from smartpipe.events import contract_of, text_of
from smartpipe.message import construct

if TYPE_CHECKING:
    from smartpipe.events import Event

MAX_ID_CHARACTERS = 256
"""Of an event's id, source and partition key, and of correlation and causation ids."""

# SQS refuses these two in a body (SendMessage, "valid characters"); JSON lets us write them as escapes.
_REFUSED_CHARACTERS = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}


class Envelope(NamedTuple):
    """An event with its context.

    Args:
        version: The producer's major.minor of the event, not necessarily the consumer's.
        time: When the event was published, by the producer's clock; None where it did not say.
        causation_id: The id of the event whose handler published this one.
        correlation_id: The id of the first event of that chain.
    """

    id: str
    source: str
    type: str
    version: str
    time: datetime | None
    data: Event
    key: str | None = None
    traceparent: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


current_envelope: ContextVar[Envelope | None] = ContextVar("smartpipe_current_envelope", default=None)
"""Set around each handler, in its task or thread: what it publishes goes on with this one's trace and causation."""


def source_problems(owner: str, source: str) -> list[str]:
    """Return what is wrong with the CloudEvents ``source`` that *owner*, such as a Publisher, was given."""
    if not source:
        return [f"{owner}: source is empty; name the component, as in 'signup-api'"]
    if len(source) > MAX_ID_CHARACTERS:
        return [f"{owner}: source has {len(source):,} characters, and consumers take at most {MAX_ID_CHARACTERS}"]
    return []


def wrap(event: Event, *, source: str, event_id: str | None = None) -> Envelope:
    """Give *event* its context: an id and the time, and trace and causation of the event being handled.

    Args:
        event_id: By default a new one.

    Raises:
        ConfigError: The event's class declares no type.
    """
    contract = contract_of(type(event))
    cause = current_envelope.get()
    event_id = event_id or new_event_id()
    return construct(
        Envelope,
        (
            event_id,
            source,
            contract.type,
            contract.version,
            datetime.now(UTC),
            event,
            text_of(event, contract.key),
            child_of(cause.traceparent) if cause and cause.traceparent else new_traceparent(),
            (cause.correlation_id or cause.id) if cause else event_id,
            cause.id if cause else None,
        ),
    )


def encode(envelope: Envelope) -> str:
    """Write the structured JSON form; the data by Pydantic in one pass, by alias.

    Raises:
        PublishError: The data has what JSON in UTF-8 cannot say, such as a lone surrogate.
    """
    event = envelope.data
    try:
        data = type(event).__pydantic_serializer__.to_json(event, by_alias=True).decode()
    except (PydanticSerializationError, UnicodeError) as error:
        detail = f"the event cannot be written as JSON: {error}"
        failure = PublishFailure(event, envelope.id, "InvalidContent", detail, retryable=False)
        raise PublishError([failure]) from error
    moment = f'","time":{to_json(envelope.time).decode()}' if envelope.time else '"'
    parts = [_head(envelope.type, envelope.version, envelope.source), envelope.id, moment]
    if envelope.key is not None and len(envelope.key) <= MAX_ID_CHARACTERS:  # consumers ignore longer ones
        parts.append(f',"partitionkey":{to_json(envelope.key).decode()}')
    if envelope.traceparent is not None:
        parts.append(f',"traceparent":"{envelope.traceparent}"')
    if envelope.correlation_id is envelope.id:
        parts.append(f',"correlationid":"{envelope.id}"')
    elif envelope.correlation_id is not None:
        parts.append(f',"correlationid":{to_json(envelope.correlation_id).decode()}')
    if envelope.causation_id is not None:
        parts.append(f',"causationid":{to_json(envelope.causation_id).decode()}')
    parts.append(f',"data":{data}}}')
    body = "".join(parts)
    if "\ufffe" in body or "\uffff" in body:
        body = body.translate(_REFUSED_CHARACTERS)
    return body


@lru_cache(maxsize=1024)
def _head(type_: str, version: str, source: str) -> str:
    """Everything of an envelope that is the same for all events of one class and source."""
    return (
        f'{{"specversion":"1.0","type":"{type_}","dataversion":"{version}",'
        f'"datacontenttype":"application/json","source":{to_json(source).decode()},"id":"'
    )
