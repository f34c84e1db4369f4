"""The process of the embedded broker."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

from tests.support.waiting import until_blocking


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("backend", ["moto", "ministack"])
def test_when_its_parent_ends_the_broker_gets_sigterm_so_that_it_can_clean_up(backend: str) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "smartpipe.local.child", backend, "127.0.0.1", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"GATEWAY_PORT": str(port), "PATH": ""},
    ) as process:
        try:
            until_blocking(lambda: is_open(port))
            assert process.stdin is not None
            process.stdin.close()

            assert process.wait(45) in (0, -signal.SIGTERM)  # and not 1, with which it ends itself 3 s later
        finally:
            process.kill()
