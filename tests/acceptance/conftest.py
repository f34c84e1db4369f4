from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from smartpipe.blocking import Publisher
from tests.acceptance.services import JobPosted
from tests.support.processes import Process, smartpipe
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker

TARGET = "tests.acceptance.services:service"


class Jobs:
    """The jobs service as its users run it: provisioned, and with workers in processes of their own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._file = directory / "happened"
        self._stack = stack

    def start_worker(self, *flags: str, **environment: str) -> Process:
        """Start one more worker, and return when it is ready."""
        worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", *flags, **environment)
        self._stack.callback(worker.end)
        worker.wait_until(lambda: worker.logged("ready"))
        return worker

    def post(self, *names: str, seconds: float = 0.0) -> None:
        with Publisher("test") as publisher:
            publisher.publish_many(JobPosted(name=name, seconds=seconds) for name in names)

    @property
    def happened(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []

    def count(self, what: str) -> int:
        return sum(line.startswith(what) for line in self.happened)

    def wait_for(self, what: str, count: int = 1) -> None:
        until_blocking(lambda: self.count(what) >= count)


@pytest.fixture(autouse=True)
def _what_killed_supervisors_leave_is_removed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True) as directory:  # short enough for sockets
        monkeypatch.setenv("TMPDIR", directory)
        yield


@pytest.fixture
def jobs(fast_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    applied = smartpipe("topology", "apply", "--yes", TARGET)
    assert applied.returncode == 0, applied.stderr
    with ExitStack() as stack:
        yield Jobs(tmp_path, stack)
