"""Workers whose output nobody reads: they handle messages, answer probes and drain in time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.acceptance.conftest import TARGET
from tests.support.processes import ROOT
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from tests.acceptance.conftest import Jobs

DRAIN_SECONDS = 10


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(url: str) -> str:
    try:
        with urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        error.close()
        return ""
    except OSError:
        return ""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_whose_output_nobody_reads_works_on_and_drains_in_time(jobs: Jobs, processes: int) -> None:
    port = free_port()
    flags = ["--host", "127.0.0.1", "--port", str(port), "--drain-seconds", str(DRAIN_SECONDS), "--log-level", "debug"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "smartpipe", "worker", TARGET, *flags, "--processes", str(processes)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until_blocking(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
        count = 400 * processes
        jobs.post(*(f"job{number}-{'x' * 200}" for number in range(count)))
        jobs.wait_for("done", count)
        assert answers(f"http://127.0.0.1:{port}/livez")
        assert re.search(r"smartpipe_log_lines_dropped_total\{.*\} \d+", answers(f"http://127.0.0.1:{port}/metrics"))

        started = time.monotonic()
        worker.send_signal(signal.SIGTERM)

        assert worker.wait(DRAIN_SECONDS + 30) == 0
        assert time.monotonic() - started < DRAIN_SECONDS + 10
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", ">/dev/full"])
def test_a_worker_without_an_output_starts_works_and_drains(jobs: Jobs, closed: str) -> None:
    port = free_port()
    command = f"exec {sys.executable} -m smartpipe worker {TARGET} --host 127.0.0.1 --port {port} {closed}"
    worker = subprocess.Popen(["/bin/sh", "-c", command], cwd=ROOT, env=os.environ)
    try:
        until_blocking(lambda: answers(f"http://127.0.0.1:{port}/readyz"))
        jobs.post("one")
        jobs.wait_for("done one")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(40) == 0
    finally:
        worker.kill()
        worker.wait()
