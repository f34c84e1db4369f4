"""Dead letters as people look at them, and which of them are meant. Pure.

A dead-letter queue holds what no decoder took, so nothing here may fail or grow because of what is in a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from json import JSONEncoder
from typing import TYPE_CHECKING, Annotated, NamedTuple, NotRequired

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.consumer.dead_letter import reason_of
from smartpipe.envelope.body_encoding import decompress_body
from smartpipe.envelope.fields import TextOrNone
from smartpipe.envelope.notification import EncodedBody, unwrap
from smartpipe.envelope.pointer import is_pointer, read_pointer
from smartpipe.envelope.structure import has_too_many_values
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.errors import MessageError
from smartpipe.filter_policy import TYPE_ATTRIBUTE

if TYPE_CHECKING:
    from smartpipe.consumer.dead_letter import Reason
    from smartpipe.message import Message

UNPACKED_LIMIT_BYTES = 4_194_304
"""A longer body is not unpacked to be looked at."""
LIMIT_OBJECTS = 65_536
"""Nor is the data of a body with more objects and arrays shown as data."""
NO_REASON = "none"
"""The kind of those that SQS itself moved, after too many receives, or that SNS could not deliver."""


class _Context(TypedDict):
    """What tells one event from another."""

    id: NotRequired[Annotated[object, TextOrNone()]]
    type: NotRequired[Annotated[object, TextOrNone()]]
    source: NotRequired[Annotated[object, TextOrNone()]]


_context = build_bounded_validator(TypeAdapter(_Context))


class DeadLetterMessage(NamedTuple):
    """A message in a dead-letter queue, with what can be read of its event; None where nothing can.

    Args:
        reason: What its worker wrote on it; empty for ``NO_REASON``.
    """

    message: Message
    event_id: str | None
    event_type: str | None
    source: str | None
    reason: Reason

    @property
    def kind(self) -> str:
        """Why it is here, in a word."""
        return self.reason.get("kind") or NO_REASON

    @property
    def error(self) -> str:
        """The type and the text of the exception that was raised."""
        type_ = self.reason.get("error_type", "").removeprefix("builtins.")
        return f"{type_}: {self.reason.get('message', '')}" if self.reason else ""

    @property
    def name(self) -> str:
        """What tells it apart: its event's id, or its message's where it is no event."""
        return self.event_id or self.message.message_id


def read_message(message: Message) -> DeadLetterMessage:
    """Read what can be read: whatever is in a body, also what no decoder takes, becomes a letter.

    A body that waits in S3 is left there: its type is in the attributes, and its key ends with its event's id. The
    event's data is parsed, and then dropped, but never made into Python objects.
    """
    reason = reason_of(message)
    try:
        if is_pointer(message.attributes):
            # Others write other keys; what smartpipe publishes has its type beside it.
            type_, key = _type_of(message), read_pointer(message.body).key
            return DeadLetterMessage(message, (key.rpartition("/")[2] or None) if type_ else None, type_, None, reason)
        context = _context(_json_of(message)) or {}
    except (ValidationError, MessageError, EncodedBody):
        context = {}
    return DeadLetterMessage(message, context.get("id"), context.get("type"), context.get("source"), reason)


def preview(message: Message, limit_characters: int) -> str:
    """Return the beginning of the event's data as JSON, or of the body where no data can be read."""
    try:
        body = "" if is_pointer(message.attributes) else _json_of(message)
        found = None if has_too_many_values(body, LIMIT_OBJECTS) else from_json(body)
    except (ValueError, MessageError, EncodedBody):
        found = None
    if not isinstance(found, dict) or "data" not in found:
        return message.body[:limit_characters]
    # An encoder yields at least a character a chunk, and nothing behind the last one is encoded.
    chunks = JSONEncoder(ensure_ascii=False).iterencode(found["data"])
    return "".join(islice(chunks, limit_characters))[:limit_characters]


def _json_of(message: Message) -> str:
    """Return the text of the event: unpacked, and out of SNS's envelope."""
    body = decompress_body(message.body, message.attributes, UNPACKED_LIMIT_BYTES)
    return unwrap(body) or body


def _type_of(message: Message) -> str | None:
    found = message.attributes.get(TYPE_ATTRIBUTE)
    return found.value if found and isinstance(found.value, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters are meant: those that fit all that is given; by default all.

    Args:
        types: One of these event types.
        reasons: One of these kinds; or a text that the error's type or words contain, in any case.
        ids: One of these ids of events, or of messages.
        sent_before: Unix seconds.
        limit: Not more than so many.
    """

    types: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    sent_before: float | None = None
    limit: int | None = None

    @property
    def filters(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.types or self.reasons or self.ids or self.sent_before is not None)

    def takes(self, letter: DeadLetterMessage) -> bool:
        """Return whether *letter* is meant."""
        return (
            (not self.types or letter.event_type in self.types)
            and (not self.reasons or any(_is_reason(reason, letter) for reason in self.reasons))
            and (not self.ids or letter.event_id in self.ids or letter.message.message_id in self.ids)
            and (self.sent_before is None or _sent_by(letter, self.sent_before))
        )


def existed_before(letter: DeadLetterMessage, until: float) -> bool:
    """Return whether it was sent by then; one that its broker gives no time was."""
    return letter.message.sent_at is None or _sent_by(letter, until)


def _sent_by(letter: DeadLetterMessage, moment: float) -> bool:
    sent_at = letter.message.sent_at
    return sent_at is not None and sent_at <= moment


def _is_reason(wanted: str, letter: DeadLetterMessage) -> bool:
    return wanted == letter.kind or wanted.lower() in letter.error.lower()
