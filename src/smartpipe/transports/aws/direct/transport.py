"""The five verbs on the wire; everything else, and whatever the wire does not do, by way of aiobotocore."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from smartpipe.counters import TransportCounters
from smartpipe.errors import TransportError
from smartpipe.names import region_in
from smartpipe.transports.aws.client import CALL_TIMEOUT_SECONDS, POLL_MARGIN_SECONDS
from smartpipe.transports.aws.direct import sns as topics
from smartpipe.transports.aws.direct import sqs as queues
from smartpipe.transports.aws.direct.endpoint import Endpoint, find_endpoint
from smartpipe.transports.aws.entries import failures
from smartpipe.transports.aws.errors import STALE, classify
from smartpipe.transports.aws.transport import AwsTransport, still_there

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.message import Failure, Message, OutgoingMessage
    from smartpipe.transports.aws.direct.http import Pool
    from smartpipe.transports.aws.direct.response import Response

log = logging.getLogger("smartpipe.aws")

T = TypeVar("T")


class _Protocol(NamedTuple):
    """How one service is spoken to, and a call that tells where it is."""

    content_type: str
    read_error: Callable[[Response], dict[str, Any]]
    operation: str


_PROTOCOLS = {
    "sqs": _Protocol(queues.CONTENT_TYPE, queues.read_error, "ListQueues"),
    "sns": _Protocol(topics.CONTENT_TYPE, topics.read_error, "ListTopics"),
}


class DirectTransport(AwsTransport):
    """An AwsTransport whose five verbs go beneath botocore, at a tenth of its CPU.

    Region, endpoint, credentials and all configuration stay botocore's. Where something is configured that the wire
    does not do, a proxy for example, the verbs of that service go through aiobotocore, and one log line says so; what
    goes there is not counted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._endpoints: dict[tuple[str, str], Endpoint | None] = {}
        self._looking = asyncio.Lock()
        self._pools: list[Pool] = []
        self._damaged = 0

    @property
    def counts(self) -> TransportCounters:
        """What it has noticed since it was made; it can be read after ``aclose``, too."""
        return TransportCounters(self._damaged, sum(pool.resent for pool in self._pools))

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        arn = (await self.addresses.naming()).topic_arn(topic)
        endpoint = await self._endpoint("sns", region_in(arn))
        if endpoint is None:
            return await super().publish(topic, messages)
        body = topics.publish_body(arn, messages)
        read = partial(_failures, topics.read_response, len(messages))

        def call() -> Awaitable[list[Failure]]:
            posted = endpoint.post("", body, timeout_seconds=CALL_TIMEOUT_SECONDS)
            return self._call(posted, "sns:Publish", f"topic {arn}", read)

        return await self._with_credentials(endpoint, call)

    async def receive(
        self, queue: str, *, max_messages: int, wait_seconds: float, visibility_timeout_seconds: float
    ) -> list[Message]:
        """Call ReceiveMessage; once and no more, for its answer may have been lost with the messages in it."""
        endpoint = await self._endpoint("sqs", self.region)
        if endpoint is None:
            return await super().receive(
                queue,
                max_messages=max_messages,
                wait_seconds=wait_seconds,
                visibility_timeout_seconds=visibility_timeout_seconds,
            )
        url = await self.addresses.queue_url(queue)
        body = queues.receive_body(url, max_messages, int(wait_seconds), int(visibility_timeout_seconds))
        seconds = wait_seconds + POLL_MARGIN_SECONDS

        def read(answer: bytes) -> list[Message]:
            found, damaged = queues.read_messages(answer, endpoint.loop.time())
            self._damaged += damaged
            return found

        def call() -> Awaitable[list[Message]]:
            posted = endpoint.post(f"{queues.TARGET}ReceiveMessage", body, timeout_seconds=seconds, poll=True)
            return self._call_queue(posted, "sqs:ReceiveMessage", queue, read)

        return await self._with_credentials(endpoint, call)

    async def delete(self, queue: str, receipts: Sequence[str]) -> list[Failure]:
        """Call DeleteMessageBatch."""
        endpoint = await self._endpoint("sqs", self.region)
        if endpoint is None:
            return await super().delete(queue, receipts)
        body = queues.delete_body(await self.addresses.queue_url(queue), receipts)
        failed = await self._batch(endpoint, "DeleteMessageBatch", "sqs:DeleteMessage", queue, body, len(receipts))
        return still_there(failed)

    async def change_visibility(self, queue: str, leases: Sequence[tuple[str, float]]) -> list[Failure]:
        """Call ChangeMessageVisibilityBatch."""
        endpoint = await self._endpoint("sqs", self.region)
        if endpoint is None:
            return await super().change_visibility(queue, leases)
        body = queues.visibility_body(await self.addresses.queue_url(queue), leases)
        verb, action = "ChangeMessageVisibilityBatch", "sqs:ChangeMessageVisibility"
        return await self._batch(endpoint, verb, action, queue, body, len(leases))

    async def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call SendMessageBatch."""
        endpoint = await self._endpoint("sqs", self.region)
        if endpoint is None:
            return await super().send(queue, messages)
        body = queues.send_body(await self.addresses.queue_url(queue), messages)
        return await self._batch(endpoint, "SendMessageBatch", "sqs:SendMessage", queue, body, len(messages))

    async def aclose(self) -> None:
        """Close every connection and client. A second call does nothing; a verb after it fails."""
        await super().aclose()
        for endpoint in self._endpoints.values():
            if endpoint is not None:
                endpoint.close()
        self._endpoints.clear()
        await asyncio.sleep(0)  # sockets are closed in the loop's next turn

    async def _batch(
        self, endpoint: Endpoint, verb: str, action: str, queue: str, body: bytes, count: int
    ) -> list[Failure]:
        target, read = queues.TARGET + verb, partial(_failures, queues.read_response, count)

        def call() -> Awaitable[list[Failure]]:
            posted = endpoint.post(target, body, timeout_seconds=CALL_TIMEOUT_SECONDS)
            return self._call_queue(posted, action, queue, read)

        return await self._with_credentials(endpoint, call)

    async def _with_credentials(self, endpoint: Endpoint, call: Callable[[], Awaitable[T]]) -> T:
        """Call; once more with new credentials if it was refused for those that it had."""
        try:
            return await call()
        except TransportError as error:
            if error.code not in STALE or not await self._refresh.renewed():
                raise
        endpoint.forget_credentials()
        return await call()

    async def _endpoint(self, service: str, region: str) -> Endpoint | None:
        """Return where *service* is; None if the wire does not go there."""
        try:
            endpoint = self._endpoints[service, region]
        except KeyError:
            return await self._found(service, region)
        if endpoint is not None and endpoint.loop is not asyncio.get_running_loop():
            await self.client(service, region=region)  # which says what is wrong with that
        return endpoint

    async def _found(self, service: str, region: str) -> Endpoint | None:
        client = await self.client(service, region=region)
        key = service, region
        async with self._looking:
            if key not in self._endpoints:
                protocol = _PROTOCOLS[service]
                try:
                    place = await find_endpoint(client, protocol.operation)
                except Exception as error:
                    raise classify(error, action=f"{service}:{protocol.operation}", target=service) from error
                if self._closed:
                    raise TransportError("TransportClosed", "this transport has been closed", retryable=False)
                if isinstance(place, str):
                    log.info("%s goes through aiobotocore, not the wire: %s", service.upper(), place)
                    self._endpoints[key] = None
                else:
                    endpoint = self._endpoints[key] = Endpoint(
                        place, self._session, content_type=protocol.content_type, read_error=protocol.read_error
                    )
                    self._pools.append(endpoint.pool)
        return self._endpoints[key]


def _failures(read: Callable[[bytes], Any], count: int, body: bytes) -> list[Failure]:
    return failures(read(body), count)
