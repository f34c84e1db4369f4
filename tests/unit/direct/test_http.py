"""HTTP/1.1 over real sockets, with a server that follows the script of a test."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.transports.aws.direct import http, response
from smartpipe.transports.aws.direct.http import ConnectionLost, Pool
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from smartpipe.transports.aws.direct.response import Response

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nDate: today\r\n\r\nabc"


class Server:
    """Answers each request, on any of its connections, with the next script."""

    def __init__(self, *scripts: bytes | Callable[[asyncio.StreamWriter], None] | None) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await reader.readexactly(len(REQUEST))
                self.requests += 1
                script = self.scripts.pop(0)
                if script is None:
                    break
                if callable(script):
                    script(writer)
                    continue
                for byte in (script[:30], script[30:]):  # in two pieces
                    writer.write(byte)
                    await writer.drain()
                    await asyncio.sleep(0)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def talking(server: Server) -> AsyncIterator[Pool]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        pool = Pool("127.0.0.1", listening.sockets[0].getsockname()[1], None)
        yield pool
        pool.close()


async def ask(pool: Pool, *, timeout_seconds: float = 10.0, resend: bool = True) -> Response:
    return await pool.request(REQUEST, timeout_seconds=timeout_seconds, resend=resend)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n"


@pytest.mark.parametrize(
    "script",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        CHUNKED + b"\r\n",
        CHUNKED + b"Trailer: x\r\n\r\n",
        OK.replace(b"Content-Length", b"content-length"),
    ],
    ids=["length", "interim", "chunked", "trailers", "lower case"],
)
async def test_a_response_is_read_and_its_connection_used_again(script: bytes) -> None:
    server = Server(script, OK)
    async with talking(server) as pool:
        first, second = await ask(pool), await ask(pool)

    assert first.body == second.body == b"abc"
    assert second.header(b"date") == "today"
    assert second.header(b"da") is None
    assert server.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_a_connection_that_the_server_will_close_is_not_used_again(script: bytes) -> None:
    server = Server(script, OK)
    async with talking(server) as pool:
        assert (await ask(pool)).body == (await ask(pool)).body == b"abc"

    assert server.connections == 2


async def test_a_response_without_length_ends_with_its_connection() -> None:
    def script(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        writer.close()

    async with talking(Server(script)) as pool:
        assert (await ask(pool)).body == b"abc"


async def test_concurrent_requests_have_separate_connections() -> None:
    server = Server(*[OK] * 6)
    async with talking(server) as pool:
        await asyncio.gather(*(ask(pool) for _ in range(3)))
        await asyncio.gather(*(ask(pool) for _ in range(3)))

    assert server.connections == 3


async def test_fault_52_a_kept_connection_that_the_server_closed_is_replaced_once_and_counted() -> None:
    server = Server(OK, None, OK)
    async with talking(server) as pool:
        await ask(pool)
        assert (await ask(pool)).body == b"abc"

        assert pool.resent == 1
    assert (server.requests, server.connections) == (3, 2)


async def test_fault_52_a_receive_is_not_sent_twice() -> None:
    server = Server(OK, None, OK)
    async with talking(server) as pool:
        await ask(pool)
        with pytest.raises(ConnectionLost):
            await ask(pool, resend=False)

    assert server.requests == 2


async def test_a_new_connection_that_the_server_closes_is_an_error_without_a_retry() -> None:
    server = Server(None, OK)
    async with talking(server) as pool:
        with pytest.raises(ConnectionLost, match="closed before the response ended"):
            await ask(pool)

    assert server.requests == 1


async def test_fault_52_a_request_with_half_a_response_is_not_sent_again() -> None:
    def half(writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-1])
        writer.close()

    server = Server(OK, half, OK)
    async with talking(server) as pool:
        await ask(pool)
        with pytest.raises(ConnectionLost):
            await ask(pool)

    assert server.requests == 2


async def test_a_connection_that_closed_while_idle_is_not_tried() -> None:
    def last(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    server = Server(last, OK)
    async with talking(server) as pool:
        await ask(pool)
        while pool._idle[0].open:  # noqa: ASYNC110 - the end of a connection has no event
            await asyncio.sleep(0.001)
        await ask(pool)

        assert pool.resent == 0
    assert server.requests == 2


async def test_a_connection_that_was_idle_for_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
    server = Server(OK, OK)
    async with talking(server) as pool:
        await ask(pool)
        await ask(pool)

    assert server.connections == 2


async def test_unused_connections_of_a_burst_are_closed_in_time() -> None:
    server = Server(OK, OK, OK)
    async with talking(server) as pool:
        await asyncio.gather(ask(pool), ask(pool))
        left_over = pool._idle[0]
        left_over.idle_since -= http.IDLE_SECONDS
        await ask(pool)

        assert not left_over.open
        assert len(pool._idle) == 1
    assert server.connections == 2


async def test_no_response_in_time_ends_the_connection() -> None:
    def answer_the_second(writer: asyncio.StreamWriter) -> None:
        if server.connections == 2:
            writer.write(OK)

    server = Server(answer_the_second, answer_the_second)  # the first request may come too late to be read
    async with talking(server) as pool:
        with pytest.raises(TimeoutError, match="no response in time"):
            await ask(pool, timeout_seconds=0.05)
        assert (await ask(pool)).body == b"abc"

    assert server.connections == 2


async def test_a_cancelled_request_closes_its_connection() -> None:
    server = Server(lambda _: None, OK)
    async with talking(server) as pool:
        asking = asyncio.create_task(ask(pool))
        await until(lambda: server.requests == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await ask(pool)).body == b"abc"

    assert server.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        b"SMTP ready, and more of it than an HTTP client likes\r\n\r\n",
        b"HTTP/2 200 OK and so on and so forth until the end\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-6\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
    ids=[
        "another protocol",
        "another version",
        "no number",
        "negative length",
        "no chunk",
        "negative chunk",
        "longer chunk",
        "no end",
        "a head without end",
    ],
)
async def test_a_response_that_is_not_http_is_an_error(script: bytes) -> None:
    async with talking(Server(script)) as pool:
        with pytest.raises(ValueError, match=r"."):
            await ask(pool)


async def test_a_response_that_is_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "MAX_RESPONSE_BYTES", 10_000)
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 20_000, OK)
    async with talking(server) as pool:
        with pytest.raises(ValueError, match="longer than 10000 bytes"):
            await ask(pool)

        assert (await ask(pool)).body == b"abc"
    assert server.connections == 2


async def test_a_port_without_a_listener_refuses_the_connection() -> None:
    server = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    with pytest.raises(ConnectionRefusedError):
        await Pool("127.0.0.1", port, None).request(REQUEST, timeout_seconds=1, resend=True)


@pytest.mark.parametrize(
    "script",
    [
        OK + OK,
        OK.replace(b": 3", b": 2"),
        CHUNKED + b"\r\nabc",
        CHUNKED + b"Trailer: x\r\n\r\nabc",
        OK + b"\r\n",
        CHUNKED + b"\r\n\r\n",
    ],
    ids=[
        "another answer",
        "longer than it says",
        "after the chunks",
        "after the trailers",
        "a line end",
        "a line end after the chunks",
    ],
)
async def test_bytes_after_a_response_end_the_connection(script: bytes) -> None:
    server = Server(script, OK)
    async with talking(server) as pool:
        first = await ask(pool)
        assert (await ask(pool)).body == b"abc"

    assert b"abc".startswith(first.body)
    assert server.connections == 2


@pytest.mark.parametrize("extra", [b"x", b"\r\n", OK], ids=["a byte", "a line end", "another answer"])
async def test_bytes_on_an_idle_connection_end_it(extra: bytes) -> None:
    writers: list[asyncio.StreamWriter] = []

    def remember(writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(OK)

    server = Server(remember, OK)
    async with talking(server) as pool:
        await ask(pool)
        writers[0].write(extra)
        while pool._idle[0].open:  # noqa: ASYNC110 - the end of a connection has no event
            await asyncio.sleep(0.001)
        assert (await ask(pool)).body == b"abc"

    assert (server.requests, server.connections) == (2, 2)


async def test_a_closed_pool_sends_no_request_again() -> None:
    server = Server(OK, lambda _: None, OK)
    async with talking(server) as pool:
        await ask(pool)
        waiting = asyncio.create_task(ask(pool))
        while server.requests < 2:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.001)
        pool.close()

        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost, match="closed"):
            await ask(pool)
    assert server.requests == 2


async def test_a_connection_keeps_itself_alive() -> None:
    connection = http.Connection(asyncio.get_running_loop())
    with socket.socket() as connected:
        transport: Any = SimpleNamespace(get_extra_info=lambda name: connected if name == "socket" else None)
        connection.connection_made(transport)

        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connection.open
