"""From the names that services declare to the ARNs and URLs of AWS. Each is looked up once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smartpipe.errors import ConfigError
from smartpipe.names import Naming, account_in, is_arn, name_in, physical_name, region_in
from smartpipe.transports.aws.errors import classify

if TYPE_CHECKING:
    from smartpipe.settings import AwsSettings
    from smartpipe.transports.aws.session import AwsSession

ACCOUNT = "the credentials' account (SMARTPIPE_ACCOUNT_ID would make this call unnecessary)"
"""The target of GetCallerIdentity, in error messages."""


def queue_lookup(prefix: str, name: str, region: str) -> dict[str, str]:
    """Return the arguments of GetQueueUrl for a queue declared as *name*, or by its ARN.

    Raises:
        ConfigError: The ARN is of another region, and the client of this process cannot reach it.
    """
    if not is_arn(name):
        return {"QueueName": prefix + name}
    if region_in(name) != region:
        msg = f"queue {name} is in region {region_in(name)}, and this process works in {region}: set AWS_REGION"
        raise ConfigError(msg)
    return {"QueueName": name_in(name), "QueueOwnerAWSAccountId": account_in(name)}


class Addresses:
    """The naming of this environment and the URLs of its queues."""

    def __init__(self, settings: AwsSettings, session: AwsSession) -> None:
        self._settings = settings
        self._session = session
        self._naming: Naming | None = None
        self._naming_lock = asyncio.Lock()
        self._queue_urls: dict[str, str] = {}

    def physical(self, name: str) -> str:
        """Return *name* with the environment's prefix."""
        return physical_name(self._settings.prefix, name)

    async def naming(self) -> Naming:
        """Return the parts of this environment's ARNs.

        Raises:
            TransportError: The call of STS for the account failed. ``SMARTPIPE_ACCOUNT_ID`` makes it unnecessary.
        """
        if self._naming is None:
            async with self._naming_lock:
                if self._naming is None:
                    try:
                        self._naming = await self._find_naming()
                    except Exception as error:
                        raise classify(error, action="sts:GetCallerIdentity", target=ACCOUNT) from error
        return self._naming

    async def queue_url(self, name: str) -> str:
        """Return the URL of a queue, by its declared name or ARN.

        Raises:
            TransportError: ``QueueDoesNotExist``, or the call of SQS failed.
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
        """Look the URL up again at its next use: the queue may have been deleted and created again."""
        self._queue_urls.pop(name, None)

    async def _find_naming(self) -> Naming:
        partition = (await self._session.client("sns")).meta.partition
        settings = self._settings
        account_id = settings.account_id or (await (await self._session.client("sts")).get_caller_identity())["Account"]
        return Naming(partition, self._session.region, account_id, settings.prefix, settings.application)

    async def _find_queue_url(self, name: str) -> str:
        sqs = await self._session.client("sqs")
        lookup = queue_lookup(self._settings.prefix, name, self._session.region)
        url: str = (await sqs.get_queue_url(**lookup))["QueueUrl"]
        return url
