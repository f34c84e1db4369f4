"""Run the tests of each mutant: those that run its line, the shortest first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tests.mutants.contexts import read_contexts
from tests.mutants.server import HANGS
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.mutants.sample import Mutant

Verdict: TypeAlias = Literal["killed", "timeout", "survived", "not run"]

TESTS = ("tests/unit", "tests/conformance", "tests/integration", "tests/acceptance")
COPIED = ("src", "tests", "examples", "benchmarks", "docs", "schemas")
COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
MAX_TEST_SECONDS = 120.0
"""The total duration of the tests that are run for one mutant. A survivor may be noticed by a slower test."""
FIRST_SECONDS, FIRST_FILES = 2.0, 4
"""The first tests are those of a few files, whose tests run the line most often: most mutants are noticed there."""
MUTANT_SECONDS = 300.0
"""A mutant whose tests take longer hangs, which somebody would notice."""
OPTIONS = ("-q", "-p", "no:cacheprovider")


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
        return self._choose_shortest(tests, MAX_TEST_SECONDS)

    def choose_first(self, tests: Sequence[str]) -> list[str]:
        """Return those of *tests* to begin with."""
        files = {file for file, _ in Counter(map(_file_of, tests)).most_common(FIRST_FILES)}
        return self._choose_shortest([test for test in tests if _file_of(test) in files], FIRST_SECONDS)

    def _choose_shortest(self, tests: Iterable[str], limit_seconds: float) -> list[str]:
        chosen, seconds = [], 0.0
        for test in sorted(tests, key=lambda test: (self.durations.get(test, 0.0), test)):
            seconds += self.durations.get(test, 0.0)
            if seconds > limit_seconds:
                break
            chosen.append(test)
        return chosen


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def record_contexts(cache: Path, processes: int, tests: Sequence[str] = TESTS) -> Contexts:
    """Run *tests* once to find out which of them run each line, or read the result of an earlier run."""
    if not cache.exists():
        with TemporaryDirectory() as directory:
            options = [*OPTIONS, "-p", "tests.mutants.contexts", "-n", str(processes), *tests]
            command = [sys.executable, "-m", "pytest", *options]
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
    with TemporaryDirectory(prefix="mutants-") as directory, ExitStack() as stack:
        copies: SimpleQueue[_Copy] = SimpleQueue()
        for number in range(processes):
            copies.put(stack.enter_context(_open_copy(Path(directory) / str(number))))

        def run(mutant: Mutant) -> Result:
            copy = copies.get()
            try:
                return copy.run_mutant(mutant, contexts)
            finally:
                copies.put(copy)

        yield from stack.enter_context(ThreadPoolExecutor(processes)).map(run, mutants)


@contextmanager
def _open_copy(directory: Path) -> Iterator[_Copy]:
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        shutil.copy(ROOT / name, directory / name)
    # Bytecode, which containers often disable, lets each run begin sooner.
    environment = {**os.environ, "PYTHONPATH": str(directory / "src"), "PYTHONDONTWRITEBYTECODE": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.mutants.server"], cwd=directory, text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == '"ready"\n'
        yield _Copy(directory, server)
        server.communicate()


class _Copy:
    """A copy of the project, and the process that runs its tests."""

    def __init__(self, directory: Path, server: subprocess.Popen[str]) -> None:
        self._directory, self._server = directory, server
        self._good: set[str] = set()
        self._broken: set[str] = set()
        self._changes = 0

    def run_mutant(self, mutant: Mutant, contexts: Contexts) -> Result:
        while True:
            tests = [test for test in contexts.choose_tests(mutant) if test not in self._broken]
            if not tests:
                return Result(mutant, "not run", 0)
            first = contexts.choose_first(tests)
            with self._changed(mutant):
                code, failed = self._run_tests(first)
                if code == 0:
                    code, failed = self._run_tests([test for test in tests if test not in set(first)])
            verdict: Verdict = "survived" if code == 0 else "timeout" if code == HANGS else "killed"
            if verdict != "killed" or failed not in tests or self._passes(failed):
                return Result(mutant, verdict, len(tests), failed)

    def _passes(self, test: str) -> bool:
        """Return whether the test passes without a change. The copy of the project lacks what git ignores."""
        if test not in self._good | self._broken:
            (self._good if self._run_tests([test])[0] == 0 else self._broken).add(test)
        return test in self._good

    def _run_tests(self, tests: Sequence[str]) -> tuple[int, str]:
        """Return the exit code and the first test that failed."""
        if not tests:
            return 0, ""
        chosen = self._directory / "chosen-tests"
        chosen.write_text("\n".join(tests))
        options = [*OPTIONS, "-x", "--timeout=60", f"@{chosen}"]
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"options": options, "seconds": MUTANT_SECONDS}) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["code"], answer["failed"]

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        file = self._directory / mutant.file
        before, status = file.read_bytes(), file.stat()
        file.write_text(mutant.apply())
        # A time that no other version of the file has, whose bytecode would be taken for that of the mutant.
        self._changes += 1
        os.utime(file, (status.st_atime, status.st_mtime + 10 * self._changes))
        try:
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
