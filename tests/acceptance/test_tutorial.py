"""docs/tutorial.md, block by block, with the wheel in a fresh venv.

By default, the venv sees the packages of the development venv, and pip adds those that are missing. ``make tutorial``
sets TUTORIAL_FROM_SCRATCH, and pip then installs everything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

from tests.support.loopback import free_port
from tests.support.processes import ROOT
from tests.support.waiting import until_blocking
from tests.support.wheels import make_venv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.support.servers import PostgresServer

PAGE = ROOT / "docs" / "tutorial.md"
DATABASE_URL = "postgresql+asyncpg://postgres@localhost/shop"
WHEEL = "'smartpipe[local,postgres]'"
KILL = 'kill -9 $(pgrep -f "smartpipe worker workers:invoices")'
DEADLINE_SECONDS = 90.0


class Block(NamedTuple):
    """A fenced block, with the paragraph above it."""

    paragraph: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the reader saves the block as."""
        found = re.findall(
            r"(?:Save\s+this\s+as|Save\s+its\s+URL\s+as|Replace\s+the\s+generated)\s+`([\w./]+)`", self.paragraph
        )
        return found[-1] if found else None


def blocks() -> list[Block]:
    text = PAGE.read_text()
    fenced = r"(?P<paragraph>(?:^(?!```|#)[^\n]+\n)*)\n?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    return [Block(**found.groupdict()) for found in re.finditer(fenced, text, re.MULTILINE | re.DOTALL)]


class Reader:
    """Does what the page says: saves files, and runs commands in one shell after the other."""

    def __init__(self, directory: Path, environment: Mapping[str, str], replacements: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = dict(environment)
        self._replacements = replacements
        self._state = directory / "state"
        self.output = ""
        self.dev: subprocess.Popen[str] | None = None

    def read(self, block: Block) -> None:
        text = block.text
        for old, new in self._replacements.items():
            text = text.replace(old, new)
        for shown in re.findall(r"first terminal shows[^`]*`([^`]+)`", block.paragraph):
            self._wait_for(shown)
        if block.file is not None:
            self._save(block.file, text)
        elif block.language == "sh" and text.startswith("smartpipe dev"):
            self._start_dev(text)
        elif block.language == "sh":
            self.output = self._run(text)
            self._last = text
        elif block.language == "json":
            self._expect(json.loads(text))
        elif block.language == "text":
            assert re.sub(r" in [\d.]+s", "", self.output).split() == text.split()

    def end(self) -> int:
        """Press Ctrl-C in the first terminal, and return the exit code."""
        assert self.dev is not None
        processes = self._processes()
        if self.dev.poll() is None:
            self.dev.send_signal(signal.SIGINT)
        try:
            return self.dev.wait(DEADLINE_SECONDS)
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _save(self, name: str, text: str) -> None:
        starts = self._starts()
        (self.directory / name).write_text(text)
        if self.dev is not None:  # restarts its processes
            until_blocking(lambda: self._starts() > starts, DEADLINE_SECONDS)

    def _run(self, script: str) -> str:
        if KILL in script:
            script = script.replace(KILL, f"kill -9 {self._pid_of('workers:invoices')}")
        script = f"{script}\nenv -0 > {self._state}\n"
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script.replace("curl ", "curl -sS --fail-with-body ")],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}\n" + self._dev_output()
        self.environment = dict(one.split("=", 1) for one in self._state.read_text().split("\0") if "=" in one)
        self.directory = self.directory.__class__(self.environment["PWD"])
        return done.stdout

    def _start_dev(self, script: str) -> None:
        log = self._state.with_name("dev.log")
        with log.open("w") as output:
            self.dev = subprocess.Popen(
                ["bash", "-c", f"exec {script}"],
                cwd=self.directory,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._log = log
        until_blocking(lambda: self._starts() > 0, DEADLINE_SECONDS)

    def _starts(self) -> int:
        """Return how many times all processes of `smartpipe dev` have become ready."""
        output = self._dev_output()
        assert self.dev is None or self.dev.poll() is None, output
        return min(output.count("info    ready: all"), output.count("Application startup complete"))

    def _wait_for(self, text: str) -> None:
        try:
            until_blocking(lambda: text in self._dev_output(), DEADLINE_SECONDS)
        except AssertionError:
            pytest.fail(f"{text!r} is not in the first terminal:\n{self._dev_output()}")

    def _dev_output(self) -> str:
        return self._log.read_text() if self.dev is not None else ""

    def _expect(self, answer: object) -> None:
        """Run the last command until it prints *answer*, as a reader does who looks again."""

        def answers() -> bool:
            return bool(json.loads(self._run(self._last)) == answer)

        try:
            until_blocking(answers, DEADLINE_SECONDS)
        except AssertionError:
            pytest.fail(f"{self._last} printed {self._run(self._last)}\n{self._dev_output()}")

    def _processes(self) -> list[psutil.Process]:
        assert self.dev is not None
        try:
            return psutil.Process(self.dev.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _pid_of(self, argument: str) -> int:
        [found] = [process.pid for process in self._processes() if argument in process.cmdline()]
        return found


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh venv in which pip has installed the wheel, and the packages of the page."""
    [line] = re.findall(r"^pip install (.*)$", PAGE.read_text(), re.MULTILINE)
    assert WHEEL in line
    packages = line.replace(WHEEL, "").replace("'", "").split()
    shares = not os.environ.get("TUTORIAL_FROM_SCRATCH")
    return make_venv(tmp_path_factory.mktemp("tutorial"), "local,postgres", packages, shares=shares)


@pytest.fixture
def reader(venv: Path, postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Reader]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SMARTPIPE_", "PYTHON", "PYTEST"))
    }
    with postgres_server.database() as url:
        replacements = {
            "python3 -m venv .venv": f"ln -s {venv} .venv",
            re.findall(r"^pip install .*$", PAGE.read_text(), re.MULTILINE)[0]: "true",
            DATABASE_URL: url.replace("postgresql://", "postgresql+asyncpg://"),
            "4566": str(free_port()),
            "8000": str(free_port()),
        }
        reader = Reader(tmp_path, environment, replacements)
        yield reader
        if reader.dev is not None:
            reader.end()


@pytest.mark.timeout(900)
def test_the_tutorial_works_as_it_is_written(reader: Reader, venv: Path) -> None:
    for block in blocks():
        reader.read(block)

    assert "planted" not in reader.environment["AWS_SECRET_ACCESS_KEY"]
    assert reader.end() == 0
    module = subprocess.run(
        [venv / "bin" / "python", "-c", "import smartpipe; print(smartpipe.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert module.stdout.startswith(str(venv))


def test_the_tutorial_has_the_files_and_steps_that_it_promises() -> None:
    found = blocks()

    assert [block.file for block in found if block.file] == [
        "pyproject.toml",
        ".env",
        "events.py",
        "database.py",
        "migrations/env.py",
        "api.py",
        "workers.py",
        "tests/test_invoices.py",
    ]
    assert sum(block.text.startswith("smartpipe dev") for block in found) == 1
    assert sum(KILL in block.text for block in found) == 1
