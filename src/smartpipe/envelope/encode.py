"""Wraps events in envelopes, and encodes envelopes: CloudEvents 1.0 in structured JSON.

Context attributes beyond the core of the specification: ``dataversion`` (the event's major.minor), ``partitionkey``
(CloudEvents partitioning extension), ``traceparent`` (CloudEvents distributed tracing extension), ``correlationid``
and ``causationid`` (CloudEvents correlation extension).
"""

from __future__ import annotations

import os
import re
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from smartpipe.envelope.serialize import UnreadableData, get_serializer
from smartpipe.envelope.traceparent import new_traceparent
from smartpipe.errors import PublishError, PublishFailure
from smartpipe.events import contract_of, text_of
from smartpipe.message import construct

if TYPE_CHECKING:
    from smartpipe.events import Event

MAX_ID_CHARACTERS = 256
"""The maximum length of an event's id, source and partition key, and of correlation and causation ids."""

# A URI-reference (RFC 3986, section 4.1 and appendix A), in parts.
_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}"
_URI_REFERENCE = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*:|(?![^/?#]*:))"  # a scheme; without one, the first segment has no colon
    rf"(?://(?:{_CHARACTER}|\[[0-9A-Fa-f:.]+\])*(?=[/?#]|$))?"  # an authority
    rf"(?:{_CHARACTER}|/)*"  # a path
    rf"(?:\?(?:{_CHARACTER}|[/?])*)?"  # a query
    rf"(?:#(?:{_CHARACTER}|[/?])*)?"  # a fragment
)

# SQS refuses these two in a body (SendMessage, "valid characters"). JSON allows them as escapes.
_REFUSED_CHARACTERS = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}
# The highest two bits of a UUID's ninth byte are 10 (RFC 9562, section 4.1).
_VARIANT = {f"{digit:x}": f"{8 | digit & 3:x}" for digit in range(16)}


class Envelope(NamedTuple):
    """An event with its context.

    Args:
        version: The producer's major.minor of the event, which may differ from the consumer's.
        time: When the event was published, by the producer's clock; None if the producer did not send it.
        causation_id: The id of the event whose handler published this one.
        correlation_id: The id of the first event in that chain.
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
"""Set for each handler, in its task or thread. Events that the handler publishes continue its trace and causation."""


def source_errors(owner: str, source: str) -> list[str]:
    """Return the errors in the CloudEvents ``source`` of *owner*, such as a Publisher."""
    if not source or not isinstance(source, str):
        return [f"{owner}: source is empty; name the component, as in 'signup-api'"]
    if len(source) > MAX_ID_CHARACTERS:
        return [f"{owner}: source has {len(source):,} characters; consumers accept at most {MAX_ID_CHARACTERS}"]
    if not _URI_REFERENCE.fullmatch(source):
        wrong = next((one for one in source if not re.fullmatch(rf"{_CHARACTER}|[/?#%\[\]]", one)), "")
        why = f"it contains {wrong!r}" if wrong else "its characters are in the wrong places"
        error = f"{owner}: source {source!r} is not a URI reference, as CloudEvents requires: {why}"
        return [f"{error}; write a name such as 'signup-api', a path or a URI, and percent-encode other characters"]
    return []


def new_event_id() -> str:
    """Return a UUID version 7 (RFC 9562, section 5.7): unique, and sorted by time, which suits database indexes."""
    return format_uuid("7", f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex())


def format_uuid(version: str, moment: str, bits: str) -> str:
    """Return a UUID of the *version*, with 12 hex digits of time and the first 19 hex digits of *bits*."""
    return f"{moment[:8]}-{moment[8:]}-{version}{bits[:3]}-{_VARIANT[bits[3]]}{bits[4:7]}-{bits[7:19]}"


def wrap(event: Event, *, source: str, event_id: str | None = None) -> Envelope:
    """Return *event* with its context: id, time, and the trace and causation of the event that is being handled.

    Args:
        event_id: By default a new id.

    Raises:
        ConfigError: The event's class does not declare a type.
    """
    contract = type(event).__contract__ or contract_of(type(event))
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
            text_of(event, contract.key) if contract.key else None,
            (cause.traceparent if cause else None) or new_traceparent(),  # no span was made here, so no new id
            (cause.correlation_id or cause.id) if cause else event_id,
            cause.id if cause else None,
        ),
    )


def encode(envelope: Envelope) -> str:
    """Return the envelope as structured JSON, with the data by alias.

    Raises:
        PublishError: The data contains a value that JSON in UTF-8 cannot represent, such as a lone surrogate, or that
            the event's class would refuse or change when it reads the data.
    """
    event = envelope.data
    try:
        serializer = get_serializer(type(event))
        if serializer.is_plain and type(event.__pydantic_fields_set__) is set:  # see _mark_unvalidated
            data = event.__pydantic_serializer__.to_json(event, by_alias=True).decode()
        else:
            data = serializer.serialize(event)
    except (UnreadableData, PydanticSerializationError, UnicodeError) as error:
        detail = f"the event cannot be written as JSON that consumers can read: {error}"
        failure = PublishFailure(event, envelope.id, "InvalidContent", detail, retryable=False)
        raise PublishError([failure]) from error
    moment = f'","time":{to_json(envelope.time).decode()}' if envelope.time else '"'
    event_id = _escape_id(envelope.id)
    parts = [_head(envelope.type, envelope.version, envelope.source), event_id, moment]
    if envelope.key is not None and len(envelope.key) <= MAX_ID_CHARACTERS:  # consumers ignore longer ones
        parts.append(f',"partitionkey":{to_json(envelope.key).decode()}')
    if envelope.traceparent is not None:
        parts.append(f',"traceparent":"{envelope.traceparent}"')
    if envelope.correlation_id is envelope.id:
        parts.append(f',"correlationid":"{event_id}"')
    elif envelope.correlation_id is not None:
        parts.append(f',"correlationid":{to_json(envelope.correlation_id).decode()}')
    if envelope.causation_id is not None:
        parts.append(f',"causationid":{to_json(envelope.causation_id).decode()}')
    parts.append(f',"data":{data}}}')
    body = "".join(parts)
    if "\ufffe" in body or "\uffff" in body:
        body = body.translate(_REFUSED_CHARACTERS)
    return body


def _escape_id(event_id: str) -> str:
    """Return the id as it appears in a JSON string. Ids of our own have nothing to escape."""
    if event_id.isprintable() and '"' not in event_id and "\\" not in event_id:
        return event_id
    return to_json(event_id).decode()[1:-1]


@lru_cache(maxsize=1024)
def _head(type_: str, version: str, source: str) -> str:
    """Return the start of an envelope, which is the same for all events of one class and source."""
    return (
        f'{{"specversion":"1.0","type":"{type_}","dataversion":"{version}",'
        f'"datacontenttype":"application/json","source":{to_json(source).decode()},"id":"'
    )
