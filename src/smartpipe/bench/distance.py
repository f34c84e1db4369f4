"""Put a distance between the processes of a run and its broker: a proxy that delays each byte."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from smartpipe.errors import ConfigError
from smartpipe.urls import describe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SNS", "AWS_ENDPOINT_URL_SQS")
MAX_MILLISECONDS = 10_000.0
BACKLOG = 4_096
"""Connections that wait to be accepted. Each process of a run may open hundreds at once."""


@asynccontextmanager
async def open_distance(environment: Mapping[str, str], milliseconds: float) -> AsyncIterator[dict[str, str]]:
    """Yield *environment* with endpoints whose answers arrive *milliseconds* later than the broker's own.

    A request travels for half of the time, and its answer for the other half. A new connection costs one whole round
    trip before its first request, as with TCP. Bandwidth is not limited.

    Raises:
        ConfigError: An endpoint is not ``http://``: the certificate of another endpoint is not that of the proxy.
    """
    found = dict(environment)
    proxies: list[asyncio.Server] = []
    connections: set[asyncio.WriteTransport] = set()
    try:
        for name in ENDPOINTS:
            if url := environment.get(name):
                proxy = await _listen(url, milliseconds / 1_000, connections)
                proxies.append(proxy)
                found[name] = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        if not proxies:
            raise ConfigError("--latency needs a broker with an endpoint URL: AWS has a distance of its own")
        yield found
    finally:
        for proxy in proxies:
            proxy.close()
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0)  # an aborted connection is closed in the next turn of the loop


def wrong_endpoint_error(url: str) -> str:
    """Return the error for an endpoint that the proxy cannot stand in for."""
    return f"--latency needs an endpoint with http://, and {describe_url(url)} is none"


async def _listen(url: str, round_trip_seconds: float, connections: set[asyncio.WriteTransport]) -> asyncio.Server:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(wrong_endpoint_error(url))
    host, port = parts.hostname, parts.port or 80
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: _Near(host, port, round_trip_seconds, connections), "127.0.0.1", 0, backlog=BACKLOG
    )


class _Delayed:
    """One direction of a connection: it writes what it is given after *seconds*, in the same order."""

    def __init__(self, seconds: float, first_seconds: float) -> None:
        self.target: asyncio.WriteTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._not_before = self._loop.time() + first_seconds
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, data: bytes) -> None:
        """Write *data* later. An empty value closes the target after everything before it."""
        due = max(self._loop.time() + self._seconds, self._not_before)
        self._waiting.append((due, data))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._write_due)

    def _write_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now and self.target is not None:
            _, data = self._waiting.popleft()
            if data:
                self.target.write(data)
            else:
                self.target.close()
        if self._waiting:
            self._timer = self._loop.call_at(max(self._waiting[0][0], now + 0.001), self._write_due)


class _Connection(asyncio.Protocol):
    """One end of a connection, whose bytes go to the other end."""

    def __init__(self, other: _Delayed, connections: set[asyncio.WriteTransport]) -> None:
        self._other, self._connections = other, connections
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not a subclass
        self._connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        self._other.send(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._other.send(b"")
        if self._transport is not None:
            self._connections.discard(self._transport)


class _Near(_Connection):
    """The end of a process of the run. It opens the other end, which is that of the broker."""

    def __init__(
        self, host: str, port: int, round_trip_seconds: float, connections: set[asyncio.WriteTransport]
    ) -> None:
        self._host, self._port = host, port
        self._requests = _Delayed(round_trip_seconds / 2, round_trip_seconds * 1.5)
        self._answers = _Delayed(round_trip_seconds / 2, 0.0)
        self._opening: asyncio.Task[None] | None = None
        super().__init__(self._requests, connections)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._answers.target = self._transport
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._requests.target, _ = await loop.create_connection(
                lambda: _Connection(self._answers, self._connections), self._host, self._port
            )
        except OSError:
            self._answers.send(b"")
