"""SNS and SQS by aiobotocore, for configurations that the direct transport does not support."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from smartpipe.counters import TransportCounters
from smartpipe.names import region_in
from smartpipe.transport import DEPTH_ATTRIBUTES
from smartpipe.transports.aws.entries import (
    delete_entries,
    publish_entries,
    read_depth,
    read_failures,
    read_received,
    send_entries,
    visibility_entries,
)
from smartpipe.transports.aws.own_attributes import mark_own

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transport import Depth
    from smartpipe.transports.aws.session import AwsSession


class BotocoreSqs:
    """The calls of SQS that a transport makes."""

    counters = TransportCounters()

    def __init__(self, session: AwsSession) -> None:
        self._session = session
        session.botocore_session.register("after-call.sqs.ReceiveMessage", reject_non_json, unique_id="smartpipe")

    async def receive(
        self, url: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Call ReceiveMessage."""
        sqs = await self._session.client("sqs", "poll")
        response = await sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=max_messages,
            WaitTimeSeconds=int(wait_seconds),
            VisibilityTimeout=int(visibility_timeout_seconds),
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        received_at = asyncio.get_running_loop().time()
        return [read_received(fields, received_at) for fields in response.get("Messages") or ()]

    async def delete(self, url: str, receipts: Sequence[str]) -> list[Failure]:
        """Call DeleteMessageBatch."""
        sqs = await self._session.client("sqs")
        response = await sqs.delete_message_batch(QueueUrl=url, Entries=delete_entries(receipts))
        return read_failures(response, len(receipts))

    async def change_visibility(self, url: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Call ChangeMessageVisibilityBatch."""
        sqs = await self._session.client("sqs")
        response = await sqs.change_message_visibility_batch(QueueUrl=url, Entries=visibility_entries(leases))
        return read_failures(response, len(leases))

    async def send(self, url: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call SendMessageBatch."""
        sqs = await self._session.client("sqs")
        response = await sqs.send_message_batch(QueueUrl=url, Entries=mark_own(send_entries(messages)))
        return read_failures(response, len(messages))

    async def count_messages(self, url: str) -> Depth:
        """Call GetQueueAttributes."""
        sqs = await self._session.client("sqs")
        return read_depth(await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(DEPTH_ATTRIBUTES)))

    def close(self) -> None:
        """Do nothing. The session closes its clients."""


class BotocoreSns:
    """PublishBatch, in the region of each topic."""

    counters = TransportCounters()

    def __init__(self, session: AwsSession) -> None:
        self._session = session

    async def publish(self, arn: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        sns = await self._session.client("sns", region=region_in(arn))
        response = await sns.publish_batch(TopicArn=arn, PublishBatchRequestEntries=mark_own(publish_entries(messages)))
        return read_failures(response, len(messages))

    def close(self) -> None:
        """Do nothing. The session closes its clients."""


async def reject_non_json(*, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    """Raise ValueError for a response without messages that is not JSON; a handler of botocore's ``after-call``.

    botocore would read the page of a proxy, or half a response, as a receive call that found no messages. Such a call
    returns immediately, so the worker would poll in a tight loop and look healthy.
    """
    if http_response.status_code < 300 and "Messages" not in parsed:  # noqa: PLR2004 - errors have their own parser
        json.loads(await http_response.content)
