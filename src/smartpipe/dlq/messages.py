"""Dead-letter messages with the readable parts of their events, and the selection of such messages. Pure.

A dead-letter queue contains messages that no decoder accepted. So no function here may fail, or use much memory,
because of the content of a message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from json import JSONEncoder
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.consumer.dead_letter import reason_of, remove_reason
from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES, decompress_body
from smartpipe.envelope.fields import TextOrNone
from smartpipe.envelope.notification import read_notification
from smartpipe.envelope.other_data import is_binary_mode, read_binary_context
from smartpipe.envelope.pointer import is_pointer, read_pointer
from smartpipe.envelope.structure import has_too_many_values
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.errors import MessageError
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.names import name_in

if TYPE_CHECKING:
    from smartpipe.consumer.dead_letter import Reason
    from smartpipe.message import Message

DECOMPRESSED_LIMIT_BYTES = 4_194_304
"""A body that would be longer is not decompressed."""
LIMIT_OBJECTS = 65_536
"""If a body has more objects and arrays, its text is shown instead of its data."""
NO_REASON = "none"
"""The kind of messages that SQS itself moved, after too many receives, or that SNS could not deliver."""


_Text = Annotated[object, TextOrNone()]
_Context = TypedDict(
    "_Context",
    {
        "specversion": _Text,
        "id": _Text,
        "type": _Text,
        "source": _Text,
        "dataversion": _Text,
        "detail-type": _Text,
    },
    total=False,
)
"""The context attributes that identify an event. The last is of EventBridge."""

_context = build_bounded_validator(TypeAdapter(_Context))


class DeadLetterMessage(NamedTuple):
    """A message in a dead-letter queue, with the readable attributes of its event; None for those it lacks.

    Args:
        reason: The reason that the worker added; empty for ``NO_REASON``.
        version: The ``major.minor`` in which the event was sent.
    """

    message: Message
    event_id: str | None
    event_type: str | None
    source: str | None
    reason: Reason
    version: str | None = None

    @property
    def kind(self) -> str:
        """The kind of its reason, such as ``retries-exhausted``."""
        return self.reason.get("kind") or NO_REASON

    @property
    def error(self) -> str:
        """The type and the text of the exception that was raised."""
        type_ = self.reason.get("error_type", "").removeprefix("builtins.")
        return f"{type_}: {self.reason.get('message', '')}" if self.reason else ""

    @property
    def queue(self) -> str | None:
        """The name, logical or physical, of the queue that it came from; None if SNS could not deliver it."""
        origin = self.message.moved_from or self.reason.get("queue")
        return name_in(origin) if origin else None

    @property
    def name(self) -> str:
        """The id of its event, or of the message if it is not an event."""
        return self.event_id or self.message.message_id


def read_message(message: Message) -> DeadLetterMessage:
    """Read the attributes of the event. Every message can be read, even one that no decoder accepts.

    A body in S3 is not fetched: the type is in the message attributes, and the key ends with the event's id. The data
    of the event is parsed and discarded, but never converted to Python objects.
    """
    reason = reason_of(message)
    context, data_type = _read_context(_unwrap(remove_reason(message)))
    # The worker knew these of a message for a raw handler, whose body may have such fields with another meaning.
    known = reason if "event_type" in reason else {}
    event_id = known.get("event_id") or context.get("id") or reason.get("event_id")
    event_type = known.get("event_type") or context.get("type") or data_type
    return DeadLetterMessage(message, event_id, event_type, context.get("source"), reason, context.get("dataversion"))


def _read_context(message: Message) -> tuple[dict[str, Any], str | None]:
    """Return the context attributes of the event, and the ``detail-type`` of an event of EventBridge."""
    try:
        pointer = read_pointer(message.body) if is_pointer(message.attributes) else None
        context = _context(_json_of(message)) or {} if pointer is None else {}
    except (ValidationError, MessageError):
        pointer, context = None, {}
    if not context.get("specversion") and is_binary_mode(message.attributes):
        binary = _context(json.dumps(read_binary_context(message.attributes))) or {}
        if all(map(binary.get, ("id", "source", "type"))):
            return binary, None
    if pointer is None:
        return context, context.get("detail-type")
    # Other programs write other keys. A message from smartpipe has the type attribute.
    type_ = _type_of(message)
    return {"type": type_, "id": (pointer.key.rpartition("/")[2] or None) if type_ else None}, None


def preview(message: Message, limit_characters: int) -> str:
    """Return the beginning of the event's data as JSON, or of the body if there is no readable data."""
    try:
        inner = _unwrap(message)
        body = "" if is_pointer(inner.attributes) else _json_of(inner)
        envelope = None if has_too_many_values(body, LIMIT_OBJECTS) else from_json(body)
    except (ValueError, MessageError):
        envelope = None
    if not isinstance(envelope, dict) or "data" not in envelope or "specversion" not in envelope:
        return message.body[:limit_characters]
    # Each chunk of the encoder has at least one character, so this encodes at most limit_characters chunks.
    chunks = JSONEncoder(ensure_ascii=False).iterencode(envelope["data"])
    return "".join(islice(chunks, limit_characters))[:limit_characters]


def _unwrap(message: Message) -> Message:
    """Return *message* as in a raw delivery, without an SNS notification around it."""
    encoded = not RESERVED_ATTRIBUTES.isdisjoint(message.attributes)
    found = None if encoded else read_notification(message.body)
    if found is None:
        return message
    return message._replace(body=found.message, attributes={**found.attributes, **message.attributes})


def _json_of(message: Message) -> str:
    """Return the JSON text of the event, decompressed."""
    return decompress_body(message.body, message.attributes, DECOMPRESSED_LIMIT_BYTES)


def _type_of(message: Message) -> str | None:
    attribute = message.attributes.get(TYPE_ATTRIBUTE)
    return attribute.value if attribute and isinstance(attribute.value, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selects the messages that match all its filters. By default it selects all messages.

    Args:
        types: The event type is one of these.
        reasons: The kind of the reason is one of these; or the type or text of the error contains one of these, in
            upper or lower case.
        ids: The id of the event, or of the message, is one of these.
        sent_before: Unix seconds.
        queues: The message came from a queue that has one of these names, or it is not known where it came from.
        limit: The maximum number of messages in each queue.
    """

    types: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    sent_before: float | None = None
    queues: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def has_filters(self) -> bool:
        """Whether there is a filter. The limit and the queues are not one."""
        return bool(self.types or self.reasons or self.ids or self.sent_before is not None)

    def matches(self, dead_letter: DeadLetterMessage) -> bool:
        """Return whether the message matches all filters."""
        return (
            (not self.types or dead_letter.event_type in self.types)
            and (not self.reasons or any(_has_reason(dead_letter, reason) for reason in self.reasons))
            and (not self.ids or dead_letter.event_id in self.ids or dead_letter.message.message_id in self.ids)
            and (not self.queues or dead_letter.queue in (None, *self.queues))
            and (self.sent_before is None or _sent_by(dead_letter, self.sent_before))
        )


def existed_before(dead_letter: DeadLetterMessage, until: float) -> bool:
    """Return whether the message was sent by then. If its broker does not report a time, assume that it was."""
    return dead_letter.message.sent_at is None or _sent_by(dead_letter, until)


def _sent_by(dead_letter: DeadLetterMessage, moment: float) -> bool:
    sent_at = dead_letter.message.sent_at
    return sent_at is not None and sent_at <= moment


def _has_reason(dead_letter: DeadLetterMessage, reason: str) -> bool:
    return reason == dead_letter.kind or reason.lower() in dead_letter.error.lower()
