"""The notification that SNS wraps a message in, where raw message delivery is off.

Source: Amazon SNS Developer Guide, "Amazon SNS raw message delivery".
"""

from __future__ import annotations

import re
from base64 import b64decode
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES
from smartpipe.envelope.fields import ValueOrNone
from smartpipe.envelope.validators import build_bounded_validator, build_cooperative_validator
from smartpipe.limits import ATTRIBUTE_NAME, MESSAGE_TEXT
from smartpipe.message import Attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

LARGE_CHARACTERS = 65_536
"""A longer body may have many thousands of attributes. Workers read it in a thread, and let other threads run."""

_DATA_TYPE = re.compile(r"(String|Number|Binary)(\.[ -~]{1,249})?")
_Text = Annotated[str, StringConstraints(min_length=1, strict=True)]


class WrappedBody(Exception):
    """The body is an SNS notification. *body* and *attributes* are those of the message in it, as in a raw delivery."""

    def __init__(self, body: str, attributes: Mapping[str, Attribute]) -> None:
        self.body = body
        self.attributes = attributes
        super().__init__("the body is an SNS notification")


class EncodedBody(WrappedBody):
    """The message in the notification is not an envelope: its attributes say that it is compressed or stored in S3."""


class Notification(NamedTuple):
    """The message in an SNS notification."""

    message: str
    attributes: Mapping[str, Attribute]


class _Attribute(TypedDict):
    """A message attribute in a notification. The value of a Binary attribute is Base64."""

    Type: _Text
    Value: _Text


class _Fields(TypedDict, total=False):
    """The fields that identify a notification. A domain object may have a ``Type``, but lacks the others.

    No field is required, because Pydantic keeps a copy of the whole body for each required field that is missing.
    """

    Type: Annotated[Literal["Notification"], ValueOrNone()]
    MessageId: Annotated[_Text, ValueOrNone()]
    TopicArn: Annotated[_Text, ValueOrNone()]
    Message: Annotated[str, ValueOrNone()]
    MessageAttributes: Annotated[dict[str, Annotated[_Attribute, ValueOrNone()]], ValueOrNone()]


_adapter = TypeAdapter(_Fields)
_validate_small = build_bounded_validator(_adapter)


@cache
def _validate_large() -> Callable[[str], Any]:
    return build_cooperative_validator(_adapter)


def read_notification(body: str) -> Notification | None:
    """Return the message in an SNS notification, or None if *body* is not one.

    The attributes are the message attributes that SQS would have received with raw delivery. An attribute that SQS
    would refuse is left out, because only a sender other than SNS can have written it.
    """
    validate = _validate_large() if len(body) > LARGE_CHARACTERS else _validate_small
    try:
        fields = validate(body)
    except ValidationError:  # not JSON
        return None
    if fields is None or None in map(fields.get, ("Type", "MessageId", "TopicArn", "Message")):
        return None
    attributes = {
        name: attribute
        for name, one in (fields.get("MessageAttributes") or {}).items()
        if one and (attribute := _read_attribute(name, one)) is not None
    }
    return Notification(fields["Message"], attributes)


def unwrap(body: str) -> str | None:
    """Return the message in an SNS notification, or None if *body* is not one.

    Raises:
        EncodedBody: The attributes in the notification say that the message is compressed or stored in S3.
    """
    found = read_notification(body)
    if found is None:
        return None
    if not RESERVED_ATTRIBUTES.isdisjoint(found.attributes):
        raise EncodedBody(*found)
    return found.message


def refuse_wrapped(body: str) -> None:
    """Raise WrappedBody if *body* is an SNS notification."""
    found = read_notification(body)
    if found is not None:
        raise WrappedBody(*found)


def keep_wrapped(_body: str) -> None:
    """Do not unwrap the body: it was in a notification itself."""


def _read_attribute(name: str, fields: _Attribute) -> Attribute | None:
    data_type, value = fields["Type"], fields["Value"]
    if not (ATTRIBUTE_NAME.fullmatch(name) and _DATA_TYPE.fullmatch(data_type)):
        return None
    if not data_type.startswith("Binary"):
        return Attribute(data_type, value) if MESSAGE_TEXT.fullmatch(value) else None
    try:
        return Attribute(data_type, b64decode(value, validate=True))
    except ValueError:
        return None
