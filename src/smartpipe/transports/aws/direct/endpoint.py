"""One service in one region, as botocore would reach it, and signed requests to it."""

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
    ReadTimeoutError,
    SSLError,
)
from botocore.utils import get_environ_proxies

from smartpipe.transports.aws.client import tls_of
from smartpipe.transports.aws.direct.http import NO_RESPONSE, ConnectionLost, Pool
from smartpipe.transports.aws.direct.signing import Signer
from smartpipe.transports.aws.errors import is_skew
from smartpipe.transports.aws.variables import check_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiobotocore.session import AioSession

    from smartpipe.transports.aws.direct.response import Response
    from smartpipe.transports.aws.direct.signing import Credentials

log = logging.getLogger("smartpipe.aws")

ASK_EVERY_SECONDS = 5.0
"""How often the session is asked whether its credentials are still the same: botocore renews them minutes ahead."""
SKEW_SECONDS = 30.0
FAILED = 300
"""From this HTTP status on."""


class _Seen(Exception):
    """Raised in place of sending a request that was only to be looked at."""


class Place(NamedTuple):
    """Where botocore would send requests, and what it would sign them for."""

    url: str
    region: str
    service: str
    user_agent: str


async def find_endpoint(client: Any, operation: str) -> Place | str:
    """Return where *client* would send *operation*; or, in words, why the wire does not go there.

    botocore is let go all its way to before the sending: endpoints, partitions, dual stack, FIPS, profiles and
    environment are then its business.

    Args:
        operation: A verb without parameters that nobody else calls, as in ``ListQueues``.
    """
    seen: list[Any] = []

    async def before_send(request: Any, **_: Any) -> None:
        seen.append(request)
        raise _Seen

    events, name = client.meta.events, f"before-send.{client.meta.service_model.endpoint_prefix}.{operation}"
    events.register_first(name, before_send)
    try:
        await client._make_api_call(operation, {})  # noqa: SLF001 - what its methods are made of
    except _Seen:
        pass
    finally:
        events.unregister(name, before_send)
    if not seen:
        return "botocore did not get as far as sending"
    return _place(seen[0], client.meta.config)


def _place(request: Any, config: Any) -> Place | str:
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
    _, _, region, service, _ = scope.split(",")[0].split("/")
    return Place(f"{parts.scheme}://{parts.netloc}", region, service, _text(request.headers.get("User-Agent")))


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


class Endpoint:
    """Signed requests to one place.

    Args:
        content_type: Of requests.
        read_error: Makes of an answer that is an error what botocore would make of it.
    """

    def __init__(
        self, place: Place, session: AioSession, *, content_type: str, read_error: Callable[[Response], dict[str, Any]]
    ) -> None:
        parts = urlsplit(place.url)
        self.url = place.url
        self.loop = asyncio.get_running_loop()
        self._session = session
        self._read_error = read_error
        tls = tls_of(session) if parts.scheme == "https" else None
        self.pool = Pool(parts.hostname or "", parts.port or (443 if tls else 80), tls)
        self._signer = Signer(parts.netloc, place.region, place.service)
        self._head = (
            f"POST / HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: {place.user_agent}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: "
        )
        self._credentials: Credentials | None = None
        self._asked_at = 0.0
        self._offset_seconds = 0.0

    async def post(self, target: str, body: bytes, *, timeout_seconds: float, poll: bool = False) -> bytes:
        """Sign and send; return the body of the answer.

        Args:
            target: The operation of the JSON protocol; empty for the query protocol.
            poll: It is made again and again, so it is signed once a second; and its answer may be lost with what was
                in it, so it is never sent again on a new connection (see Pool.request).

        Raises:
            ClientError: AWS refused; as from botocore.
            BotoCoreError: It could not be reached, or did not answer in time.
            ValueError: It answered what is no HTTP.
        """
        response = await self._send(target, body, timeout_seconds, poll)
        if response.status >= FAILED and self._corrects_clock(response):
            response = await self._send(target, body, timeout_seconds, poll)
        if response.status < FAILED:
            return response.body
        raise ClientError(self._error(response), target.rpartition(".")[2] or "PublishBatch")  # type: ignore[arg-type]

    def forget_credentials(self) -> None:
        """Ask the session for them before the next request."""
        self._credentials = None

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()

    async def _send(self, target: str, body: bytes, timeout_seconds: float, poll: bool) -> Response:  # noqa: FBT001
        credentials = self._credentials
        if credentials is None or self.loop.time() - self._asked_at > ASK_EVERY_SECONDS:
            credentials = await self._current_credentials()
        now = time.time() + self._offset_seconds
        signed = self._signer.headers(credentials, now, target, body, repeats=poll)
        request = b"".join((f"{self._head}{len(body)}\r\n{signed}\r\n".encode(), body))
        try:
            return await self.pool.request(request, timeout_seconds=timeout_seconds, resend=not poll)
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

    async def _current_credentials(self) -> Credentials:
        found: Any = await self._session.get_credentials()
        frozen: Credentials = await found.get_frozen_credentials()
        self._asked_at = self.loop.time()
        if self._credentials is None or frozen != self._credentials:
            check_credentials(frozen, found.method)
            self._credentials = frozen
        return self._credentials

    def _error(self, response: Response) -> dict[str, Any]:
        answer = self._read_error(response)
        metadata = {"HTTPStatusCode": response.status, "HTTPHeaders": {"date": response.header(b"date") or ""}}
        return {**answer, "ResponseMetadata": metadata}

    def _corrects_clock(self, response: Response) -> bool:
        """Go by AWS's clock from now on, if ours is off and that is what it complains of."""
        date = response.header(b"date")
        if not date or not is_skew(self._read_error(response)):
            return False
        try:
            offset = parsedate_to_datetime(date).timestamp() - time.time()
        except ValueError:  # of a date that is none, the answer itself says more
            return False
        if abs(offset - self._offset_seconds) < SKEW_SECONDS:
            return False
        self._offset_seconds = offset
        log.warning(
            "this machine's clock is %.0f s %s AWS's; requests are signed by AWS's from now on",
            abs(offset),
            "behind" if offset > 0 else "ahead of",
        )
        return True
