"""What travels through a transport: bodies with attributes, and what went wrong with single entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

construct = tuple.__new__
"""What a named tuple's own constructor calls, which costs as much again: for those that each message has."""


class Attribute(NamedTuple):
    """A message attribute. *data_type* is ``String``, ``Number`` or ``Binary``, with an optional ``.suffix``."""

    data_type: str
    value: str | bytes


class Message(NamedTuple):
    """One receipt of a message from a queue.

    Args:
        receive_count: 1 on the first delivery. It counts deliveries, not failures.
        sent_at: Unix seconds, or None where the broker did not say.
        received_at: The event loop's monotonic clock when the answer arrived; leases count from it.
        moved_from: The ARN of the queue from which SQS itself moved it here, after too many receives.
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


def received_message(
    ids: tuple[str, str], body: str, system: Mapping[str, str], attributes: Mapping[str, Attribute], received_at: float
) -> Message:
    """Return what was received, read from SQS's system attributes, which are alike in its API and in Lambda's events.

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
        ),
    )


class Payload(NamedTuple):
    """A body in S3, of a message that only points there.

    Args:
        text: What has to be put there before the message goes; empty where it is to be read.
        owner: The account that the bucket has to belong to; None: this process's own.
    """

    bucket: str
    key: str
    text: str = ""
    owner: str | None = None

    @property
    def url(self) -> str:
        """Where it is, as people write it."""
        return f"s3://{self.bucket}/{self.key}"


class OutgoingMessage(NamedTuple):
    """One message to publish or to send; ``size_bytes`` is what AWS will count for it.

    Args:
        deduplication_id: On FIFO topics and queues, which need one, and only there.
        delay_seconds: How long the queue hides it; not for topics, nor for FIFO queues.
        payload: What the body points to, if it does: in S3 before the message goes.
    """

    body: str
    size_bytes: int
    attributes: Mapping[str, Attribute] = {}
    group_id: str | None = None
    deduplication_id: str | None = None
    delay_seconds: int = 0
    payload: Payload | None = None


class Failure(NamedTuple):
    """Entry *position*, from 0, of a batch was refused; *retryable* says whether sending it again can help."""

    position: int
    code: str
    detail: str
    retryable: bool


def size_bytes(body: str, attributes: Mapping[str, Attribute]) -> int:
    """Count as SNS and SQS do: UTF-8 bytes of the body and of each attribute's name, type and value.

    Source: the SQS SendMessage and SNS Publish API references, "message size".
    """
    return utf8_length(body) + sum(
        utf8_length(name) + utf8_length(data_type) + (len(value) if isinstance(value, bytes) else utf8_length(value))
        for name, (data_type, value) in attributes.items()
    )


def utf8_length(text: str) -> int:
    """Return how many bytes *text* takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
