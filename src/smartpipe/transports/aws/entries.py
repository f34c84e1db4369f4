"""Requests and responses of the SNS, SQS and S3 APIs in botocore's form. Pure; shared with the blocking publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.message import Attribute, Failure, received_message
from smartpipe.transport import DEPTH_ATTRIBUTES, Depth
from smartpipe.transports.aws.errors import read_failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Message, OutgoingMessage, Payload

# The ids of entries are never the user's: one invalid id fails all ten entries.
IDS = tuple(str(index) for index in range(10))


def publish_entries(messages: Sequence[OutgoingMessage]) -> list[dict[str, Any]]:
    """Return the PublishBatchRequestEntries of PublishBatch."""
    return [_entry(index, message, "Message") for index, message in enumerate(messages)]


def send_entries(messages: Sequence[OutgoingMessage]) -> list[dict[str, Any]]:
    """Return the Entries of SendMessageBatch."""
    entries = [_entry(index, message, "MessageBody") for index, message in enumerate(messages)]
    for entry, message in zip(entries, messages, strict=True):
        if message.trace_header is not None:
            value = {"DataType": "String", "StringValue": message.trace_header}
            entry["MessageSystemAttributes"] = {"AWSTraceHeader": value}
    return entries


def common_trace_header(messages: Sequence[OutgoingMessage]) -> str | None:
    """Return the trace of all messages, or None if they have several: SNS has one header for all of a request."""
    first = messages[0].trace_header
    return first if first is not None and all(message.trace_header == first for message in messages) else None


def delete_entries(receipts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the Entries of DeleteMessageBatch."""
    return [{"Id": id_, "ReceiptHandle": receipt} for id_, receipt in zip(IDS, receipts, strict=False)]


def visibility_entries(leases: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Return the Entries of ChangeMessageVisibilityBatch."""
    return [
        {"Id": id_, "ReceiptHandle": receipt, "VisibilityTimeout": round(seconds)}
        for id_, (receipt, seconds) in zip(IDS, leases, strict=False)
    ]


def put_object_request(payload: Payload, account_id: str) -> dict[str, Any]:
    """Return the arguments of PutObject. *account_id* owns the bucket, unless the payload names another owner."""
    return {
        "Bucket": payload.bucket,
        "Key": payload.key,
        "Body": payload.text.encode(),
        "ContentType": "application/json",
        "ExpectedBucketOwner": payload.owner or account_id,
    }


def read_failures(response: Mapping[str, Any], count: int) -> list[Failure]:
    """Return the failed entries of a batch response: those in ``Failed``, and those in neither list."""
    done = {entry["Id"] for entry in response.get("Successful") or ()}
    refused = response.get("Failed")
    if len(done) == count and not refused:
        return []
    failed = {int(entry["Id"]): read_failure(int(entry["Id"]), entry) for entry in refused or ()}
    missing = Failure(0, "NotAnswered", "the service's response does not mention this entry", retryable=True)
    return [
        failed.get(index) or missing._replace(position=index)
        for index in range(count)
        if index in failed or IDS[index] not in done
    ]


def read_depth(response: Mapping[str, Any]) -> Depth:
    """Return the numbers in a response of GetQueueAttributes.

    Raises:
        KeyError: A number is missing.
    """
    return Depth(*(int(response["Attributes"][name]) for name in DEPTH_ATTRIBUTES))


def read_received(fields: Mapping[str, Any], received_at: float) -> Message:
    """Return one element of the ``Messages`` of ReceiveMessage as a message."""
    attributes = {name: _read_attribute(value) for name, value in (fields.get("MessageAttributes") or {}).items()}
    ids = fields["MessageId"], fields["ReceiptHandle"]
    return received_message(ids, fields["Body"], fields.get("Attributes") or {}, attributes, received_at)


def _entry(index: int, message: OutgoingMessage, body_field: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"Id": IDS[index], body_field: message.body}
    if message.attributes:
        entry["MessageAttributes"] = {
            name: {"DataType": data_type, "BinaryValue" if isinstance(value, bytes) else "StringValue": value}
            for name, (data_type, value) in message.attributes.items()
        }
    if message.group_id is not None:
        entry["MessageGroupId"] = message.group_id
    if message.deduplication_id is not None:
        entry["MessageDeduplicationId"] = message.deduplication_id
    if message.delay_seconds:
        entry["DelaySeconds"] = message.delay_seconds
    return entry


def _read_attribute(fields: Mapping[str, Any]) -> Attribute:
    value = fields.get("StringValue")
    return Attribute(fields["DataType"], fields["BinaryValue"] if value is None else value)
