"""Messages to and from the shapes of the SNS and SQS APIs. Pure; shared with the blocking publisher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.message import Attribute, Failure, received_message
from smartpipe.transports.aws.errors import entry_failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Message, OutgoingMessage

# Ids are ours and never the user's: one bad Id fails all ten entries.
IDS = tuple(str(index) for index in range(10))


def publish_entries(messages: Sequence[OutgoingMessage]) -> list[dict[str, Any]]:
    """Return PublishBatchRequestEntries."""
    return [_entry(index, message, "Message") for index, message in enumerate(messages)]


def send_entries(messages: Sequence[OutgoingMessage]) -> list[dict[str, Any]]:
    """Return the Entries of SendMessageBatch."""
    return [_entry(index, message, "MessageBody") for index, message in enumerate(messages)]


def failures(answer: Mapping[str, Any], count: int) -> list[Failure]:
    """Read a batch answer: what is in ``Failed``, and what is in neither list, has failed."""
    done = {entry["Id"] for entry in answer.get("Successful") or ()}
    refused = answer.get("Failed")
    if len(done) == count and not refused:
        return []
    failed = {int(entry["Id"]): entry_failure(int(entry["Id"]), entry) for entry in refused or ()}
    silent = Failure(0, "NotAnswered", "the service's answer does not mention this entry", retryable=True)
    return [
        failed.get(index) or silent._replace(position=index)
        for index in range(count)
        if index in failed or IDS[index] not in done
    ]


def read_received(fields: Mapping[str, Any], received_at: float) -> Message:
    """Read one element of ReceiveMessage's ``Messages``."""
    attributes = {name: _attribute(value) for name, value in (fields.get("MessageAttributes") or {}).items()}
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


def _attribute(fields: Mapping[str, Any]) -> Attribute:
    value = fields.get("StringValue")
    return Attribute(fields["DataType"], fields["BinaryValue"] if value is None else value)
