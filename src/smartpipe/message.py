"""Received and outgoing messages, their attributes and payloads, and failures of single entries of a batch."""

from __future__ import annotations

import json
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic_core import from_json

from smartpipe.limits import MAX_NUMBER_DIGITS, MESSAGE_TEXT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STRING_ARRAY = "String.Array"
"""The data type of a list of texts, numbers, booleans and nulls, written as JSON. Only SNS gives it a meaning."""
AttributeValue: TypeAlias = "str | bytes | int | float | list[Any]"
"""The value of a message attribute as it is read."""
NewAttribute: TypeAlias = "str | int | float | Decimal | Sequence[str | float | bool | None]"
"""The value of a message attribute to publish."""

construct = tuple.__new__
"""Build a named tuple from a sequence, without the cost of its constructor. For tuples that each message needs."""


class Attribute(NamedTuple):
    """A message attribute. *data_type* is ``String``, ``Number`` or ``Binary``, with an optional ``.suffix``."""

    data_type: str
    value: str | bytes

    @property
    def parsed(self) -> AttributeValue:
        """The value by its type: a number, a list for ``String.Array``, text or bytes.

        A value that does not have the form of its type stays text.
        """
        value = self.value
        if isinstance(value, bytes):
            return value
        kind = self.data_type.partition(".")[0]
        if kind != "Number" and self.data_type != STRING_ARRAY:
            return value
        try:
            parsed = from_json(value)
        except ValueError:
            try:
                return float(value) if kind == "Number" and isfinite(float(value)) else value  # such as +1 or 007
            except ValueError:
                return value
        if kind == "Number":
            is_number = isinstance(parsed, (int, float)) and not isinstance(parsed, bool) and isfinite(parsed)
            return parsed if is_number else value
        return parsed if isinstance(parsed, list) else value


def make_attribute(value: object) -> Attribute:
    """Return *value* as a message attribute: text as String, a number as Number, a list as String.Array.

    Raises:
        ValueError: SNS and SQS have no type for it. The text says why, as the end of a sentence.
    """
    if isinstance(value, str):
        if not MESSAGE_TEXT.fullmatch(value):
            raise ValueError("must be text of at least one character, without control characters")
        return Attribute("String", value)
    if isinstance(value, bool):
        raise ValueError('must not be True or False, for which SNS has no type: write "true" or [True]')  # noqa: TRY004
    if isinstance(value, (int, float, Decimal)):
        return Attribute("Number", _format_number(value))
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be text, a number, or a list of texts, numbers, True, False and None")  # noqa: TRY004
    wrong = [one for one in value if not (one is None or isinstance(one, (str, int, float)))]
    if wrong:
        raise ValueError(f"has {wrong[0]!r:.100} in its list, which may have texts, numbers, True, False and None")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise ValueError("has a number in its list that JSON does not have") from None
    if not MESSAGE_TEXT.fullmatch(text):
        raise ValueError("has characters in its list that SNS does not accept")
    return Attribute(STRING_ARRAY, text)


def _format_number(value: float | Decimal) -> str:
    """Return *value* without an exponent. Source: API reference of Publish: at most 38 digits."""
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError("must be a finite number")
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or abs(number.adjusted()) >= MAX_NUMBER_DIGITS or -exponent > MAX_NUMBER_DIGITS:
        raise ValueError(f"needs more than {MAX_NUMBER_DIGITS} digits, which is the limit of SNS and SQS for numbers")
    return format(number, "f")


class Message(NamedTuple):
    """One receipt of a message from a queue.

    Args:
        receive_count: 1 on the first delivery. It counts deliveries, not failures.
        sent_at: Unix seconds; None if the broker does not report it.
        received_at: The event loop's monotonic clock when the response arrived. Leases count from it.
        moved_from: The ARN of the queue that SQS moved it from, after too many receives.
        trace_header: The system attribute ``AWSTraceHeader``: the trace of AWS X-Ray.
        extensions: The subject and the extension attributes of an event whose body is in S3, after it was read.
    """

    message_id: str
    receipt_handle: str
    body: str
    receive_count: int = 1
    attributes: Mapping[str, Attribute] = {}
    group_id: str | None = None
    sent_at: float | None = None
    first_received_at: float | None = None
    received_at: float = 0.0
    moved_from: str | None = None
    trace_header: str | None = None
    extensions: Mapping[str, Any] | None = None


def received_message(
    ids: tuple[str, str], body: str, system: Mapping[str, str], attributes: Mapping[str, Attribute], received_at: float
) -> Message:
    """Build a Message from the system attributes of SQS, which are the same in its API and in Lambda's events.

    Args:
        ids: Message id and receipt handle.
    """
    get = system.get
    sent, first_received = get("SentTimestamp"), get("ApproximateFirstReceiveTimestamp")
    return construct(
        Message,
        (
            ids[0],
            ids[1],
            body,
            int(get("ApproximateReceiveCount", 1)),
            attributes,
            get("MessageGroupId"),
            None if sent is None else int(sent) / 1000,
            None if first_received is None else int(first_received) / 1000,
            received_at,
            get("DeadLetterQueueSourceArn"),
            get("AWSTraceHeader"),
            None,
        ),
    )


class Payload(NamedTuple):
    """The body, stored in S3, of a message that carries only a pointer to it.

    Args:
        text: The text to write before the message is sent; empty for a payload to be read.
        owner: The account that must own the bucket; None: the account of this process.
    """

    bucket: str
    key: str
    text: str = ""
    owner: str | None = None

    @property
    def url(self) -> str:
        """Its address, as in ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


class OutgoingMessage(NamedTuple):
    """One message to publish or to send. ``size_bytes`` is the size that AWS counts.

    Args:
        deduplication_id: Required on FIFO topics and queues, and allowed only there.
        delay_seconds: How long the queue hides the message. Not for topics, nor for FIFO queues.
        payload: The payload that the body points to, if it does. It is written to S3 before the message is sent.
        trace_header: The trace of AWS X-Ray, if the event is sampled. It is no message attribute and has no size.
    """

    body: str
    size_bytes: int
    attributes: Mapping[str, Attribute] = {}
    group_id: str | None = None
    deduplication_id: str | None = None
    delay_seconds: int = 0
    payload: Payload | None = None
    trace_header: str | None = None


class Failure(NamedTuple):
    """AWS refused the entry at *position*, from 0, of a batch. *retryable*: sending it again can succeed."""

    position: int
    code: str
    detail: str
    retryable: bool


def size_bytes(body: str, attributes: Mapping[str, Attribute]) -> int:
    """Return the size that SNS and SQS count: UTF-8 bytes of the body and of each attribute's name, type and value.

    Source: the SQS SendMessage and SNS Publish API references, "message size".
    """
    return utf8_length(body) + sum(
        utf8_length(name) + utf8_length(data_type) + (len(value) if isinstance(value, bytes) else utf8_length(value))
        for name, (data_type, value) in attributes.items()
    )


def utf8_length(text: str) -> int:
    """Return the length of *text* in UTF-8, in bytes."""
    return len(text) if text.isascii() else len(text.encode())
