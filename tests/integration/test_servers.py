"""The servers of the tests themselves."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.proxy import FaultProxy
from tests.support.waiting import until_blocking

STARTING = """
import time
from tests.support import servers

server = servers.{name}().__enter__()
print(server.directory, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("name", ["PostgresServer", "RedisServer"])
def test_a_server_ends_with_the_tests_even_when_they_are_killed(name: str) -> None:
    command = [sys.executable, "-c", STARTING.format(name=name)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True)
    assert child.stdout is not None
    directory = Path(child.stdout.readline().strip())
    server = int((directory / "server.pid").read_text())

    child.kill()
    child.communicate()

    until_blocking(lambda: not directory.exists() and not psutil.pid_exists(server))


@pytest.mark.parametrize("steps", range(6))
def test_a_proxy_that_refuses_leaves_no_connection_open_however_young_it_is(steps: int) -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy, socket.socket() as client:

        async def refuse_while_accepting() -> None:
            client.connect(("127.0.0.1", proxy.port))
            for _ in range(steps):
                await asyncio.sleep(0)
            await proxy._refuse()

        asyncio.run_coroutine_threadsafe(refuse_while_accepting(), proxy._loop).result(10)
        client.settimeout(10)
        try:
            left = client.recv(1)
        except ConnectionResetError:
            left = b""
    assert left == b""
