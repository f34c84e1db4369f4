"""Run the real command line in separate processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil

from tests.support.planted import refuse_planted
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
KEEPER = """
import sys, psutil
kept = [line.split() for line in sys.stdin]
for pid, created in kept:
    try:
        process = psutil.Process(int(pid))
        if abs(process.create_time() - float(created)) < 2:  # no other process has got its id
            process.kill()
    except psutil.NoSuchProcess:
        pass
"""


def replace_module(path: Path, text: str) -> None:
    """Write a module again, and forget its bytecode: Python trusts it for a file of the same second and size."""
    path.write_text(text)
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)


def smartpipe(*arguments: str, directory: str = str(ROOT), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "smartpipe", *arguments],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    refuse_planted(done.stdout, done.stderr)
    return done


class Process:
    """A command that runs until it is stopped. Its output is collected line by line."""

    module = "smartpipe"

    def __init__(self, *arguments: str, directory: str = str(ROOT), **environment: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *arguments],
            cwd=directory,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of its JSON log."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def logged(self, start: str) -> dict[str, Any] | None:
        """Return the first record whose message begins with *start*."""
        return next((record for record in self.records if record["message"].startswith(start)), None)

    def wait_until(self, condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
        deadline = time.monotonic() + deadline_seconds
        while not condition():
            assert self.running, "the process ended unexpectedly:\n" + "\n".join(self.lines)
            assert time.monotonic() < deadline, "the condition did not hold in time:\n" + "\n".join(self.lines)
            time.sleep(0.02)

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def wait(self, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Return the exit code."""
        code = self._process.wait(deadline_seconds)
        self._reader.join()
        refuse_planted(*self.lines)
        return code

    def end(self) -> None:
        """Kill the process if it still runs, at the end of a test."""
        if self.running:
            self._process.kill()
        self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))


def http_status(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def children_of(pid: int) -> list[int]:
    """Return the child processes. The kernel lists them by the thread that started them."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Keeper:
    """A context manager that kills the processes it watches when it exits, or when this process has been killed.

    It is a process of its own, and notices that the pipe between them has closed.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_SECONDS)

    def watch(self, pid: int) -> None:
        assert self._process.stdin is not None
        with suppress(psutil.NoSuchProcess):
            self._process.stdin.write(f"{pid} {psutil.Process(pid).create_time()}\n")
            self._process.stdin.flush()
