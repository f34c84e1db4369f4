"""A message on its way to the dead-letter queue, with the reason in one attribute, and on its way back. Pure."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.errors import DecodeError
from smartpipe.message import Attribute, OutgoingMessage, size_bytes
from smartpipe.outgoing import MAX_ATTRIBUTES
from smartpipe.payloads.packing import RESERVED_ATTRIBUTES
from smartpipe.telemetry import trace_id
from smartpipe.topology.model import QUEUE_LIMIT_BYTES

if TYPE_CHECKING:
    from smartpipe.envelope import Envelope
    from smartpipe.handling.settlement import DeadLetter
    from smartpipe.message import Message

REASON_ATTRIBUTE = "smartpipe_dead_letter"
TRACEBACK_CHARACTERS = 4_000
MESSAGE_CHARACTERS = 1_000
_EXPENDABLE = ("traceback", "errors", "attributes", "message")
"""What the reason does without, in this order, when the body leaves no room for it."""


class Where(NamedTuple):
    """Where the delivery ended."""

    service: str
    queue: str
    handler: str | None
    envelope: Envelope | None


def dead_letter(
    message: Message, outcome: DeadLetter, where: Where, *, limit_bytes: int = QUEUE_LIMIT_BYTES
) -> OutgoingMessage:
    """Return *message*'s body and attributes as they were, and the reason as JSON in ``smartpipe_dead_letter``.

    The reason counts as one of SQS's ten attributes: of a message with ten, the last by name moves
    into it, but none that says how to read the body. When the body leaves too little room, the
    reason loses its longest parts first, and is left out (and only logged) in the end: the message itself always goes.
    """
    attributes = _original_attributes(message)
    reason = _reason(message, outcome, where)
    moved = sorted(attributes, key=lambda name: (name not in RESERVED_ATTRIBUTES, name))[MAX_ATTRIBUTES - 1 :]
    if moved:
        reason["attributes"] = {name: _plain(attributes.pop(name)) for name in moved}
    for part in (None, *_EXPENDABLE):
        if part is not None:
            reason.pop(part, None)
        full = {**attributes, REASON_ATTRIBUTE: Attribute("String", json.dumps(reason))}
        size = size_bytes(message.body, full)
        if size <= limit_bytes:
            return OutgoingMessage(message.body, size, full, message.group_id)
    return bare_copy(message)


def bare_copy(message: Message) -> OutgoingMessage:
    """Return *message* as it was before it was ever dead-lettered: with no reason, and with what had moved into it."""
    attributes = _original_attributes(message)
    return OutgoingMessage(message.body, size_bytes(message.body, attributes), attributes, message.group_id)


def reason_of(message: Message) -> dict[str, Any]:
    """Return why *message* was dead-lettered; empty where SQS itself moved it, or SNS could not deliver it."""
    value = message.attributes.get(REASON_ATTRIBUTE, Attribute("String", "")).value
    try:
        reason = json.loads(value)
    except ValueError:
        return {}
    return reason if isinstance(reason, dict) else {}


def _original_attributes(message: Message) -> dict[str, Attribute]:
    attributes = {name: value for name, value in message.attributes.items() if name != REASON_ATTRIBUTE}
    moved = reason_of(message).get("attributes")
    if isinstance(moved, dict):
        attributes = {name: _from_plain(plain) for name, plain in moved.items()} | attributes
    return attributes


def _reason(message: Message, outcome: DeadLetter, where: Where) -> dict[str, Any]:
    error = outcome.error
    reason: dict[str, Any] = {
        "kind": outcome.kind,
        "error_type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": _message(error)[:MESSAGE_CHARACTERS],
        "service": where.service,
        "queue": where.queue,
        "handler": where.handler,
        "message_id": message.message_id,
        "receive_count": message.receive_count,
        "first_seen": _time(message.first_received_at),
        "dead_lettered_at": _time(datetime.now(UTC).timestamp()),
    }
    if where.envelope is not None:
        reason["event_id"] = where.envelope.id
        reason["trace_id"] = trace_id(where.envelope.traceparent)
    if isinstance(error, DecodeError) and error.errors:
        reason["errors"] = error.errors
    if where.handler is not None:
        reason["traceback"] = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
    return reason


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not keep a message from its dead-letter queue
        return "(its text cannot be had)"


def _plain(attribute: Attribute) -> dict[str, str]:
    value = attribute.value
    return {"data_type": attribute.data_type, "value": value if isinstance(value, str) else value.hex()}


def _from_plain(plain: dict[str, str]) -> Attribute:
    data_type, value = plain["data_type"], plain["value"]
    return Attribute(data_type, bytes.fromhex(value) if data_type.startswith("Binary") else value)


def _time(unix_seconds: float | None) -> str | None:
    if unix_seconds is None:
        return None
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
