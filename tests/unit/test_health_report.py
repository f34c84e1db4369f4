"""The health of a process as its probes and metrics report it, and the limits of the server's connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smartpipe import ConfigError
from smartpipe.counters import Counters, TransportCounters
from smartpipe.telemetry.prometheus import TEXT
from smartpipe.worker.health import (
    MAX_CONNECTIONS,
    REQUEST_SECONDS,
    RESPONSE_SECONDS,
    HealthServer,
    ProbeResult,
    WorkerHealth,
    _BoundedConnection,
)
from tests.support.virtual_time import run_virtually


def make_consumer(queue: str, *, since: float = 1.26, failing: bool = False, **counts: Any) -> Any:
    return SimpleNamespace(
        queue=SimpleNamespace(name=queue),
        counters=Counters(**counts),
        in_flight=3,
        slots=SimpleNamespace(size=10),
        open_calls=1,
        processor=SimpleNamespace(circuits=[]),
        failing=failing,
        seconds_since_success=lambda: since,
    )


def make_worker(name: str, *consumers: Any, alive: bool = True, ready: bool = True, **more: Any) -> Any:
    capacity = SimpleNamespace(overdue=2, reasons=more.pop("reasons", []))
    return SimpleNamespace(
        name=name, consumers=consumers, alive=alive, ready=ready, capacity=capacity,
        transport_counts=more.pop("transport_counts", None), calls=None, collect_metrics=list,
    )  # fmt: skip


async def test_a_probe_reports_the_state_of_each_queue() -> None:
    consumers = make_consumer("mail", handled=2, received=3), make_consumer("audit", since=0, failing=True)
    health = WorkerHealth(make_worker("mail", *consumers, ready=False))

    queues = {
        "mail": {"seconds_since_poll": 1.3, "polls_failing": False, "in_flight": 3, "received": 3, "handled": 2},
        "audit": {"seconds_since_poll": 0, "polls_failing": True, "in_flight": 3},
    }
    assert await health.livez() == ProbeResult(ok=True, body={"alive": True, "queues": queues})
    assert await health.readyz() == ProbeResult(ok=False, body={"ready": False, "queues": queues})


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True), (False, False)])
async def test_a_process_is_alive_and_ready_if_all_of_its_services_are(first: bool, second: bool) -> None:
    health = WorkerHealth(
        make_worker("mail", make_consumer("mail"), alive=first, ready=not first, reasons=["out of memory"]),
        make_worker("audit", make_consumer("audit"), alive=second, ready=not second, reasons=["of the second"]),
    )

    live, ready = await health.livez(), await health.readyz()

    assert (live.ok, live.body["alive"]) == (first and second, first and second)
    assert live.body["services"] == {"mail": {"alive": first}, "audit": {"alive": second}}
    assert (ready.ok, ready.body["ready"]) == (not first and not second, not first and not second)
    assert live.body["reasons"] == ready.body["reasons"] == ["out of memory"]  # they share one capacity
    assert list(live.body["queues"]) == ["mail", "audit"]


async def test_metrics_have_one_sample_for_each_queue_and_name_all_services() -> None:
    counts = TransportCounters(damaged=4)
    one, two = make_consumer("mail", handled=5), make_consumer("audit", since=0.04)
    first, second = make_worker("mail", one, transport_counts=counts), make_worker("audit", two)

    text = await WorkerHealth(first, second).metrics()

    assert 'smartpipe_messages_total{service="mail",queue="mail",outcome="handled"} 5\n' in text
    assert 'smartpipe_poll_age_seconds{service="mail",queue="mail"} 1.3\n' in text
    assert 'smartpipe_poll_age_seconds{service="audit",queue="audit"} 0.0\n' in text
    assert 'smartpipe_messages_in_flight{service="audit",queue="audit"} 3\n' in text
    assert 'smartpipe_handlers_overdue{service="mail,audit"} 2\n' in text
    assert 'smartpipe_messages_damaged_total{service="mail,audit"} 4\n' in text
    assert 'smartpipe_log_lines_dropped_total{service="mail,audit"} 0\n' in text
    alone = await WorkerHealth(second).metrics()
    assert "smartpipe_messages_damaged_total" not in alone
    assert 'smartpipe_handlers_overdue{service="audit"} 2\n' in alone


class Silent:
    """A report that is not asked."""

    async def livez(self) -> ProbeResult:
        raise AssertionError

    readyz = livez

    async def metrics(self, content_type: str = TEXT) -> str:
        raise AssertionError


@pytest.mark.parametrize(
    ("host", "path", "bound", "url", "private"),
    [
        ("0.0.0.0", None, "0.0.0.0:80", "http://127.0.0.1:80", False),
        ("::", None, "[::]:80", "http://[::1]:80", False),
        ("::1", None, "[::1]:80", "http://[::1]:80", False),
        ("10.1.2.3", None, "10.1.2.3:80", "http://10.1.2.3:80", False),
        ("0.0.0.0", Path("/run/1.sock"), "/run/1.sock", "unix:/run/1.sock", True),
    ],
)
def test_the_address_of_the_server_is_shown_as_a_url(
    host: str, path: Path | None, bound: str, url: str, private: bool
) -> None:
    server = HealthServer(Silent(), host, 80, socket=path)

    assert (server.bound, server.url, server.private) == (bound, url, private)
    assert server.log_level == (logging.DEBUG if private else logging.INFO)


async def test_a_port_of_0_selects_a_free_one_and_a_used_port_is_an_error_that_names_the_setting() -> None:
    async with HealthServer(Silent(), "127.0.0.1", 0) as server:
        assert server.port > 0
        second = HealthServer(Silent(), "127.0.0.1", server.port)
        with pytest.raises(ConfigError, match=f"cannot bind the health port 127.0.0.1:{server.port}: .*SMARTPIPE_PORT"):
            async with second:
                pass
        assert second._runner is not None
        assert second._runner.server is None  # it was cleaned up
    async with HealthServer(Silent(), "127.0.0.1", server.port) as again:  # it was closed
        assert again.port == server.port


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError(errno.EADDRNOTAVAIL, "cannot assign requested address"), "cannot assign requested address"),
        (OSError("could not bind on any address"), "could not bind on any address"),
    ],
)
async def test_an_address_that_is_not_of_this_machine_is_an_error_that_names_its_setting(
    error: OSError, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", refuse)

    with pytest.raises(ConfigError) as raised:
        async with HealthServer(Silent(), "shop.invalid", 80):
            pass

    hint = "choose an address of this machine with --host or SMARTPIPE_HOST"
    assert str(raised.value) == f"cannot serve /livez on shop.invalid: {reason}; {hint}"


class FakeTransport:
    def __init__(self) -> None:
        self.aborted_at: float | None = None
        self.connection: Any = None

    def is_closing(self) -> bool:
        return self.aborted_at is not None

    def abort(self) -> None:
        self.aborted_at = asyncio.get_running_loop().time()
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)


class Inner(asyncio.Protocol):
    def __init__(self) -> None:
        self.made = self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


class Server:
    """Connections of a server, in the order in which they came."""

    def __init__(self) -> None:
        self.open: dict[Any, _BoundedConnection] = {}
        self.connections: list[_BoundedConnection] = []
        self.transports: list[FakeTransport] = []
        self.inner: list[Inner] = []

    def connect(self, count: int = 1) -> None:
        for _ in range(count):
            transport, inner = FakeTransport(), Inner()
            connection = _BoundedConnection(inner, self.open)
            transport.connection = connection
            self.connections.append(connection)
            self.transports.append(transport)
            self.inner.append(inner)
            connection.connection_made(transport)  # type: ignore[arg-type]

    def aborted(self) -> dict[int, float]:
        times = {number: transport.aborted_at for number, transport in enumerate(self.transports)}
        return {number: at for number, at in times.items() if at is not None}


def test_a_connection_without_a_request_is_closed_after_five_seconds_and_one_with_a_request_after_fifteen_more() -> (
    None
):
    async def main() -> None:
        server = Server()
        server.connect(3)
        server.connections[1].requested = True
        server.connections[2].connection_lost(None)  # its client has gone
        await asyncio.sleep(100)
        assert server.aborted() == {0: REQUEST_SECONDS, 1: REQUEST_SECONDS + RESPONSE_SECONDS}
        assert server.open == {}
        assert [(inner.made, inner.lost) for inner in server.inner] == [(1, 1)] * 3

    run_virtually(main())


def test_a_connection_beyond_the_32nd_closes_the_oldest_that_waits_for_its_request() -> None:
    async def main() -> None:
        server = Server()
        server.connect(MAX_CONNECTIONS)
        assert server.aborted() == {}
        for number in (0, 2):
            server.connections[number].requested = True
        server.connect(3)
        assert sorted(server.aborted()) == [1, 3, 4]
        assert len(server.open) == MAX_CONNECTIONS == 32
        await asyncio.sleep(0)
        assert [inner.lost for inner in server.inner[:6]] == [0, 1, 0, 1, 1, 0]

    run_virtually(main())


def test_if_all_have_requested_the_oldest_is_closed_that_has_its_response_and_otherwise_the_new_one() -> None:
    async def main() -> None:
        server = Server()
        server.connect(MAX_CONNECTIONS)
        for connection in server.connections:
            connection.requested = True
        server.connections[5].responded = server.connections[7].responded = True
        server.connect()
        assert list(server.aborted()) == [5]
        server.connections[-1].requested = True
        server.connect()
        assert sorted(server.aborted()) == [5, 7]
        server.connections[-1].requested = True
        server.connect()
        assert sorted(server.aborted()) == [5, 7, MAX_CONNECTIONS + 2]
        await asyncio.sleep(0)
        refused = server.inner[-1]
        assert (refused.made, refused.lost) == (0, 0)  # aiohttp does not know it
        assert len(server.open) == MAX_CONNECTIONS

    run_virtually(main())


async def test_two_external_queues_of_one_name_have_labels_of_their_own() -> None:
    arns = [f"arn:aws:sqs:eu-west-1:{account * 12}:orders" for account in "12"]
    other = "arn:aws:sqs:eu-west-1:333333333333:bills"
    text = await WorkerHealth(make_worker("shop", *map(make_consumer, [*arns, other]))).metrics()

    for queue in (*arns, "bills"):
        assert f'smartpipe_messages_received_total{{service="shop",queue="{queue}"}} 0\n' in text
