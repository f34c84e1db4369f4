"""The servers of the tests themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
