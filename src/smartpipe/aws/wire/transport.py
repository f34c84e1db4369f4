"""The five verbs on the wire; everything else, and whatever the wire does not do, by way of aiobotocore."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.exceptions import ClientError

from smartpipe.aws.client import CALL_TIMEOUT_SECONDS, POLL_MARGIN_SECONDS
from smartpipe.aws.entries import failures
from smartpipe.aws.faults import STALE, code_of
from smartpipe.aws.transport import AwsTransport
from smartpipe.aws.wire import queues, topics
from smartpipe.aws.wire.endpoint import Endpoint, look
from smartpipe.topology.naming import region_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smartpipe.aws.wire.http import Response
    from smartpipe.message import Failure, Message, OutgoingMessage

log = logging.getLogger("smartpipe.aws")


class _Protocol(NamedTuple):
    """How one service is spoken to, and a call that tells where it is."""

    content_type: str
    read_error: Callable[[Response], dict[str, Any]]
    operation: str


_PROTOCOLS = {
    "sqs": _Protocol(queues.CONTENT_TYPE, queues.error_in, "ListQueues"),
    "sns": _Protocol(topics.CONTENT_TYPE, topics.error_in, "ListTopics"),
}


class WireTransport(AwsTransport):
    """An AwsTransport whose five verbs go beneath botocore, at a tenth of its CPU.

    Region, endpoint, credentials and all configuration stay botocore's. Where something is configured that the wire
    does not do, a proxy for example, the verbs of that service go through aiobotocore, and one log line says so.

    ``damaged`` counts messages whose MD5 sum was wrong, ``resent`` requests that were sent once more because their
    kept connection had been closed: on a standard topic or queue each may have made a duplicate.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._endpoints: dict[tuple[str, str], Endpoint | None] = {}
        self.damaged = 0

    @property
    def resent(self) -> int:
        """How many requests were sent twice."""
        return sum(endpoint.pool.resent for endpoint in self._endpoints.values() if endpoint)

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        """Call PublishBatch."""
        arn = (await self.addresses.naming()).topic_arn(topic)
        endpoint = await self._endpoint("sns", region_in(arn), f"topic {arn}")
        if endpoint is None:
            return await super().publish(topic, messages)
        call = endpoint.post("", topics.publish_body(arn, messages), timeout_seconds=CALL_TIMEOUT_SECONDS)

        def read(body: bytes) -> list[Failure]:
            return failures(topics.answer_in(body), len(messages))

        return await self._call(self._renewing(endpoint, call), "sns:Publish", f"topic {arn}", read)
