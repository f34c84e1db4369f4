"""The five verbs over aiobotocore."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.errors import ConfigError, TransportError
from smartpipe.limits import MAX_WAIT_SECONDS
from smartpipe.names import Naming, region_in
from smartpipe.transports.aws.addresses import Addresses, queue_lookup
from smartpipe.transports.aws.client import CALL_TIMEOUT_SECONDS, POLL_MARGIN_SECONDS, refuse_no_json, region_of
from smartpipe.transports.aws.clients import open_client, open_session
from smartpipe.transports.aws.credentials import refresh_when_refused
from smartpipe.transports.aws.entries import IDS, failures, publish_entries, read_received, send_entries
from smartpipe.transports.aws.errors import MISSING, classify
from smartpipe.transports.aws.variables import check_credentials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiobotocore.session import AioSession
    from types_aiobotocore_sns import SNSClient
    from types_aiobotocore_sqs import SQSClient

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.settings import AwsSettings

log = logging.getLogger("smartpipe.aws")

T = TypeVar("T")

MAX_POLL_SECONDS = 20


class AwsTransport:
    """SNS and SQS, or whatever speaks like them at ``AWS_ENDPOINT_URL``.

    It belongs to the event loop and process of its first call. Polls have a client, and so a
    connection pool, of their own: on a shared one acks waited out the polls (4.5 s of a 5 s poll).

    Raises:
        ConfigError: No region, a CA bundle that cannot be read, or a variable of AWS's that no header may hold.
    """

    def __init__(self, settings: AwsSettings, *, session: AioSession | None = None) -> None:
        self._session = open_session(session)
        self._session.register("after-call.sqs.ReceiveMessage", refuse_no_json, unique_id="smartpipe")
        self._refresh = refresh_when_refused(self._session)
        self.region = region_of(self._session)
        self._clients: dict[str, Any] = {}
        self._closed = False
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._settings = settings
        self.addresses = Addresses(settings.prefix, find_naming=self._find_naming, find_queue_url=self._find_queue_url)

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        arn = (await self.addresses.naming()).topic_arn(topic)
        sns: SNSClient = await self.client("sns", region=region_in(arn))
        call = sns.publish_batch(TopicArn=arn, PublishBatchRequestEntries=publish_entries(messages))  # type: ignore[arg-type]
        return await self._call(call, "sns:Publish", f"topic {arn}", lambda answer: failures(answer, len(messages)))

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Call ReceiveMessage, with the lease said explicitly, so that it is known exactly."""
        url = await self.addresses.queue_url(queue)
        sqs: SQSClient = await self.client("sqs", "poll")
        call = sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=max_messages,
            WaitTimeSeconds=int(wait_seconds),
            VisibilityTimeout=int(visibility_timeout_seconds),
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        clock = asyncio.get_running_loop().time

        def read(answer: Any) -> list[Message]:
            received_at = clock()
            return [read_received(fields, received_at) for fields in answer.get("Messages") or ()]

        return await self._call_queue(call, "sqs:ReceiveMessage", queue, read)

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Call DeleteMessageBatch."""
        url = await self.addresses.queue_url(queue)
        sqs: SQSClient = await self.client("sqs")
        entries: Any = [{"Id": id_, "ReceiptHandle": receipt} for id_, receipt in zip(IDS, receipts, strict=False)]
        call = sqs.delete_message_batch(QueueUrl=url, Entries=entries)
        failed = await self._call_queue(
            call, "sqs:DeleteMessage", queue, lambda answer: failures(answer, len(receipts))
        )
        return still_there(failed)

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Call ChangeMessageVisibilityBatch."""
        url = await self.addresses.queue_url(queue)
        sqs: SQSClient = await self.client("sqs")
        entries: Any = [
            {"Id": id_, "ReceiptHandle": receipt, "VisibilityTimeout": round(seconds)}
            for id_, (receipt, seconds) in zip(IDS, leases, strict=False)
        ]
        call = sqs.change_message_visibility_batch(QueueUrl=url, Entries=entries)
        return await self._call_queue(
            call, "sqs:ChangeMessageVisibility", queue, lambda answer: failures(answer, len(leases))
        )

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call SendMessageBatch."""
        url = await self.addresses.queue_url(queue)
        sqs: SQSClient = await self.client("sqs")
        call = sqs.send_message_batch(QueueUrl=url, Entries=send_entries(messages))  # type: ignore[arg-type]
        return await self._call_queue(call, "sqs:SendMessage", queue, lambda answer: failures(answer, len(messages)))

    async def check_credentials(self) -> None:
        """Check that the credentials can stand in a request's headers. None of SNS, SQS and S3 is asked.

        Fetching them can fail for a while, as from a container's endpoint. That is not raised here: the first call of
        AWS will report it, and will be retried.

        Raises:
            ConfigError: They cannot; the error names where they are from.
        """
        try:
            found: Any = await self._session.get_credentials()
            frozen = await found.get_frozen_credentials() if found else None
        except Exception as error:  # noqa: BLE001 - botocore, or a provider's own
            log.debug("the credentials could not be fetched: %s", error)
            return
        if frozen is not None:
            check_credentials(frozen, found.method)

    async def aclose(self) -> None:
        """Close every client. A second call does nothing; a verb after it fails."""
        self._closed = True
        self._clients.clear()
        await self._stack.aclose()

    async def client(self, service: str, purpose: str = "call", *, region: str | None = None) -> Any:
        """Return the client of *service*, made at its first use.

        Args:
            purpose: ``poll`` for long polls, which have connections of their own.
            region: That of a topic declared by its ARN; by default this environment's.
        """
        if self._closed:
            raise TransportError("TransportClosed", "this transport has been closed", retryable=False)
        home = (os.getpid(), asyncio.get_running_loop())
        if self._home is None:
            self._home = home
        elif self._home != home:
            msg = (
                "this transport (of a Publisher or Worker) was first used in another event loop or process; "
                "open one inside of each"
            )
            raise ConfigError(msg)
        region = region or self.region
        key = f"{service}-{purpose}-{region}"
        client = self._clients.get(key)
        if client is not None:
            return client
        async with self._opening:
            if key not in self._clients:
                seconds = MAX_WAIT_SECONDS + POLL_MARGIN_SECONDS if purpose == "poll" else CALL_TIMEOUT_SECONDS
                self._clients[key] = await open_client(
                    self._stack, self._session, service, region, read_timeout_seconds=seconds
                )
        return self._clients[key]

    async def _call_queue(self, call: Awaitable[Any], action: str, queue: str, read: Callable[[Any], T]) -> T:
        try:
            return read(await call)
        except Exception as error:
            fault = classify(error, action=action, target=f"queue {self.addresses.physical(queue)!r}")
            if fault.code in MISSING:
                self.addresses.forget_queue(queue)
            raise fault from error

    @staticmethod
    async def _call(call: Awaitable[Any], action: str, target: str, read: Callable[[Any], T]) -> T:
        try:
            return read(await call)
        except Exception as error:
            raise classify(error, action=action, target=target) from error

    async def _find_naming(self) -> Naming:
        partition = (await self.client("sns")).meta.partition
        settings = self._settings
        account_id = settings.account_id or (await (await self.client("sts")).get_caller_identity())["Account"]
        return Naming(partition, self.region, account_id, settings.prefix, settings.application)

    async def _find_queue_url(self, name: str) -> str:
        sqs: SQSClient = await self.client("sqs")
        return (await sqs.get_queue_url(**queue_lookup(self._settings.prefix, name, self.region)))["QueueUrl"]


def still_there(failed: list[Failure]) -> list[Failure]:
    """Leave out what is deleted already: some brokers refuse that, AWS does not."""
    return [failure for failure in failed if failure.code != "ReceiptHandleIsInvalid"]
