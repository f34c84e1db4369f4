"""The one way into AWS with asyncio: credentials, region, addresses and clients."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioEnvProvider
from aiobotocore.session import get_session

from smartpipe.errors import ConfigError, TransportError
from smartpipe.limits import MAX_WAIT_SECONDS
from smartpipe.transports.aws.addresses import Addresses
from smartpipe.transports.aws.configuration import (
    CALL_TIMEOUT_SECONDS,
    POLL_MARGIN_SECONDS,
    check_client,
    check_urls,
    client_options,
    configuration_errors,
    configure,
    create_tls_context,
)
from smartpipe.transports.aws.credential_errors import credential_errors
from smartpipe.transports.aws.credentials import refresh_when_refused
from smartpipe.transports.aws.own_attributes import keep_own_attributes
from smartpipe.transports.aws.variables import check_before_signing, check_credentials

if TYPE_CHECKING:
    import ssl

    from aiobotocore.session import AioSession

    from smartpipe.settings import AwsSettings
    from smartpipe.transports.aws.direct.signing import Credentials

log = logging.getLogger("smartpipe.aws")


class FoundCredentials(NamedTuple):
    """Credentials as they are now.

    Args:
        method: botocore's name of their source, such as ``env`` or ``iam-role``.
    """

    frozen: Credentials
    method: str


class AwsSession:
    """Credentials, region, addresses and clients of this environment, for everything that calls AWS with asyncio.

    It opens a client at its first use. It belongs to the event loop and process of its first call.

    Args:
        session: By default one that reads the environment and the AWS files.
        call_timeout_seconds: The read timeout of clients, but for those of polls. 15 s by default.

    Raises:
        ConfigError: The region is missing, a CA bundle cannot be read, an AWS variable has a character that no header
            may have, or the AWS configuration has an error.
    """

    def __init__(
        self, settings: AwsSettings, *, session: AioSession | None = None, call_timeout_seconds: float | None = None
    ) -> None:
        self.botocore_session = session or get_session()
        self.region = configure(self.botocore_session, None if session else AioEnvProvider)
        check_before_signing(self.botocore_session)
        self._refresh = refresh_when_refused(self.botocore_session)
        self.addresses = Addresses(settings, self)
        self._call_timeout_seconds = call_timeout_seconds
        self._clients: dict[tuple[str, str, str], Any] = {}
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._closed = False

    async def client(
        self, service: str, purpose: Literal["call", "poll"] = "call", *, region: str | None = None
    ) -> Any:
        """Return the aiobotocore client of *service*. The session opens it at its first use, and closes it.

        Args:
            purpose: ``poll`` for long polls. They have a client of their own, because connections belong to a client:
                on shared connections, deletes waited for polls (4.5 s of a poll of 5 s).
            region: The region of a topic that is declared by its ARN; by default that of this environment.

        Raises:
            ConfigError: The AWS configuration has an error, or this is not the event loop of the first call.
            TransportError: ``TransportClosed``, or the credentials cannot be fetched for now.
        """
        self.check_usable()
        key = service, purpose, region or self.region
        client = self._clients.get(key)
        if client is not None:
            return client
        async with self._opening:
            if key not in self._clients:
                self._clients[key] = await self._open(*key)
        return self._clients[key]

    async def _open(self, service: str, purpose: str, region: str) -> Any:
        seconds = self._call_timeout_seconds or CALL_TIMEOUT_SECONDS
        if purpose == "poll":
            seconds = MAX_WAIT_SECONDS + POLL_MARGIN_SECONDS
        check_urls(service)
        # 0 means no limit. With a limit, calls wait for a free connection without a timeout. The callers, which are
        # pollers and batchers, limit the number of concurrent calls already.
        config = AioConfig(max_pool_connections=0, **client_options(read_timeout_seconds=seconds))
        create: Any = self.botocore_session.create_client
        with configuration_errors(), credential_errors():  # botocore fetches the credentials now
            client = await self._stack.enter_async_context(create(service, region_name=region, config=config))
        check_client(client)
        keep_own_attributes(client)
        return client

    def check_usable(self) -> None:
        """Check that this session is open, and that it was first used in this event loop and process.

        Raises:
            ConfigError: It was first used in another event loop or process.
            TransportError: ``TransportClosed``.
        """
        if self._closed:
            raise TransportError("TransportClosed", "this transport has been closed", retryable=False)
        home = os.getpid(), asyncio.get_running_loop()
        if self._home is None:
            self._home = home
        elif self._home != home:
            msg = (
                "this transport (of a Publisher or Worker) was first used in another event loop or process; "
                "open one in each of them"
            )
            raise ConfigError(msg)

    async def find_credentials(self) -> FoundCredentials | None:
        """Return the current credentials. botocore refreshes them minutes before they expire.

        Raises:
            ConfigError, TransportError: As ``credential_errors``.
        """
        with credential_errors():
            found: Any = await self.botocore_session.get_credentials()
            return FoundCredentials(await found.get_frozen_credentials(), found.method) if found else None

    async def refresh_credentials(self) -> bool:
        """Fetch new credentials, at most once in 10 s; return whether that brought new ones."""
        return await self._refresh.refresh()

    async def check_credentials(self) -> None:
        """Check that the credentials may be part of a request's headers. This makes no call of SNS, SQS or S3.

        Fetching them can fail for a while, for example from a container's endpoint. No error is raised in that case:
        the first call of AWS will fail with it, and will be retried.

        Raises:
            ConfigError: They may not, or their source can never provide any. The error names the source.
        """
        try:
            found = await self.find_credentials()
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - of botocore, or of a credential provider
            log.debug("Cannot fetch the credentials: %s", error)
            return
        if found is not None:
            check_credentials(found.frozen, found.method)

    def tls_context(self) -> ssl.SSLContext:
        """Return a new context that trusts the same authorities as the clients do."""
        return create_tls_context(self.botocore_session)

    async def aclose(self) -> None:
        """Close every client. A second call does nothing, and any other call fails after it."""
        self._closed = True
        self._clients.clear()
        await self._stack.aclose()
