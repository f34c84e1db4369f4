"""The distance that ``smartpipe bench --latency`` puts between its processes and the broker."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import uvloop

from smartpipe import ConfigError
from smartpipe.bench.distance import _Connection, _Near, open_distance
from tests.support.virtual_time import run_virtually
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MILLISECONDS = 60.0
SECONDS = MILLISECONDS / 1_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: str) -> Streams:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def listen_and_echo() -> AsyncIterator[str]:
    """A server that sends back what it gets, until it gets the word ``end``, which closes the connection."""
    open_connections = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        with suppress(ConnectionError):
            while (data := await reader.read(65_536)) and data != b"end":
                writer.write(data)
        await close(writer)
        open_connections -= 1

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await until(lambda: open_connections == 0)


async def test_an_answer_takes_a_round_trip_and_the_first_of_a_connection_takes_two() -> None:
    async with listen_and_echo() as url, open_distance({"AWS_ENDPOINT_URL": url}, MILLISECONDS) as environment:
        reader, writer = await connect(environment["AWS_ENDPOINT_URL"])
        for least_seconds in (2 * SECONDS, SECONDS, SECONDS):
            began = time.monotonic()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert time.monotonic() - began >= least_seconds - 0.005
        await close(writer)


def test_it_works_on_uvloop_too() -> None:
    async def ask() -> None:
        async with listen_and_echo() as url, open_distance({"AWS_ENDPOINT_URL": url}, 1) as environment:
            reader, writer = await connect(environment["AWS_ENDPOINT_URL"])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await close(writer)

    uvloop.run(ask())


async def test_bytes_arrive_in_order_and_several_can_be_on_the_way() -> None:
    async with listen_and_echo() as url, open_distance({"AWS_ENDPOINT_URL": url}, MILLISECONDS) as environment:
        reader, writer = await connect(environment["AWS_ENDPOINT_URL"])
        sent = b"".join(number.to_bytes(4) for number in range(200_000))
        for start in range(0, len(sent), 100_000):
            writer.write(sent[start : start + 100_000])
            await asyncio.sleep(0)
        assert await reader.readexactly(len(sent)) == sent
        await close(writer)


async def test_a_closed_connection_is_closed_on_the_other_side_after_what_was_sent() -> None:
    async with listen_and_echo() as url, open_distance({"AWS_ENDPOINT_URL": url}, MILLISECONDS) as environment:
        reader, writer = await connect(environment["AWS_ENDPOINT_URL"])
        writer.write(b"last words")
        assert await reader.readexactly(10) == b"last words"
        writer.write(b"end")
        assert await reader.read() == b""
        await close(writer)


async def test_a_broker_that_is_not_there_closes_the_connection() -> None:
    async with listen_and_echo() as url:
        pass  # nobody listens on this port any more
    async with open_distance({"AWS_ENDPOINT_URL": url}, 0) as environment:
        reader, writer = await connect(environment["AWS_ENDPOINT_URL"])
        assert await reader.read() == b""
        await close(writer)


async def test_each_endpoint_gets_a_distance_and_other_variables_stay() -> None:
    async with listen_and_echo() as sns, listen_and_echo() as sqs:
        given = {"AWS_ENDPOINT_URL_SNS": sns, "AWS_ENDPOINT_URL_SQS": sqs, "AWS_REGION": "eu-west-1"}
        async with open_distance(given, MILLISECONDS) as environment:
            assert environment["AWS_REGION"] == "eu-west-1"
            changed = {environment[name] for name in ("AWS_ENDPOINT_URL_SNS", "AWS_ENDPOINT_URL_SQS")}
            assert len(changed) == 2
            assert not changed & {sns, sqs}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "--latency needs a broker with an endpoint URL"),
        (
            {"AWS_ENDPOINT_URL": "https://localhost:4566"},
            "--latency needs an endpoint with http://, and https://localho",
        ),
    ],
)
async def test_without_a_plain_endpoint_there_is_no_distance(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        async with open_distance(environment, MILLISECONDS):
            pass


class Target:
    """Records what is written to it, and when."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []

    def write(self, data: bytes) -> None:
        self.written.append((round(asyncio.get_running_loop().time(), 3), data))

    def close(self) -> None:
        self.write(b"closed")


@pytest.mark.parametrize(
    ("direction", "times"),
    [("_answers", (0.03, 0.04, 0.04)), ("_requests", (0.09, 0.09, 0.09))],
)
def test_each_direction_takes_half_of_a_round_trip_and_the_first_request_one_more(
    direction: str, times: tuple[float, ...]
) -> None:
    async def main() -> tuple[list[tuple[float, bytes]], list[tuple[float, bytes]]]:
        near, target = _Near("localhost", 1, SECONDS, set()), Target()
        delayed: Any = getattr(near, direction)
        delayed.target = target
        delayed.send(b"1")
        await asyncio.sleep(0.01)
        delayed.send(b"2")
        delayed.send(b"3")
        await asyncio.sleep(0.99)
        first, target.written = target.written, []
        delayed.send(b"4")
        delayed.send(b"")
        await asyncio.sleep(1.0)
        return first, target.written

    first, second = run_virtually(main())

    assert first == [(at, data) for at, data in zip(times, (b"1", b"2", b"3"), strict=True)]
    assert second == [(1.03, b"4"), (1.03, b"closed")]


def test_what_arrives_before_the_other_end_is_open_waits_for_it() -> None:
    async def main() -> list[tuple[float, bytes]]:
        near, target = _Near("localhost", 1, SECONDS, set()), Target()
        delayed: Any = near._requests
        delayed.send(b"1")
        await asyncio.sleep(0.5)
        delayed.target = target
        await asyncio.sleep(0.5)
        return target.written

    [(at, data)] = run_virtually(main())

    assert data == b"1"
    assert 0.5 <= at <= 0.502


class Aborting:
    """A connection that records that it was aborted."""

    def __init__(self, closed: list[str]) -> None:
        self._closed = closed

    def abort(self) -> None:
        self._closed.append("aborted")


async def test_a_distance_is_a_round_trip_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, float]] = []
    closed: list[str] = []

    async def listen(url: str, round_trip_seconds: float, connections: set[Any]) -> Any:
        opened.append((url, round_trip_seconds))
        connections.add(Aborting(closed))
        socket = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 81))
        return SimpleNamespace(sockets=[socket], close=lambda: closed.append("closed"))

    monkeypatch.setattr("smartpipe.bench.distance._listen", listen)

    async with open_distance({"AWS_ENDPOINT_URL": "http://x"}, 80.0) as environment:
        assert environment == {"AWS_ENDPOINT_URL": "http://127.0.0.1:81"}
        assert closed == []

    assert opened == [("http://x", 0.08)]
    assert closed == ["closed", "aborted"]


def test_a_connection_is_forgotten_when_it_is_lost() -> None:
    async def main() -> None:
        connections: set[Any] = set()
        near, transport = _Near("localhost", 1, SECONDS, connections), Target()
        near.connection_lost(None)  # before it was made
        _Connection.connection_made(near, transport)  # type: ignore[arg-type]
        assert connections == {transport}
        near.connection_lost(None)
        assert connections == set()

    run_virtually(main())
