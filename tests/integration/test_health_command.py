"""``smartpipe health`` against the real health server, and against ports without one."""

from __future__ import annotations

import asyncio
import math
import socket

import pytest

from smartpipe import ConfigError
from smartpipe.cli.health import run_health
from smartpipe.errors import SmartpipeError
from smartpipe.worker.health import HealthServer, ProbeResult


class Starting:
    """A process that is alive and not ready."""

    async def livez(self) -> ProbeResult:
        return ProbeResult(True, {"alive": True})

    async def readyz(self) -> ProbeResult:
        return ProbeResult(False, {"ready": False})

    async def metrics(self, content_type: str = "") -> str:
        return ""


async def ask(host: str, *, ready: bool = False) -> None:
    """Ask a server on *host* in a thread, as a process of its own would."""
    async with HealthServer(Starting(), host, 0) as server:
        flags: dict[str, object] = {"host": host, "port": server.port}
        await asyncio.to_thread(run_health, flags, ready=ready, timeout_seconds=10)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_process_that_is_alive_is_healthy(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    await ask(host)

    assert '"alive"' in capsys.readouterr().out


async def test_a_process_that_is_not_ready_fails_with_its_answer() -> None:
    with pytest.raises(SmartpipeError, match=r'/readyz answers 503: .*"ready": ?false'):
        await ask("127.0.0.1", ready=True)


def test_a_port_without_a_server_fails_with_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with pytest.raises(SmartpipeError, match=rf"http://127\.0\.0\.1:{port}/livez does not answer: "):
        run_health({"host": "127.0.0.1", "port": port}, ready=False, timeout_seconds=5)


def test_a_server_that_never_answers_fails_after_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        with pytest.raises(SmartpipeError, match="does not answer: timed out"):
            run_health({"host": "127.0.0.1", "port": silent.getsockname()[1]}, ready=False, timeout_seconds=0.1)


@pytest.mark.parametrize(
    ("flags", "timeout_seconds", "error"),
    [
        ({"port": 0}, 3, "port 0 selects a free port"),
        ({"port": 70_000}, 3, "port"),
        *(({}, seconds, "--timeout .* must be") for seconds in (0, -1, math.nan, math.inf, 1e300)),
    ],
)
def test_wrong_options_are_configuration_errors(flags: dict[str, object], timeout_seconds: float, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        run_health(flags, ready=False, timeout_seconds=timeout_seconds)
