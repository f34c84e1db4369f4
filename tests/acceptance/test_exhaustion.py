"""Real workers whose handlers hang, or that run out of something: messages wait, probes fail, nothing is lost."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from smartpipe.blocking import Publisher
from smartpipe.testing import provision
from tests.acceptance import hanging_services
from tests.acceptance.hanging_services import AsyncTask, FilesTask, SyncTask
from tests.support.processes import Process, http_status
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe import EmbeddedBroker
    from tests.acceptance.conftest import Jobs
    from tests.support.queues import Queues

TARGET = "tests.acceptance.hanging_services:service"
SLOTS = 4


@pytest.fixture
def hanging(fast_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    monkeypatch.setenv("SMARTPIPE_CONCURRENCY", str(SLOTS))
    asyncio.run(provision(hanging_services.service))
    worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0")
    try:
        worker.wait_until(lambda: worker.logged("ready"))
        yield worker
    finally:
        worker.end()


def url_of(worker: Process) -> str:
    record: Any = worker.logged("serving")
    return str(record["url"])


def publish(*events: SyncTask | AsyncTask | FilesTask) -> None:
    with Publisher("test") as publisher:
        publisher.publish_many(events)


def threads_of(worker: Process) -> int:
    return len(list(Path(f"/proc/{worker.pid}/task").iterdir()))


@pytest.mark.parametrize(
    ("task", "handler", "threads"), [(SyncTask, "sync", 2 * SLOTS), (AsyncTask, "deaf", 0)], ids=["sync", "async"]
)
def test_the_number_of_hanging_handlers_is_limited_and_probes_fail_meanwhile(
    hanging: Process, queues: Queues, tmp_path: Path, task: type[SyncTask | AsyncTask], handler: str, threads: int
) -> None:
    url, before = url_of(hanging), threads_of(hanging)
    publish(*[task(name="hang")] * 30)
    hanging.wait_until(lambda: http_status(f"{url}/livez")[0] == 503)
    status, body = http_status(f"{url}/readyz")
    with urlopen(f"{url}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    publish(*[task(name="good")] * 10)

    assert status == 503
    assert f"{handler} (" in body["reasons"][0]
    assert "smartpipe_handlers_overdue{" in metrics
    stopped: Any = hanging.logged("Receiving no more messages")
    assert stopped["level"] == "error"
    assert threads_of(hanging) - before <= threads + 2
    assert queues.depth("hanging-dlq") == (0, 0)

    (tmp_path / "release").touch()

    happened = tmp_path / "happened"
    hanging.wait_until(lambda: happened.exists() and happened.read_text().count("done good") >= 10)
    hanging.wait_until(lambda: http_status(f"{url}/livez")[0] == http_status(f"{url}/readyz")[0] == 200)
    hanging.signal(signal.SIGTERM)
    assert hanging.wait() == 0


def test_a_worker_without_file_descriptors_defers_messages(hanging: Process, queues: Queues, tmp_path: Path) -> None:
    limit = len(list(Path(f"/proc/{hanging.pid}/fd").iterdir())) + 30
    resource.prlimit(hanging.pid, resource.RLIMIT_NOFILE, (limit, limit))
    publish(*(FilesTask(name=f"file{number}") for number in range(30)))

    happened = tmp_path / "happened"
    hanging.wait_until(lambda: happened.exists() and len(set(happened.read_text().splitlines())) == 30, 120)
    assert hanging.logged("This process has run out of file descriptors (EMFILE)")
    hanging.signal(signal.SIGTERM)

    assert hanging.wait() == 0
    assert queues.depth("hanging-dlq") == (0, 0)
    stopped: Any = hanging.logged("stopped")
    assert stopped["deferred"] > 0
    assert "retried" not in stopped
    assert "dead_lettered" not in stopped


def test_half_open_connections_to_the_health_port_cost_no_message(jobs: Jobs, queues: Queues) -> None:
    worker = jobs.start_worker("--concurrency", "10")
    url = url_of(worker)
    port = int(url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(200):
            one = stack.enter_context(socket.socket())
            one.connect(("127.0.0.1", port))
            one.send(b"GET /livez HTTP/1.1\r\n")
        jobs.post(*(f"job{number}" for number in range(100)))
        jobs.wait_for("done", 100)
        assert http_status(f"{url}/livez")[0] == 200
        assert len(list(Path(f"/proc/{worker.pid}/fd").iterdir())) < 100

    until_blocking(lambda: queues.depth("jobs") == (0, 0))
    assert queues.depth("jobs-dlq") == (0, 0)
