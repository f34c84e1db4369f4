"""A worker whose broker goes away for a while."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import boto3

from smartpipe import EmbeddedBroker
from smartpipe.blocking import Publisher
from tests.acceptance.conftest import TARGET
from tests.acceptance.services import JobPosted
from tests.support.processes import Process, http_status, smartpipe
from tests.support.queues import Queues
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_fault_05_a_worker_survives_an_outage_of_its_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = EmbeddedBroker()
    for name, value in first.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("SMARTPIPE_PREFIX", "")
    happened = tmp_path / "happened"

    def post(name: str) -> None:
        assert smartpipe("topology", "apply", "--yes", TARGET).returncode == 0
        with Publisher("test") as publisher:
            publisher.publish(JobPosted(name=name))
        until_blocking(lambda: happened.exists() and f"done {name} 1" in happened.read_text())

    with ExitStack() as stack:
        stack.enter_context(first)
        assert smartpipe("topology", "apply", "--yes", TARGET).returncode == 0
        worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--wait-seconds", "1")
        stack.callback(worker.end)
        worker.wait_until(lambda: worker.logged("ready"))
        health = (worker.logged("serving") or {})["url"]
        post("before")
        until_blocking(lambda: Queues(boto3.client("sqs")).depth("jobs") == (0, 0))

        first.stop()
        worker.wait_until(lambda: worker.logged("Cannot receive from queue jobs"))
        unready = http_status(health + "/readyz")[0]
        alive = http_status(health + "/livez")[0]
        stack.enter_context(EmbeddedBroker(port=first.port))
        post("after")
        worker.wait_until(lambda: worker.logged("Receiving from queue jobs again"))
        ready = http_status(health + "/readyz")[0]
        worker.signal(signal.SIGTERM)

        assert worker.wait() == 0
        assert (unready, alive, ready) == (503, 200, 200)
        assert not any("Traceback" in line for line in worker.lines)
