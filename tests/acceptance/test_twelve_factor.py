"""Properties of a twelve-factor process for which docs/twelve-factor.md has no narrower test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from smartpipe.blocking import Publisher
from tests.acceptance.conftest import TARGET
from tests.acceptance.services import JobPosted
from tests.support.processes import ROOT, Process
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from smartpipe import EmbeddedBroker
    from tests.acceptance.conftest import Command, Jobs


def test_deploys_of_one_codebase_differ_only_in_their_environment(
    fast_broker: EmbeddedBroker,
    inside: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    workers = {}
    try:
        for prefix in ("staging-", "production-"):
            directory = tmp_path / prefix
            directory.mkdir()
            assert inside("topology", "apply", "--yes", TARGET, SMARTPIPE_PREFIX=prefix).returncode == 0
            workers[prefix] = Process(
                "worker", TARGET, "--port", "0", SMARTPIPE_PREFIX=prefix, ACCEPTANCE_DIR=str(directory)
            )
        for worker in workers.values():
            worker.wait_until(partial(worker.logged, "ready"))

        for prefix in workers:
            monkeypatch.setenv("SMARTPIPE_PREFIX", prefix)
            with Publisher("test") as publisher:
                publisher.publish(JobPosted(name=f"for {prefix}"))
        files = [tmp_path / prefix / "happened" for prefix in workers]
        until_blocking(lambda: all(file.exists() and "done" in file.read_text() for file in files))

        for prefix, file in zip(workers, files, strict=True):
            assert file.read_text().splitlines() == [f"begun for {prefix} 1", f"done for {prefix} 1"]
    finally:
        for worker in workers.values():
            worker.end()


def test_a_worker_keeps_nothing_on_its_disk(jobs: Jobs, tmp_path: Path) -> None:
    places = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CWD")}
    for place in places.values():
        place.mkdir()
    variables = {name: str(place) for name, place in places.items() if name != "CWD"}
    worker = Process(
        "worker",
        TARGET,
        "--port",
        "0",
        directory=str(places["CWD"]),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        PYTHONDONTWRITEBYTECODE="1",
        **variables,
    )
    try:
        worker.wait_until(lambda: worker.logged("ready"))
        jobs.post("one")
        jobs.wait_for("done")
        worker.signal(signal.SIGKILL)
        worker.wait()
    finally:
        worker.end()

    assert [file for place in places.values() for file in place.rglob("*")] == []


def test_a_worker_writes_its_log_to_standard_output_line_by_line(jobs: Jobs) -> None:
    command = [sys.executable, "-m", "smartpipe", "worker", TARGET, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            line = next(line for line in worker.stdout if '"ready' in line)  # it is here while the worker runs
            assert worker.poll() is None
        finally:
            worker.send_signal(signal.SIGTERM)
        rest, errors = worker.communicate(timeout=60)

    assert line.startswith("{")
    assert '"stopped' in rest
    assert errors == ""
