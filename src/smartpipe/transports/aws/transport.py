"""The transport to SNS and SQS on AWS, or at ``AWS_ENDPOINT_URL``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from smartpipe.counters import TransportCounters
from smartpipe.names import region_in
from smartpipe.transports.aws.botocore_calls import BotocoreSns, BotocoreSqs
from smartpipe.transports.aws.direct import sns, sqs
from smartpipe.transports.aws.direct.endpoint import open_endpoint
from smartpipe.transports.aws.errors import MISSING, classify
from smartpipe.transports.aws.session import AwsSession

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiobotocore.session import AioSession

    from smartpipe.errors import TransportError
    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.settings import AwsSettings
    from smartpipe.transport import Depth

_ALREADY_DELETED = "ReceiptHandleIsInvalid"
"""Some brokers refuse to delete a message that is deleted already. AWS does not."""


class SqsCalls(Protocol):
    """One request to SQS for each call. Errors are those of botocore."""

    @property
    def counters(self) -> TransportCounters:
        """Readable after ``close``, too."""

    async def receive(
        self, url: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Receive messages."""

    async def delete(self, url: str, receipts: Sequence[str]) -> list[Failure]:
        """Delete messages."""

    async def change_visibility(self, url: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Change the visibility timeouts of messages."""

    async def send(self, url: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Send messages."""

    async def count_messages(self, url: str) -> Depth:
        """Count the messages of a queue."""

    def close(self) -> None:
        """Close connections."""


class SnsCalls(Protocol):
    """One request to SNS for each call. Errors are those of botocore."""

    @property
    def counters(self) -> TransportCounters:
        """Readable after ``close``, too."""

    async def publish(self, arn: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Publish messages."""

    def close(self) -> None:
        """Close connections."""


class AwsTransport:
    """SNS and SQS, each by the direct transport or by aiobotocore.

    The choice is made at the first call, once for SQS and once for SNS in each region. Region, endpoint, credentials
    and all other configuration are botocore's in both cases. If they need something that the direct transport does not
    support, such as a proxy, that service uses aiobotocore, and a log line says so. Those calls are not counted.

    A transport belongs to the event loop and process of its first call.

    Args:
        direct: Use the direct transport where it supports the configuration.
        session: By default one that reads the environment and the AWS files.

    Raises:
        ConfigError: As AwsSession.
    """

    def __init__(self, settings: AwsSettings, *, direct: bool = True, session: AioSession | None = None) -> None:
        self.session = AwsSession(settings, session=session)
        self._addresses = self.session.addresses
        self._direct = direct
        self._choosing = asyncio.Lock()
        self._sqs: SqsCalls | None = None
        self._sns: dict[str, SnsCalls] = {}

    @property
    def name(self) -> str:
        """Which transport it is, for reports."""
        return f"{type(self).__name__} ({'direct' if self._direct else 'botocore'})"

    @property
    def counts(self) -> TransportCounters | None:
        """The counts of the direct transport, readable after ``aclose`` too. None if it is not used."""
        if not self._direct:
            return None
        counters = [calls.counters for calls in (self._sqs, *self._sns.values()) if calls is not None]
        return TransportCounters(sum(one.damaged for one in counters), sum(one.resent for one in counters))

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        arn = (await self._addresses.naming()).topic_arn(topic)
        calls = await self._find_sns(region_in(arn))
        try:
            return await calls.publish(arn, messages)
        except Exception as error:
            raise classify(error, action="sns:Publish", target=f"topic {arn}") from error

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Call ReceiveMessage with an explicit visibility timeout, so that the end of each lease is known exactly."""
        calls = await self._find_sqs()
        url = await self._addresses.queue_url(queue)
        try:
            return await calls.receive(
                url,
                max_messages=max_messages,
                wait_seconds=wait_seconds,
                visibility_timeout_seconds=visibility_timeout_seconds,
            )
        except Exception as error:
            raise self._classify(error, "sqs:ReceiveMessage", queue) from error

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Call DeleteMessageBatch."""
        calls = await self._find_sqs()
        url = await self._addresses.queue_url(queue)
        try:
            failures = await calls.delete(url, receipts)
        except Exception as error:
            raise self._classify(error, "sqs:DeleteMessage", queue) from error
        return [failure for failure in failures if failure.code != _ALREADY_DELETED]

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Call ChangeMessageVisibilityBatch."""
        calls = await self._find_sqs()
        url = await self._addresses.queue_url(queue)
        try:
            return await calls.change_visibility(url, leases)
        except Exception as error:
            raise self._classify(error, "sqs:ChangeMessageVisibility", queue) from error

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call SendMessageBatch."""
        calls = await self._find_sqs()
        url = await self._addresses.queue_url(queue)
        try:
            return await calls.send(url, messages)
        except Exception as error:
            raise self._classify(error, "sqs:SendMessage", queue) from error

    async def count_messages(self, queue: str) -> Depth:
        """Call GetQueueAttributes. The numbers are approximate: SQS needs about a minute to get them right."""
        calls = await self._find_sqs()
        url = await self._addresses.queue_url(queue)
        try:
            return await calls.count_messages(url)
        except Exception as error:
            raise self._classify(error, "sqs:GetQueueAttributes", queue) from error

    async def aclose(self) -> None:
        """Close every connection and client. A second call does nothing, and any other call fails after it."""
        await self.session.aclose()
        for calls in (self._sqs, *self._sns.values()):
            if calls is not None:
                calls.close()
        await asyncio.sleep(0)  # the loop closes sockets in its next turn

    async def _find_sqs(self) -> SqsCalls:
        self.session.check_usable()
        if self._sqs is None:
            async with self._choosing:
                if self._sqs is None:
                    region = self.session.region
                    endpoint = await open_endpoint(self.session, sqs.PROTOCOL, region) if self._direct else None
                    self._sqs = sqs.DirectSqs(endpoint) if endpoint else BotocoreSqs(self.session)
        return self._sqs

    async def _find_sns(self, region: str) -> SnsCalls:
        self.session.check_usable()
        if region not in self._sns:
            async with self._choosing:
                if region not in self._sns:
                    endpoint = await open_endpoint(self.session, sns.PROTOCOL, region) if self._direct else None
                    self._sns[region] = sns.DirectSns(endpoint) if endpoint else BotocoreSns(self.session)
        return self._sns[region]

    def _classify(self, error: Exception, action: str, queue: str) -> TransportError:
        classified = classify(error, action=action, target=f"queue {self._addresses.physical(queue)!r}")
        if classified.code in MISSING:
            self._addresses.forget_queue(queue)
        return classified
