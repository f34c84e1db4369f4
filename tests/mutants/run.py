"""Run the tests of each mutant: those that run its line, the shortest first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tests.mutants.contexts import read_contexts
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.mutants.sample import Mutant

Verdict: TypeAlias = Literal["killed", "timeout", "survived", "not run"]

TESTS = ("tests/unit", "tests/conformance", "tests/integration", "tests/acceptance")
COPIED = ("src", "tests", "examples", "benchmarks", "docs", "schemas")
COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
MAX_TEST_SECONDS = 120.0
"""The total duration of the tests that are run for one mutant. A survivor may be noticed by a slower test."""
MUTANT_SECONDS = 300.0
"""A mutant whose tests take longer hangs, which somebody would notice."""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


class Result(NamedTuple):
    """What the tests made of a mutant.

    Args:
        tests: The number of tests that run its line.
        noticed_by: The first test that failed.
    """

    mutant: Mutant
    verdict: Verdict
    tests: int
    noticed_by: str = ""


@dataclass
class Contexts:
    """The tests that run each line, and their durations."""

    lines: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    durations: dict[str, float] = field(default_factory=dict)

    def choose_tests(self, mutant: Mutant) -> list[str]:
        """Return the tests that run the line, or any of the file if the line runs at import, shortest first."""
        by_line = {} if mutant.runs_at_import else self.lines
        tests = by_line.get((mutant.file, mutant.line)) or self.files.get(mutant.file, set())
        chosen, seconds = [], 0.0
        for test in sorted(tests, key=lambda test: (self.durations.get(test, 0.0), test)):
            seconds += self.durations.get(test, 0.0)
            if seconds > MAX_TEST_SECONDS:
                break
            chosen.append(test)
        return chosen


def record_contexts(cache: Path, processes: int, tests: Sequence[str] = TESTS) -> Contexts:
    """Run *tests* once to find out which of them run each line, or read the result of an earlier run."""
    if not cache.exists():
        with TemporaryDirectory() as directory:
            command = [sys.executable, *PYTEST, "-p", "tests.mutants.contexts", "-n", str(processes), *tests]
            subprocess.run(command, cwd=ROOT, env={**os.environ, "MUTANTS_CONTEXTS": directory}, check=False)
            cache.parent.mkdir(exist_ok=True)
            cache.write_text(json.dumps(read_contexts(Path(directory))))
    contexts = Contexts()
    for part in json.loads(cache.read_text()):
        contexts.durations |= part["durations"]
        for file, by_test in part["lines"].items():
            name = "src/smartpipe/" + file.rpartition("/src/smartpipe/")[2]
            for test, lines in by_test.items():
                contexts.files[name].add(test)
                for line in lines:
                    contexts.lines[name, line].add(test)
    return contexts


def run_mutants(mutants: Sequence[Mutant], contexts: Contexts, processes: int) -> Iterator[Result]:
    """Yield the result of each mutant. Each process has a copy of the project, which is the one that is changed."""
    with TemporaryDirectory(prefix="mutants-") as directory, ThreadPoolExecutor(processes) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(processes):
            copies.put(_copy_project(Path(directory) / str(number)))

        def run(mutant: Mutant) -> Result:
            copy = copies.get()
            try:
                return _run_mutant(mutant, contexts, copy)
            finally:
                copies.put(copy)

        yield from pool.map(run, mutants)


def _copy_project(target: Path) -> Path:
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        shutil.copy(ROOT / name, target / name)
    return target


def _run_mutant(mutant: Mutant, contexts: Contexts, copy: Path) -> Result:
    tests = contexts.choose_tests(mutant)
    if not tests:
        return Result(mutant, "not run", 0)
    with _changed(copy / mutant.file, mutant.apply()):
        chosen = copy / "chosen-tests"
        chosen.write_text("\n".join(tests))
        command = [sys.executable, *PYTEST, "-x", "--timeout=60", f"@{chosen}"]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=MUTANT_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return Result(mutant, "timeout", len(tests))
    if process.returncode == 0:
        return Result(mutant, "survived", len(tests))
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Result(mutant, "killed", len(tests), failed[0].split()[1] if failed else f"exit code {process.returncode}")


@contextmanager
def _changed(file: Path, text: str) -> Iterator[None]:
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)
