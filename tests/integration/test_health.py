"""The health server on real sockets: its clients cannot exhaust the file descriptors of the process."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import pytest

from smartpipe.telemetry.prometheus import TEXT
from smartpipe.worker import health
from smartpipe.worker.health import HealthServer, ProbeResult
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Streams: TypeAlias = "tuple[asyncio.StreamReader, asyncio.StreamWriter]"


class Fine:
    """A HealthReport that is always positive."""

    async def livez(self) -> ProbeResult:
        return ProbeResult(True, {"alive": True})

    async def readyz(self) -> ProbeResult:
        return ProbeResult(True, {"ready": True})

    async def metrics(self, content_type: str = TEXT) -> str:
        return "up 1\n" * 1_000_000


@asynccontextmanager
async def connected(
    server: HealthServer, path: Path | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await (
        asyncio.open_connection("127.0.0.1", server.port) if path is None else asyncio.open_unix_connection(path)
    )
    try:
        yield reader, writer
    finally:
        writer.close()


async def probe(server: HealthServer, path: Path | None, request: bytes = b"GET /livez HTTP/1.1") -> bytes:
    async with asyncio.timeout(20), connected(server, path) as (reader, writer):
        writer.write(request + b"\r\nHost: x\r\n\r\n")
        return await reader.read()


async def received(reader: asyncio.StreamReader) -> bytes:
    """Return the data until the connection ends, which is a reset on TCP."""
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def half_open(server: HealthServer, path: Path | None, stack: ExitStack) -> socket.socket:
    one = stack.enter_context(socket.socket(socket.AF_INET if path is None else socket.AF_UNIX))
    one.connect(("127.0.0.1", server.port) if path is None else str(path))
    return one


@pytest.fixture(params=["port", "socket"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "health.sock" if request.param == "socket" else None


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"GET /livez HT",
        b"POST /livez HTTP/1.1\r\nContent-Length: 10\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "half a line", "half a head", "no body", "an unread response"],
)
async def test_probes_are_served_while_many_other_connections_stay_open(path: Path | None, opening: bytes) -> None:
    async with HealthServer(Fine(), "127.0.0.1", 0, socket=path) as server:
        with ExitStack() as stack:
            for _ in range(200):
                half_open(server, path, stack).send(opening)
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)

            answer = await probe(server, path)

            assert answer.startswith(b"HTTP/1.1 200")
            assert len(server._connections) <= health.MAX_CONNECTIONS


@pytest.mark.parametrize("request_line", [b"GET /livez HTTP/1.1", b"GET /nothing HTTP/1.1", b"POST /livez HTTP/1.1"])
async def test_a_connection_closes_after_its_response(path: Path | None, request_line: bytes) -> None:
    async with HealthServer(Fine(), "127.0.0.1", 0, socket=path) as server:
        head, _, body = (await probe(server, path, request_line)).partition(b"\r\n\r\n")

        assert b"Connection: close" in head
        if b"200" in head.splitlines()[0]:
            assert json.loads(body) == {"alive": True}
        await until(lambda: not server._connections)


async def test_a_connection_without_a_request_is_closed(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.05)
    async with HealthServer(Fine(), "127.0.0.1", 0, socket=path) as server, connected(server, path) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\n")
        assert await received(reader) == b""


async def test_a_probe_that_takes_long_is_answered_because_its_request_is_complete(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.5)

    class Slow(Fine):
        async def livez(self) -> ProbeResult:
            await asyncio.sleep(0.6)  # the request arrived before, so its limit ends meanwhile
            return await super().livez()

    async with HealthServer(Slow(), "127.0.0.1", 0, socket=path) as server:
        assert (await probe(server, path)).startswith(b"HTTP/1.1 200")


async def test_a_connection_whose_client_does_not_read_is_closed(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(health, "RESPONSE_SECONDS", 0.05)
    asked = asyncio.Event()

    class Asked(Fine):
        async def metrics(self, content_type: str = TEXT) -> str:
            asked.set()
            return await super().metrics(content_type)

    async with HealthServer(Asked(), "127.0.0.1", 0, socket=path) as server, connected(server, path) as (_, writer):
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(asked.wait(), 20)
        await until(lambda: not server._connections)


async def test_the_server_closes_its_connections_when_it_ends(path: Path | None) -> None:
    async with HealthServer(Fine(), "127.0.0.1", 0, socket=path) as server:
        reader, writer = await (
            asyncio.open_connection("127.0.0.1", server.port) if path is None else asyncio.open_unix_connection(path)
        )
        await until(lambda: server._connections)
    assert await received(reader) == b""
    writer.close()


async def test_a_burst_of_connections_is_closed_without_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with HealthServer(Fine(), "127.0.0.1", 0) as health:
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", health.port) for _ in range(200)), return_exceptions=True
        )
        await asyncio.sleep(0.2)
        for one in opened:
            if not isinstance(one, BaseException):
                one[1].close()
    gc.collect()  # an unretrieved exception is logged when its task is deleted

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "request_line",
    [b"\x16\x03\x01\x02\x00", b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000, b"GET /livez HTTP/x"],
    ids=["TLS", "a long header", "a wrong version"],
)
async def test_a_request_that_is_not_http_is_refused_without_an_error_in_the_log(
    request_line: bytes, path: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with HealthServer(Fine(), "127.0.0.1", 0, socket=path) as server:
        assert b" 400 Bad Request" in (await probe(server, path, request_line)).partition(b"\r\n")[0]

    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_internal_error_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Fine):
        async def livez(self) -> ProbeResult:
            raise RuntimeError("broken")

    async with HealthServer(Broken(), "127.0.0.1", 0) as server:
        assert b" 500 " in await probe(server, None)

    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "RuntimeError: broken" in caplog.text
    assert record.name == "smartpipe.health"
