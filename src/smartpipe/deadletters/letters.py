"""Dead letters as people look at them, and which of them are meant. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from smartpipe.consuming.deadletter import reason_of
from smartpipe.envelope.decoder import Packed, unwrapped
from smartpipe.errors import DecodeError, PayloadError
from smartpipe.payloads.payloads import unpacked
from smartpipe.payloads.pointer import is_pointer, payload_at
from smartpipe.topology.filters import TYPE_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import Message

UNPACKED_LIMIT_BYTES = 16_777_216
"""More is not unpacked to be looked at."""
NO_REASON = "none"
"""The kind of those that SQS itself moved, after too many receives, or that SNS could not deliver."""


class Letter(NamedTuple):
    """A message in a dead-letter queue, with what can be read of its event; None where nothing can.

    Args:
        data: The event's own, as JSON has it.
        reason: What its worker wrote on it; empty for ``NO_REASON``.
    """

    message: Message
    event_id: str | None
    event_type: str | None
    source: str | None
    data: Any
    reason: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Why it is here, in a word."""
        return str(self.reason.get("kind") or NO_REASON)

    @property
    def error(self) -> str:
        """What was raised, by its type and in its words."""
        type_ = str(self.reason.get("error_type", "")).removeprefix("builtins.")
        return f"{type_}: {self.reason.get('message', '')}" if self.reason else ""

    @property
    def name(self) -> str:
        """What tells it apart: its event's id, or its message's where it is no event."""
        return self.event_id or self.message.message_id


def read_letter(message: Message) -> Letter:
    """Read what can be read: whatever is in a body, also what no decoder takes, becomes a letter.

    A body that waits in S3 is left there: its type stands in the attributes, and its key ends with its event's id.
    """
    attributes = message.attributes
    try:
        if is_pointer(attributes):
            # Others write other keys; what smartpipe publishes has its type beside it.
            type_, key = _type_of(message), payload_at(message.body).key
            body: Any = {"id": key.rpartition("/")[2] if type_ else None, "type": type_}
        else:
            packed = unpacked(message.body, attributes, UNPACKED_LIMIT_BYTES)
            body = from_json(unwrapped(packed) or packed)
    except (ValueError, DecodeError, PayloadError, Packed):
        body = None
    context = body if isinstance(body, dict) else {}
    event_id, event_type, source = (
        found if isinstance(found := context.get(name), str) else None for name in ("id", "type", "source")
    )
    return Letter(message, event_id, event_type, source, context.get("data"), reason_of(message))


def _type_of(message: Message) -> object:
    found = message.attributes.get(TYPE_ATTRIBUTE)
    return found.value if found else None


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

    def takes(self, letter: Letter) -> bool:
        """Return whether *letter* is meant."""
        return (
            (not self.types or letter.event_type in self.types)
            and (not self.reasons or any(_is_reason(reason, letter) for reason in self.reasons))
            and (not self.ids or letter.event_id in self.ids or letter.message.message_id in self.ids)
            and (self.sent_before is None or _sent_by(letter, self.sent_before))
        )


def was_there(letter: Letter, until: float) -> bool:
    """Return whether it was sent by then; one that its broker gives no time was."""
    return letter.message.sent_at is None or _sent_by(letter, until)


def _sent_by(letter: Letter, moment: float) -> bool:
    sent_at = letter.message.sent_at
    return sent_at is not None and sent_at <= moment


def _is_reason(wanted: str, letter: Letter) -> bool:
    return wanted == letter.kind or wanted.lower() in letter.error.lower()
