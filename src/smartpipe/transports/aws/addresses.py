"""From the names that services declare to the ARNs and URLs that AWS wants, each found out once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.names import account_in, is_arn, name_in, physical_name, region_in
from smartpipe.transports.aws.errors import classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smartpipe.names import Naming


def queue_lookup(prefix: str, name: str, region: str) -> dict[str, str]:
    """Return the arguments of GetQueueUrl for a queue declared as *name*, or by its ARN.

    Raises:
        ConfigError: The ARN is of another region, where this process's client does not reach.
    """
    if not is_arn(name):
        return {"QueueName": prefix + name}
    if region_in(name) != region:
        msg = f"queue {name} is in region {region_in(name)}, and this process works in {region}: set AWS_REGION"
        raise ConfigError(msg)
    return {"QueueName": name_in(name), "QueueOwnerAWSAccountId": account_in(name)}


class Addresses:
    """Remembers the environment's naming and the URLs of its queues.

    Args:
        prefix: Goes before every name.
        find_naming: Asks for partition, region and account; called once.
        find_queue_url: Asks SQS for the URL of a queue, by its name or ARN as it was declared.
    """

    def __init__(
        self,
        prefix: str,
        *,
        find_naming: Callable[[], Awaitable[Naming]],
        find_queue_url: Callable[[str], Awaitable[str]],
    ) -> None:
        self._prefix = prefix
        self._find_naming = find_naming
        self._find_queue_url = find_queue_url
        self._naming: Naming | None = None
        self._naming_lock = asyncio.Lock()
        self._queue_urls: dict[str, str] = {}

    def physical(self, name: str) -> str:
        """Return *name* with the environment's prefix."""
        return physical_name(self._prefix, name)

    async def naming(self) -> Naming:
        """Return what ARNs are made of.

        Raises:
            TransportError: STS could not be asked for the account; ``SMARTPIPE_ACCOUNT_ID`` spares the question.
        """
        if self._naming is None:
            async with self._naming_lock:
                if self._naming is None:
                    try:
                        self._naming = await self._find_naming()
                    except Exception as error:
                        target = "the credentials' account (SMARTPIPE_ACCOUNT_ID would spare the question)"
                        raise classify(error, action="sts:GetCallerIdentity", target=target) from error
        return self._naming

    async def queue_url(self, name: str) -> str:
        """Return the queue's URL.

        Raises:
            TransportError: ``QueueDoesNotExist``, or SQS could not be asked.
        """
        url = self._queue_urls.get(name)
        if url is None:
            try:
                url = await self._find_queue_url(name)
            except Exception as error:
                raise classify(error, action="sqs:GetQueueUrl", target=f"queue {self.physical(name)!r}") from error
            self._queue_urls[name] = url
        return url

    def forget_queue(self, name: str) -> None:
        """Ask anew next time: the queue may have been deleted and made again."""
        self._queue_urls.pop(name, None)
