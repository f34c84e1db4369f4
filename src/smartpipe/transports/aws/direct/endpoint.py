"""The endpoint of one service in one region, as botocore would reach it, and signed requests to it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.utils import get_environ_proxies

from smartpipe.characters import CONTROL
from smartpipe.transports.aws.direct.http import NO_RESPONSE, ConnectionLost, Pool
from smartpipe.transports.aws.direct.signing import Signer
from smartpipe.transports.aws.errors import STALE, classify, code_of, is_skew
from smartpipe.transports.aws.variables import check_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.transports.aws.direct.response import Response
    from smartpipe.transports.aws.direct.signing import Credentials
    from smartpipe.transports.aws.session import AwsSession

log = logging.getLogger("smartpipe.aws")

ASK_EVERY_SECONDS = 5.0
"""How often the session is asked for its current credentials. botocore refreshes them minutes before they expire."""
SKEW_SECONDS = 30.0
FAILED = 300
"""The lowest HTTP status of a failed request."""


class ServiceProtocol(NamedTuple):
    """How to call one service.

    Args:
        service: botocore's name of it.
        content_type: Of requests.
        probe: An operation without parameters that smartpipe does not call. Its request shows where botocore would
            send requests.
        read_error: Turns an error response into the form that botocore gives it.
    """

    service: str
    content_type: str
    probe: str
    read_error: Callable[[Response], dict[str, Any]]


class Destination(NamedTuple):
    """The URL to which botocore would send requests, and the scope of their signature."""

    url: str
    region: str
    service: str
    user_agent: str


async def open_endpoint(session: AwsSession, protocol: ServiceProtocol, region: str) -> Endpoint | None:
    """Return the endpoint of a service in *region*.

    None, after a log line, if the configuration needs something that the direct transport does not support.

    Raises:
        ConfigError: The AWS configuration has an error.
        TransportError: There are no credentials, or they cannot be fetched.
    """
    client = await session.client(protocol.service, region=region)
    try:
        found = await find_destination(client, protocol.probe)
    except Exception as error:
        action = f"{protocol.service}:{protocol.probe}"
        raise classify(error, action=action, target=protocol.service) from error
    session.check_usable()  # it may have been closed meanwhile
    if isinstance(found, str):
        service = protocol.service.upper()
        log.info("Using aiobotocore for %s instead of the direct transport: %s", service, found)
        return None
    return Endpoint(found, session, protocol)


class _NotSentError(Exception):
    """Raised instead of sending a request whose destination is all that is wanted."""


async def find_destination(client: Any, operation: str) -> Destination | str:
    """Return where *client* would send *operation*, or the reason why the direct transport cannot send it there.

    botocore runs up to the moment of sending. So endpoints, partitions, dual stack, FIPS, profiles and the environment
    remain its business.
    """
    requests: list[Any] = []

    async def before_send(request: Any, **_: Any) -> None:
        requests.append(request)
        raise _NotSentError

    events, name = client.meta.events, f"before-send.{client.meta.service_model.endpoint_prefix}.{operation}"
    events.register_first(name, before_send)
    try:
        await client._make_api_call(operation, {})  # noqa: SLF001 - the methods of a client call it
    except _NotSentError:
        pass
    finally:
        events.unregister(name, before_send)
    if not requests:
        return "botocore did not get as far as sending"
    return _read_destination(requests[0], client.meta.config)


def _read_destination(request: Any, config: Any) -> Destination | str:
    parts = urlsplit(request.url)
    authorization = _text(request.headers.get("Authorization"))
    kind, _, scope = authorization.partition(" Credential=")
    if kind != "AWS4-HMAC-SHA256":
        return f"requests are signed by {kind or 'nothing'}"
    if parts.path not in ("", "/") or parts.query:
        return f"the endpoint {request.url} has a path"
    if config.proxies or get_environ_proxies(request.url):
        return "a proxy is set"
    if config.client_cert:
        return "a client certificate is set"
    if CONTROL.search(parts.netloc + _text(request.headers.get("User-Agent"))):  # of a session that was passed in
        return "its User-Agent or its host has a control character"
    _, _, region, service, _ = scope.split(",")[0].split("/")
    return Destination(f"{parts.scheme}://{parts.netloc}", region, service, _text(request.headers.get("User-Agent")))


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


class Endpoint:
    """Signed requests to one destination. An endpoint belongs to the event loop in which it is created."""

    def __init__(self, destination: Destination, session: AwsSession, protocol: ServiceProtocol) -> None:
        parts = urlsplit(destination.url)
        self.url = destination.url
        self.loop = asyncio.get_running_loop()
        self._session = session
        self._read_error = protocol.read_error
        tls = session.tls_context() if parts.scheme == "https" else None
        self._pool = Pool(parts.hostname or "", parts.port or (443 if tls else 80), tls)
        self._signer = Signer(parts.netloc, destination.region, destination.service)
        self._head = (
            f"POST / HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: {destination.user_agent}\r\n"
            f"Content-Type: {protocol.content_type}\r\nContent-Length: "
        )
        self._credentials: Credentials | None = None
        self._asked_at = 0.0
        self._offset_seconds = 0.0

    @property
    def resent(self) -> int:
        """The number of requests that were sent twice, because a kept connection turned out to be closed."""
        return self._pool.resent

    async def post(
        self, target: str, body: bytes, *, timeout_seconds: float, poll: bool = False, trace_header: str | None = None
    ) -> bytes:
        """Sign and send a request, and return the body of the response.

        A request that AWS refused because of the clock, or because of credentials that can be refreshed, is sent again
        once.

        Args:
            target: The operation of the JSON protocol; empty for the query protocol.
            poll: The same request is repeated all the time, so it is signed once a second. It is never sent again on a
                new connection (see Pool.request): a lost response may have held messages.
            trace_header: The value of ``X-Amzn-Trace-Id``. It is not signed, as in botocore.

        Raises:
            ClientError: AWS refused the request, as from botocore.
            BotoCoreError: AWS could not be reached, or did not answer in time.
            ValueError: The response is not HTTP.
        """
        header = f"X-Amzn-Trace-Id: {trace_header}\r\n" if trace_header else ""
        response = await self._post_on_time(target, body, timeout_seconds, poll, header)
        if response.status < FAILED:
            return response.body
        if code_of(self._read_error(response)) in STALE and await self._session.refresh_credentials():
            self._credentials = None
            response = await self._post_on_time(target, body, timeout_seconds, poll, header)
            if response.status < FAILED:
                return response.body
        raise ClientError(self._describe_error(response), target.rpartition(".")[2] or "PublishBatch")  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connections. Requests in flight fail."""
        self._pool.close()

    async def _post_on_time(
        self,
        target: str,
        body: bytes,
        timeout_seconds: float,
        poll: bool,  # noqa: FBT001
        header: str,
    ) -> Response:
        response = await self._send(target, body, timeout_seconds, poll, header)
        if response.status >= FAILED and self._correct_clock(response):
            response = await self._send(target, body, timeout_seconds, poll, header)
        return response

    async def _send(
        self,
        target: str,
        body: bytes,
        timeout_seconds: float,
        poll: bool,  # noqa: FBT001
        header: str,
    ) -> Response:
        credentials = self._credentials
        if credentials is None or self.loop.time() - self._asked_at > ASK_EVERY_SECONDS:
            credentials = await self._find_credentials()
        now = time.time() + self._offset_seconds
        signature = self._signer.sign(credentials, now, target, body, repeats=poll)
        request = b"".join((f"{self._head}{len(body)}\r\n{header}{signature}\r\n".encode(), body))
        try:
            return await self._pool.request(request, timeout_seconds=timeout_seconds, resend=not poll)
        except ConnectionLost as error:
            raise ConnectionClosedError(endpoint_url=self.url, error=error) from error
        except ssl.SSLError as error:
            raise SSLError(endpoint_url=self.url, error=error) from error
        except TimeoutError as error:
            raise (ReadTimeoutError if error.args == (NO_RESPONSE,) else ConnectTimeoutError)(
                endpoint_url=self.url, error=error
            ) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=self.url, error=error) from error

    async def _find_credentials(self) -> Credentials:
        found = await self._session.find_credentials()
        if found is None:
            raise NoCredentialsError
        self._asked_at = self.loop.time()
        if self._credentials is None or found.frozen != self._credentials:
            check_credentials(found.frozen, found.method)
            self._credentials = found.frozen
        return self._credentials

    def _describe_error(self, response: Response) -> dict[str, Any]:
        metadata = {"HTTPStatusCode": response.status, "HTTPHeaders": {"date": response.header(b"date") or ""}}
        return {**self._read_error(response), "ResponseMetadata": metadata}

    def _correct_clock(self, response: Response) -> bool:
        """Sign by AWS's clock from now on, if AWS refused the request because of this machine's clock."""
        date = response.header(b"date")
        if not date or not is_skew(self._read_error(response)):
            return False
        try:
            offset = parsedate_to_datetime(date).timestamp() - time.time()
        except ValueError:  # not a date; the error response itself says more
            return False
        if abs(offset - self._offset_seconds) < SKEW_SECONDS:
            return False
        self._offset_seconds = offset
        log.warning(
            "This machine's clock is %.0f s %s AWS's clock. Requests will be signed by AWS's clock",
            abs(offset),
            "behind" if offset > 0 else "ahead of",
        )
        return True
