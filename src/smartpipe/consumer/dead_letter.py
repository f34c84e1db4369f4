"""Adds the reason to a message on its way to the dead-letter queue, in one attribute, and removes it again. Pure."""

from __future__ import annotations

import json
import re
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NotRequired

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES
from smartpipe.envelope.traceparent import trace_id
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.errors import DecodeError
from smartpipe.events import Event
from smartpipe.limits import ATTRIBUTE_NAME, MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, MESSAGE_TEXT
from smartpipe.message import Attribute, OutgoingMessage, size_bytes

if TYPE_CHECKING:
    from smartpipe.consumer.decide import DeadLetter
    from smartpipe.envelope.encode import Envelope
    from smartpipe.message import Message

REASON_ATTRIBUTE = "smartpipe_dead_letter"
TRACEBACK_CHARACTERS = 4_000
MESSAGE_CHARACTERS = 1_000
_EXPENDABLE = ("traceback", "errors", "message")
"""The parts that the reason loses, in this order, if the body leaves no space for it."""

_DATA_TYPE = r"^(String|Number|Binary)(\.[ -~]{1,249})?$"
_NUMBER = re.compile(r"[+-]?[0-9]{1,38}(\.[0-9]{1,126})?")
_Name = Annotated[str, StringConstraints(max_length=1_024)]
_Text = Annotated[str, StringConstraints(max_length=8_000)]
_Moment = Annotated[str, StringConstraints(pattern=r"^[0-9T:.+-]{1,40}$")]


class _MovedAttribute(TypedDict):
    """An attribute that was moved into the reason, to make space for it."""

    data_type: Annotated[str, StringConstraints(pattern=_DATA_TYPE)]
    value: Annotated[str, StringConstraints(min_length=1)]


class _Error(TypedDict):
    """One of Pydantic's validation errors."""

    type: _Name
    loc: Annotated[list[int | _Name], Field(max_length=1_000)]
    msg: _Text


class Reason(TypedDict, total=False):
    """Why a message was dead-lettered, as its worker wrote it into ``smartpipe_dead_letter``.

    Every producer can set that attribute, so every field has a type and a limit, and an attribute that does not
    validate is not a reason. The reason decides nothing except which messages ``smartpipe dlq`` prints and selects.
    """

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
    error_type: _Name
    message: _Text
    service: _Name
    queue: _Name
    handler: _Name | None
    message_id: _Name
    receive_count: Annotated[int, Field(ge=0, le=1_000_000)]
    first_seen: _Moment | None
    dead_lettered_at: _Moment | None
    event_id: NotRequired[_Name]
    event_type: NotRequired[_Name]
    trace_id: NotRequired[_Name | None]
    errors: NotRequired[Annotated[list[_Error], Field(max_length=100)]]
    traceback: NotRequired[_Text]
    attributes: NotRequired[Annotated[dict[_Name, _MovedAttribute], Field(max_length=MAX_ATTRIBUTES)]]


_validate_reason = build_bounded_validator(TypeAdapter(Reason))


class FailedDelivery(NamedTuple):
    """The delivery that led to the dead-letter queue."""

    service: str
    queue: str
    handler: str | None
    envelope: Envelope | None


def copy_with_reason(
    message: Message, outcome: DeadLetter, delivery: FailedDelivery, *, limit_bytes: int = MAX_MESSAGE_BYTES
) -> OutgoingMessage:
    """Return the message's body and attributes unchanged, with the reason as JSON in ``smartpipe_dead_letter``.

    The reason is one of the ten attributes that SQS allows. If the message has ten already, the last by name moves into
    the reason, but never one that is needed to read the body. If the body leaves too little space, the reason loses
    its longest parts first. In the end it is left out, and only logged: the message itself is always sent, with all its
    attributes.
    """
    attributes = _original_attributes(message)
    reason = _build_reason(message, outcome, delivery)
    moved = sorted(attributes, key=lambda name: (name not in RESERVED_ATTRIBUTES, name))[MAX_ATTRIBUTES - 1 :]
    if moved:
        plain = {name: _to_plain(attributes[name]) for name in moved}
        if any(_from_plain(name, plain[name]) != attributes[name] for name in moved):
            return copy_without_reason(message)  # its form could not be restored from the reason
        reason["attributes"] = plain
        attributes = {name: value for name, value in attributes.items() if name not in plain}
    for part in (None, *_EXPENDABLE):
        if part is not None:
            reason.pop(part, None)
        full = {**attributes, REASON_ATTRIBUTE: Attribute("String", json.dumps(reason))}
        size = size_bytes(message.body, full)
        if size <= limit_bytes:
            return OutgoingMessage(message.body, size, full, message.group_id, trace_header=message.trace_header)
    return copy_without_reason(message)


def copy_without_reason(message: Message) -> OutgoingMessage:
    """Return *message* as it was before it was dead-lettered: without the reason, and with all its attributes."""
    attributes = _original_attributes(message)
    size = size_bytes(message.body, attributes)
    return OutgoingMessage(message.body, size, attributes, message.group_id, trace_header=message.trace_header)


def remove_reason(message: Message) -> Message:
    """Return *message* with the attributes that its producer set."""
    return message._replace(attributes=_original_attributes(message))


def reason_of(message: Message) -> Reason:
    """Return why *message* was dead-lettered.

    The reason is empty if SQS itself moved the message (its ``DeadLetterQueueSourceArn`` says so), if SNS could not
    deliver it, or if no smartpipe worker can have written the attribute.
    """
    return {} if message.moved_from else _read_reason(message)


def _read_reason(message: Message) -> Reason:
    attribute = message.attributes.get(REASON_ATTRIBUTE)
    if attribute is None or not isinstance(attribute.value, str):
        return {}
    try:
        reason: Reason | None = _validate_reason(attribute.value)
    except ValidationError:  # also if it is not JSON
        reason = None
    return reason if reason and "kind" in reason else {}


def _original_attributes(message: Message) -> dict[str, Attribute]:
    """Return the attributes that the producer set: without the reason, and with those that were moved into it.

    A producer can forge a reason, and so restore only attributes that it could have set as well.
    """
    attributes = {name: value for name, value in message.attributes.items() if name != REASON_ATTRIBUTE}
    if len(attributes) == len(message.attributes):
        return attributes
    moved = {
        name: attribute
        for name, plain in _read_reason(message).get("attributes", {}).items()
        if name not in message.attributes and (attribute := _from_plain(name, plain)) is not None
    }
    return moved | attributes if len(moved) + len(attributes) <= MAX_ATTRIBUTES else attributes


def _build_reason(message: Message, outcome: DeadLetter, delivery: FailedDelivery) -> dict[str, Any]:
    error = outcome.error
    reason: dict[str, Any] = {
        "kind": outcome.kind,
        "error_type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": _escape_surrogates(_describe(error))[:MESSAGE_CHARACTERS],
        "service": delivery.service,
        "queue": delivery.queue,
        "handler": delivery.handler,
        "message_id": message.message_id,
        "receive_count": message.receive_count,
        "first_seen": _format_time(message.first_received_at),
        "dead_lettered_at": _format_time(datetime.now(UTC).timestamp()),
    }
    if delivery.envelope is not None:
        reason["event_id"] = delivery.envelope.id
        reason["trace_id"] = trace_id(delivery.envelope.traceparent)
        if not isinstance(delivery.envelope.data, Event):
            reason["event_type"] = delivery.envelope.type  # the body of a message for a raw handler has none
    if isinstance(error, DecodeError) and error.errors:
        reason["errors"] = error.errors
    if delivery.handler is not None:
        lines = traceback.format_exception(error)
        reason["traceback"] = _escape_surrogates("".join(lines))[-TRACEBACK_CHARACTERS:]
    return reason


def _escape_surrogates(text: str) -> str:
    """Return *text* as it can be read back: Pydantic refuses JSON with a lone surrogate.

    An exception has them if it names a file, or an argument, that is not in UTF-8.
    """
    return text.encode(errors="backslashreplace").decode()


def _describe(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep a message from its dead-letter queue
        return "(its text is not available)"


def _to_plain(attribute: Attribute) -> _MovedAttribute:
    value = attribute.value
    return {"data_type": attribute.data_type, "value": value if isinstance(value, str) else value.hex()}


def _from_plain(name: str, plain: _MovedAttribute) -> Attribute | None:
    """Return the attribute, or None if SQS would refuse it."""
    data_type, value = plain["data_type"], plain["value"]
    if not ATTRIBUTE_NAME.fullmatch(name):
        return None
    if data_type.startswith("Binary"):
        try:
            return Attribute(data_type, bytes.fromhex(value))
        except ValueError:
            return None
    form = _NUMBER if data_type.startswith("Number") else MESSAGE_TEXT
    return Attribute(data_type, value) if form.fullmatch(value) else None


def _format_time(unix_seconds: float | None) -> str | None:
    if unix_seconds is None:
        return None
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
