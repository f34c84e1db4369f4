"""The notification that SNS wraps a message in, where raw message delivery is off.

Source: Amazon SNS Developer Guide, "Amazon SNS raw message delivery".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.body_encoding import RESERVED_ATTRIBUTES
from smartpipe.envelope.fields import ValueOrNone
from smartpipe.envelope.validators import build_bounded_validator
from smartpipe.message import Attribute

if TYPE_CHECKING:
    from collections.abc import Mapping

_Text = Annotated[str, StringConstraints(min_length=1, strict=True)]


class EncodedBody(Exception):
    """The message in a notification is not an envelope: its attributes say that it is compressed or stored in S3."""

    def __init__(self, body: str, attributes: Mapping[str, Attribute]) -> None:
        self.body = body
        self.attributes = attributes
        super().__init__("the message in the SNS notification is compressed or stored in S3")


class _Attribute(TypedDict):
    """A message attribute in a notification."""

    Type: _Text
    Value: _Text


# Only the attributes that describe the encoding of the body. Others could hold any value.
_Reserved: Any = TypedDict(  # type: ignore[misc] # made at run time
    "_Reserved", {name: NotRequired[Annotated[_Attribute, ValueOrNone()]] for name in sorted(RESERVED_ATTRIBUTES)}
)


class _Notification(TypedDict, total=False):
    """The fields that identify a notification. A domain object may have a ``Type``, but lacks the others.

    No field is required, because Pydantic keeps a copy of the whole body for each required field that is missing.
    """

    Type: Annotated[Literal["Notification"], ValueOrNone()]
    MessageId: Annotated[_Text, ValueOrNone()]
    TopicArn: Annotated[_Text, ValueOrNone()]
    Message: Annotated[str, ValueOrNone()]
    MessageAttributes: Annotated[_Reserved, ValueOrNone()]


_notification = build_bounded_validator(TypeAdapter(_Notification))


def unwrap(body: str) -> str | None:
    """Return the message in an SNS notification, or None if *body* is not one.

    Raises:
        EncodedBody: The attributes in the notification say that the message is compressed or stored in S3.
    """
    try:
        notification = _notification(body)
    except ValidationError:  # not JSON
        return None
    if notification is None or None in map(notification.get, ("Type", "MessageId", "TopicArn", "Message")):
        return None
    message: str = notification["Message"]
    attributes = notification.get("MessageAttributes") or {}
    encoding = {name: Attribute(fields["Type"], fields["Value"]) for name, fields in attributes.items() if fields}
    if encoding:
        raise EncodedBody(message, encoding)
    return message
