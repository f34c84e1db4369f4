"""SQS by the direct transport: the AWS JSON 1.0 protocol, for five calls.

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

from smartpipe.counters import TransportCounters
from smartpipe.message import Attribute, construct, received_message
from smartpipe.transport import DEPTH_ATTRIBUTES
from smartpipe.transports.aws.configuration import CALL_TIMEOUT_SECONDS, POLL_MARGIN_SECONDS
from smartpipe.transports.aws.direct.endpoint import ServiceProtocol
from smartpipe.transports.aws.entries import (
    delete_entries,
    read_depth,
    read_failures,
    send_entries,
    visibility_entries,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transport import Depth
    from smartpipe.transports.aws.direct.endpoint import Endpoint
    from smartpipe.transports.aws.direct.response import Response

log = logging.getLogger("smartpipe.aws")

# The attributes that a Message keeps. "All" would transfer the sender's id and others too.
_SYSTEM_ATTRIBUTES = [
    "AWSTraceHeader",
    "ApproximateFirstReceiveTimestamp",
    "ApproximateReceiveCount",
    "DeadLetterQueueSourceArn",
    "MessageGroupId",
    "SentTimestamp",
]


class DirectSqs:
    """The calls of SQS that a transport makes, at a tenth of botocore's CPU time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._damaged = 0

    @property
    def counters(self) -> TransportCounters:
        """The damaged messages and the requests sent twice. They can be read after ``close``, too."""
        return TransportCounters(self._damaged, self.endpoint.resent)

    async def receive(
        self, url: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Call ReceiveMessage, and leave out damaged messages."""
        body = receive_body(url, max_messages, int(wait_seconds), int(visibility_timeout_seconds))
        seconds = wait_seconds + POLL_MARGIN_SECONDS
        response = await self.endpoint.post("AmazonSQS.ReceiveMessage", body, timeout_seconds=seconds, poll=True)
        messages, damaged = read_messages(response, self.endpoint.loop.time())
        self._damaged += damaged
        return messages

    async def delete(self, url: str, receipts: Sequence[str]) -> list[Failure]:
        """Call DeleteMessageBatch."""
        return await self._post_batch("AmazonSQS.DeleteMessageBatch", delete_body(url, receipts), len(receipts))

    async def change_visibility(self, url: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Call ChangeMessageVisibilityBatch."""
        body = visibility_body(url, leases)
        return await self._post_batch("AmazonSQS.ChangeMessageVisibilityBatch", body, len(leases))

    async def send(self, url: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call SendMessageBatch."""
        return await self._post_batch("AmazonSQS.SendMessageBatch", send_body(url, messages), len(messages))

    async def count_messages(self, url: str) -> Depth:
        """Call GetQueueAttributes."""
        body = to_json({"QueueUrl": url, "AttributeNames": DEPTH_ATTRIBUTES})
        response = await self.endpoint.post("AmazonSQS.GetQueueAttributes", body, timeout_seconds=CALL_TIMEOUT_SECONDS)
        return read_depth(read_response(response))

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()

    async def _post_batch(self, target: str, body: bytes, count: int) -> list[Failure]:
        response = await self.endpoint.post(target, body, timeout_seconds=CALL_TIMEOUT_SECONDS)
        return read_failures(read_response(response), count)


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
    return to_json({"QueueUrl": url, "Entries": delete_entries(receipts)})


def visibility_body(url: str, leases: Sequence[tuple[str, float]]) -> bytes:
    """Return the body of ChangeMessageVisibilityBatch."""
    return to_json({"QueueUrl": url, "Entries": visibility_entries(leases)})


def send_body(url: str, messages: Sequence[OutgoingMessage]) -> bytes:
    """Return the body of SendMessageBatch."""
    entries = send_entries(messages)
    for entry in entries:
        for value in entry.get("MessageAttributes", {}).values():
            if "BinaryValue" in value:
                value["BinaryValue"] = b64encode(value["BinaryValue"]).decode()
    return to_json({"QueueUrl": url, "Entries": entries})


def read_response(body: bytes) -> Any:
    """Parse a response.

    Raises:
        ValueError: It is not JSON: half a response, or the page of a proxy.
    """
    try:
        return from_json(body, cache_strings="keys") if body else {}  # values, such as receipts, do not repeat
    except ValueError as error:
        raise JSONDecodeError(str(error), "", 0) from None  # the class that Python's own parser raises


def read_messages(body: bytes, received_at: float) -> tuple[list[Message], int]:
    """Return the messages of a ReceiveMessage response, and the number of damaged ones, which are left out.

    The body of a damaged message does not have the MD5 sum that SQS reports. SQS delivers the message again after its
    visibility timeout.

    Raises:
        ValueError: The response is not JSON.
    """
    messages: list[Message] = []
    damaged = 0
    for fields in read_response(body).get("Messages") or ():
        text, expected = fields["Body"], fields.get("MD5OfBody")
        if expected and md5(text.encode(), usedforsecurity=False).hexdigest() != expected:
            damaged += 1
            log.error("Message %s was damaged on its way here. SQS will deliver it again", fields.get("MessageId"))
            continue
        attributes = fields.get("MessageAttributes")
        if attributes:
            attributes = {name: _read_attribute(value) for name, value in attributes.items()}
        ids = fields["MessageId"], fields["ReceiptHandle"]
        messages.append(received_message(ids, text, fields.get("Attributes") or {}, attributes or {}, received_at))
    return messages, damaged


def _read_attribute(fields: Mapping[str, str]) -> Attribute:
    value = fields.get("StringValue")
    return construct(Attribute, (fields["DataType"], b64decode(fields["BinaryValue"]) if value is None else value))


def read_error(response: Response) -> dict[str, Any]:
    """Return an error response in the form that botocore gives it."""
    try:
        fields: Mapping[str, Any] = read_response(response.body)
        code, message = str(fields.get("__type", response.status)), fields.get("message") or fields.get("Message") or ""
    except (ValueError, AttributeError):
        code, message = str(response.status), ""
    query_code = (response.header(b"x-amzn-query-error") or "").partition(";")[0]
    code = query_code or code.rpartition("#")[2].partition(":")[0]
    return {"Error": {"Code": code, "Message": str(message) or f"HTTP status {response.status}"}}


PROTOCOL = ServiceProtocol("sqs", "application/x-amz-json-1.0", "ListQueues", read_error)
