"""Query a child process for its health over its Unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from pathlib import Path

# Longer than the default timeout of a probe (Kubernetes: 1 s), so that the timeout of the probe decides.
QUERY_SECONDS = 3.0


class Response(NamedTuple):
    """The HTTP response of a child."""

    status: int
    text: str


class NoResponseError(Exception):
    """The child did not respond. ``listening`` is whether it accepted the connection."""

    def __init__(self, *, listening: bool) -> None:
        super().__init__()
        self.listening = listening


async def query(socket: Path, path: str, *, accept: str = "*/*") -> Response:
    """Return the response of the child that listens on *socket*.

    Raises:
        NoResponseError: No process listens there, or it did not respond within 3 s.
    """
    timeout = aiohttp.ClientTimeout(total=QUERY_SECONDS)
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(f"http://child{path}", headers={"Accept": accept}) as response,
        ):
            return Response(response.status, await response.text())
    except aiohttp.ClientConnectorError:
        raise NoResponseError(listening=False) from None
    except (TimeoutError, aiohttp.ClientError):
        raise NoResponseError(listening=True) from None
