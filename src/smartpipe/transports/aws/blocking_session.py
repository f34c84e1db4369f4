"""AwsSession for blocking code, on boto3: the same configuration, checks and refresh of credentials."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.credentials import EnvProvider
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from smartpipe.errors import ConfigError, TransportError
from smartpipe.names import Naming
from smartpipe.process_guard import ProcessGuard
from smartpipe.transports.aws.addresses import queue_lookup
from smartpipe.transports.aws.configuration import (
    check_client,
    check_urls,
    client_options,
    configuration_errors,
    configure,
)
from smartpipe.transports.aws.credential_errors import credential_errors
from smartpipe.transports.aws.credentials import refresh_when_refused_blocking
from smartpipe.transports.aws.own_attributes import keep_own_attributes
from smartpipe.transports.aws.variables import check_before_signing_blocking
from smartpipe.urls import redact

if TYPE_CHECKING:
    from smartpipe.settings import AwsSettings

MAX_CONNECTIONS = 50


class BlockingAwsSession:
    """Credentials, region, addresses and clients of this environment. Threads may share one, processes may not.

    Args:
        session: By default one that reads the environment and the AWS files.

    Raises:
        ConfigError: As AwsSession.
    """

    def __init__(self, settings: AwsSettings, *, session: boto3.Session | None = None) -> None:
        botocore_session = session._session if session else Session()  # noqa: SLF001 - boto3 keeps its configuration there
        self.region = configure(botocore_session, None if session else EnvProvider)
        try:
            self.boto3_session = session or boto3.Session(botocore_session=botocore_session)
        except BotoCoreError as error:
            raise ConfigError(f"AWS configuration: {error}") from None
        check_before_signing_blocking(botocore_session)
        refresh_when_refused_blocking(botocore_session)
        self._settings = settings
        self._config = Config(max_pool_connections=MAX_CONNECTIONS, **client_options())
        self._clients: dict[tuple[str, str], Any] = {}
        self._account_id = settings.account_id
        self._naming: Naming | None = None
        self._queue_urls: dict[str, str] = {}
        self._lock = threading.RLock()
        self._guard = ProcessGuard("this publisher")

    def check_usable(self) -> None:
        """Check that this session was first used in this process. One that was only created before a fork is usable.

        Raises:
            ConfigError: It was first used in another process.
        """
        self._guard.check()

    def client(self, service: str, *, region: str | None = None) -> Any:
        """Return the boto3 client of *service*. The session opens it at its first use, and closes it.

        Args:
            region: The region of a topic that is declared by its ARN; by default that of this environment.

        Raises:
            ConfigError: The AWS configuration has an error.
        """
        key = service, region or self.region
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._open(*key)
            return self._clients[key]

    def _open(self, service: str, region: str) -> Any:
        check_urls(service)
        create: Any = self.boto3_session.client
        try:
            with configuration_errors(), credential_errors():  # boto3 fetches the credentials now
                client = create(service, region_name=region, config=self._config)
        except TransportError as error:
            raise ConfigError(f"AWS configuration: {error.detail}") from None
        except BotoCoreError as error:
            raise ConfigError(f"AWS configuration: {redact(str(error))}") from None
        check_client(client)
        keep_own_attributes(client)
        return client

    def account_id(self) -> str:
        """Return the account of the settings, or that of the credentials. STS is called once."""
        with self._lock:
            if self._account_id is None:
                self._account_id = str(self.client("sts").get_caller_identity()["Account"])
            return self._account_id

    def naming(self) -> Naming:
        """Return the parts of this environment's ARNs."""
        if self._naming is None:
            partition = self.client("sns").meta.partition
            self._naming = Naming(partition, self.region, self.account_id(), self._settings.prefix)
        return self._naming

    def queue_url(self, name: str) -> str:
        """Return the URL of a queue, by its declared name or ARN. SQS is called once for each queue."""
        with self._lock:
            if name not in self._queue_urls:
                lookup = queue_lookup(self._settings.prefix, name, self.region)
                self._queue_urls[name] = self.client("sqs").get_queue_url(**lookup)["QueueUrl"]
            return self._queue_urls[name]

    def forget_queue(self, name: str) -> None:
        """Look the URL up again at its next use: the queue may have been deleted and created again."""
        self._queue_urls.pop(name, None)

    def close(self) -> None:
        """Close every client."""
        for client in list(self._clients.values()):
            client.close()
