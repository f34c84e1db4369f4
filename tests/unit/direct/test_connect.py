"""Connections over real sockets: to hosts with several addresses, and with TLS; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil
import pytest
import uvloop

from smartpipe.transports.aws.direct import connect
from smartpipe.transports.aws.direct.http import ConnectionLost, Pool
from tests.support.certificates import Authority
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

Run: TypeAlias = "Callable[[Coroutine[Any, Any, Any]], Any]"

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run
    gc.collect()  # warns of open sockets here, so that they fail this test


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Answer one request for each connection, on loopback; yield the port."""
    handling: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(len(REQUEST))
            writer.write(OK)
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, handling))


@contextmanager
def serving_tls(tls: ssl.SSLContext, end: Callable[[ssl.SSLSocket], None]) -> Iterator[int]:
    """Send most of one response, and end the connection by *end*; yield the port."""

    def serve() -> None:
        accepted = listener.accept()[0]
        with accepted, suppress(ssl.SSLError), tls.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(len(REQUEST))
            connection.sendall(OK[:-1])
            end(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        served = pool.submit(serve)
        yield listener.getsockname()[1]
        served.result()


@contextmanager
def unresponsive() -> Iterator[int]:
    """Yield a port that does not answer, not even with a refusal, because its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        yield address[1]
        for one in waiting:
            one.close()


def closed() -> int:
    """Return a port without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def leads_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let every name resolve to these ports of loopback, in this order."""

    def lead(*ports: int) -> None:
        async def find_addresses(host: str, port: int) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", one)) for one in ports]

        monkeypatch.setattr(connect, "find_addresses", find_addresses)

    return lead


async def ask(pool: Pool) -> bytes:
    try:
        return (await pool.request(REQUEST, timeout_seconds=10, resend=True)).body
    finally:
        pool.close()
        await asyncio.sleep(0)


async def ask_at(host: str, port: int, tls: ssl.SSLContext | None) -> bytes:
    return await ask(Pool(host, port, tls))


def open_sockets() -> int:
    return len(psutil.Process().net_connections())


def test_an_address_that_does_not_answer_does_not_delay_the_next_one(run: Run, leads_to: Callable[..., None]) -> None:
    async def main(silent: int) -> bytes:
        async with serving() as port:
            leads_to(silent, silent, port)
            return await ask_at("sqs.test", 443, None)

    with unresponsive() as silent:
        assert run(main(silent)) == b"abc"


def test_an_address_that_refuses_is_followed_by_the_next(run: Run, leads_to: Callable[..., None]) -> None:
    async def main() -> bytes:
        async with serving() as port:
            leads_to(closed(), port)
            return await ask_at("sqs.test", 443, None)

    assert run(main()) == b"abc"


def test_if_all_addresses_refuse_the_connection_is_refused(run: Run, leads_to: Callable[..., None]) -> None:
    leads_to(closed(), closed())

    with pytest.raises(ConnectionRefusedError):
        run(ask_at("sqs.test", 443, None))


def test_if_no_address_answers_it_times_out_and_no_socket_stays_open(
    run: Run, leads_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 0.6)
    with unresponsive() as silent:
        leads_to(silent, silent, silent)
        before = open_sockets()
        with pytest.raises(TimeoutError):
            run(ask_at("sqs.test", 443, None))

        assert open_sockets() == before


def test_a_cancelled_connection_leaves_no_socket_open(run: Run, leads_to: Callable[..., None]) -> None:
    async def main(silent: int) -> None:
        leads_to(silent, silent)
        before = open_sockets()
        asking = asyncio.create_task(ask_at("sqs.test", 443, None))
        await until(lambda: open_sockets() == before + 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert open_sockets() == before

    with unresponsive() as silent:
        run(main(silent))


def test_a_pool_that_is_closed_while_it_connects_sends_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = connect.find_addresses

    async def main() -> None:
        async def find_addresses(host: str, port: int) -> list[Any]:
            pool.close()
            return await look_up(host, port)

        monkeypatch.setattr(connect, "find_addresses", find_addresses)
        async with serving() as port:
            pool, before = Pool("localhost", port, None), open_sockets()
            with pytest.raises(ConnectionLost, match="the pool was closed"):
                await ask(pool)
            await until(lambda: open_sockets() <= before)

    run(main())


def test_an_unknown_host_name_is_an_error(run: Run) -> None:
    with pytest.raises(socket.gaierror):
        run(ask_at("sqs.invalid", 443, None))


def test_a_cancelled_tls_handshake_leaves_no_socket_open(run: Run, tmp_path: Path) -> None:
    tls = trusting(Authority(tmp_path))

    async def main(silent: int) -> None:
        before = open_sockets()
        asking = asyncio.create_task(ask_at("127.0.0.1", silent, tls))
        await until(lambda: open_sockets() == before + 1)
        await asyncio.sleep(0.05)  # into the handshake
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.01)

        assert open_sockets() == before

    with socket.create_server(("127.0.0.1", 0)) as says_nothing:
        run(main(says_nothing.getsockname()[1]))


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.bundle)


def cut(connection: ssl.SSLSocket) -> None:
    """End TCP without closing TLS."""
    connection.shutdown(socket.SHUT_RDWR)


def farewell(connection: ssl.SSLSocket) -> None:
    """Close TLS, and leave TCP open."""
    with suppress(OSError):  # from a client that has gone in the meantime
        connection.unwrap()


def reset(connection: ssl.SSLSocket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("end", [cut, farewell, reset])
def test_tls_that_ends_before_the_response_is_a_lost_connection(
    run: Run, tmp_path: Path, end: Callable[[ssl.SSLSocket], None]
) -> None:
    authority = Authority(tmp_path)
    with serving_tls(authority.server(), end) as port, pytest.raises(ConnectionLost):
        run(ask_at("localhost", port, trusting(authority)))


def test_a_refused_certificate_is_a_tls_error_and_leaves_no_socket_open(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    before = open_sockets()
    with serving_tls(authority.server("sqs.test"), cut) as port, pytest.raises(ssl.SSLCertVerificationError):
        run(ask_at("localhost", port, trusting(authority)))

    assert open_sockets() == before
