"""Reads the context attributes of a CloudEvent that an envelope does not have: its subject and unknown extensions.

Source: CloudEvents 1.0.2, "Extension Context Attributes" and "Type System".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.body_encoding import decompress_body
from smartpipe.envelope.fields import CONTEXT_NAMES
from smartpipe.envelope.notification import read_notification
from smartpipe.envelope.other_data import AnyData, is_binary_mode, read_binary_context
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.message import Message

Extension: TypeAlias = "str | int | float | bool"

DECOMPRESSED_LIMIT_BYTES = 4_194_304
_KNOWN = frozenset({*CONTEXT_NAMES, "dataschema", "data", "data_base64"})
"""The names that are not extensions; ``subject`` is read together with them."""


class _Everything(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    data: AnyData
    data_base64: AnyData


_everything = build_bounded_validator(TypeAdapter(_Everything))


def read_extensions(text: str) -> dict[str, Extension]:
    """Return the subject and the extension attributes of an event in structured mode, without parsing its data."""
    try:
        found: dict[str, Any] | None = _everything(text)
    except ValidationError:  # not JSON
        found = None
    return _select(found) if found and "specversion" in found else {}


def find_extensions(message: Message) -> Mapping[str, Extension]:
    """Return the subject and the extension attributes of the event in *message*, wherever it has them.

    Args:
        message: With the attributes that it has in a raw delivery. If its body is in S3, its reader has read them.
    """
    if message.extensions is not None:
        return message.extensions
    notification = read_notification(message.body)
    try:
        body = notification.message if notification else message.body
        found = read_extensions(decompress_body(body, message.attributes, DECOMPRESSED_LIMIT_BYTES))
    except MessageError:
        found = {}
    return found or (_select(read_binary_context(message.attributes)) if is_binary_mode(message.attributes) else {})


def _select(context: Mapping[str, Any]) -> dict[str, Extension]:
    """Return the extensions in *context*. Objects, lists and nulls are not context attributes."""
    return {
        name: value
        for name, value in context.items()
        if name not in _KNOWN and isinstance(value, (str, int, float, bool))
    }
