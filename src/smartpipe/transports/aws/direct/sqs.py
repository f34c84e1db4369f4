"""The AWS JSON 1.0 protocol of SQS, for its four calls that are made all day. Pure.

Source: https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from functools import lru_cache
from hashlib import md5
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from smartpipe.message import Attribute, construct, received_message
from smartpipe.transports.aws.entries import IDS, send_entries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Message, OutgoingMessage
    from smartpipe.transports.aws.direct.response import Response

log = logging.getLogger("smartpipe.aws")

CONTENT_TYPE = "application/x-amz-json-1.0"
TARGET = "AmazonSQS."
# What a Message has room for; "All" would bring the sender's id and others over the wire as well.
_SYSTEM_ATTRIBUTES = [
    "ApproximateFirstReceiveTimestamp",
    "ApproximateReceiveCount",
    "DeadLetterQueueSourceArn",
    "MessageGroupId",
    "SentTimestamp",
]


@lru_cache(maxsize=1024)
def receive_body(url: str, max_messages: int, wait_seconds: int, visibility_timeout_seconds: int) -> bytes:
    """Return the body of ReceiveMessage."""
    return to_json(
        {
            "QueueUrl": url,
            "MaxNumberOfMessages": max_messages,
            "WaitTimeSeconds": wait_seconds,
            "VisibilityTimeout": visibility_timeout_seconds,
            "MessageSystemAttributeNames": _SYSTEM_ATTRIBUTES,
            "MessageAttributeNames": ["All"],
        }
    )


def delete_body(url: str, receipts: Sequence[str]) -> bytes:
    """Return the body of DeleteMessageBatch."""
    entries = [{"Id": id_, "ReceiptHandle": receipt} for id_, receipt in zip(IDS, receipts, strict=False)]
    return to_json({"QueueUrl": url, "Entries": entries})


def visibility_body(url: str, leases: Sequence[tuple[str, float]]) -> bytes:
    """Return the body of ChangeMessageVisibilityBatch."""
    entries = [
        {"Id": id_, "ReceiptHandle": receipt, "VisibilityTimeout": round(seconds)}
        for id_, (receipt, seconds) in zip(IDS, leases, strict=False)
    ]
    return to_json({"QueueUrl": url, "Entries": entries})


def send_body(url: str, messages: Sequence[OutgoingMessage]) -> bytes:
    """Return the body of SendMessageBatch."""
    entries = send_entries(messages)
    for entry in entries:
        for value in entry.get("MessageAttributes", {}).values():
            if "BinaryValue" in value:
                value["BinaryValue"] = b64encode(value["BinaryValue"]).decode()
    return to_json({"QueueUrl": url, "Entries": entries})


def read_response(body: bytes) -> Any:
    """Read an answer.

    Raises:
        ValueError: It is no JSON: half an answer, or the page of a proxy.
    """
    try:
        return from_json(body, cache_strings="keys") if body else {}  # no receipt comes twice
    except ValueError as error:
        raise JSONDecodeError(str(error), "", 0) from None  # the name by which it is known elsewhere


def read_messages(body: bytes, received_at: float) -> tuple[list[Message], int]:
    """Read what was received; return it, and how many messages were damaged on the way and left out.

    A damaged one, whose body does not have the MD5 sum that SQS says, comes again after its timeout.

    Raises:
        ValueError: The answer is no JSON.
    """
    found: list[Message] = []
    damaged = 0
    for fields in read_response(body).get("Messages") or ():
        text, expected = fields["Body"], fields.get("MD5OfBody")
        if expected and md5(text.encode(), usedforsecurity=False).hexdigest() != expected:
            damaged += 1
            log.error("message %s was damaged on its way here, and left to come again", fields.get("MessageId"))
            continue
        attributes = fields.get("MessageAttributes")
        if attributes:
            attributes = {name: _attribute(value) for name, value in attributes.items()}
        ids = fields["MessageId"], fields["ReceiptHandle"]
        found.append(received_message(ids, text, fields.get("Attributes") or {}, attributes or {}, received_at))
    return found, damaged


def _attribute(fields: Mapping[str, str]) -> Attribute:
    value = fields.get("StringValue")
    return construct(Attribute, (fields["DataType"], b64decode(fields["BinaryValue"]) if value is None else value))


def read_error(response: Response) -> dict[str, Any]:
    """Read an answer that is an error, into the form that botocore gives it."""
    try:
        fields: Mapping[str, Any] = read_response(response.body)
        code, message = str(fields.get("__type", response.status)), fields.get("message") or fields.get("Message") or ""
    except (ValueError, AttributeError):
        code, message = str(response.status), ""
    query_code = (response.header(b"x-amzn-query-error") or "").partition(";")[0]
    code = query_code or code.rpartition("#")[2].partition(":")[0]
    return {"Error": {"Code": code, "Message": str(message) or f"HTTP status {response.status}"}}
