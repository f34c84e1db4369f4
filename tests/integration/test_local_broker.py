"""Starts and stops of the embedded broker, with a script in place of its process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.local.broker import EmbeddedBroker, is_free

if TYPE_CHECKING:
    from pathlib import Path

DEAF = """
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_): ...

signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Healthy).serve_forever()
"""


def run_instead(commands: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker start a shell script in place of Python."""
    script = directory / "python"
    script.write_text(f"#!/bin/sh\n{commands}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.fixture
def _deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker start a server that ignores SIGTERM and the end of its standard input."""
    (tmp_path / "deaf.py").write_text(DEAF)
    run_instead(f"exec '{sys.executable}' '{tmp_path}/deaf.py' \"$@\"", tmp_path, monkeypatch)
    monkeypatch.setattr("smartpipe.local.broker.STOP_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("echo starting; echo 'no module named moto' >&2; exit 1", "no module named moto"),
        ("echo 'the last line'; echo; exit 0", "the last line"),
        ("exit 3", "it printed no output"),
    ],
)
def test_a_broker_that_does_not_start_reports_its_last_line_and_can_be_started_again(
    commands: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = EmbeddedBroker()
    run_instead(commands, tmp_path, monkeypatch)
    assert broker.last_output() == "the broker is not running"

    for _ in range(2):
        with pytest.raises(SmartpipeError, match=f"did not start on port {broker.port}: {reason}$"):
            broker.start()

        assert broker.last_output() == "the broker is not running"
        assert broker.wait(0) == 0


@pytest.mark.usefixtures("_deaf")
def test_a_broker_that_ignores_sigterm_is_killed_and_leaves_no_process_behind() -> None:
    before = set(psutil.Process().children())

    with EmbeddedBroker() as broker:
        [process] = set(psutil.Process().children()) - before
        assert broker.wait(0) is None

    assert not psutil.pid_exists(process.pid)  # not even as a zombie
    broker.stop()


@pytest.mark.usefixtures("_deaf")
def test_the_port_of_a_broker_is_in_use_until_it_stops() -> None:
    with EmbeddedBroker() as first:
        assert not is_free(first.port)
        with pytest.raises(ConfigError, match=f"cannot bind port {first.port} .* with --port"):
            EmbeddedBroker(port=first.port)

    assert is_free(first.port)
    assert EmbeddedBroker(port=first.port).port == first.port
