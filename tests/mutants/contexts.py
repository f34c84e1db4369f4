"""A pytest plugin that records which tests run each line: ``-p tests.mutants.contexts``.

It writes a file for each process of pytest into the directory MUTANTS_CONTEXTS. The processes that a test starts are
measured too, except for those that are killed: coverage's start file in the site-packages reads COVERAGE_PROCESS_START.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

DIRECTORY = os.environ.get("MUTANTS_CONTEXTS", "")
TEST = "MUTANTS_TEST"
CHILDREN = "children"
CHILD_CONFIGURATION = """
[run]
source = smartpipe
parallel = true
data_file = {directory}/{children}/data
context = ${{{test}}}
disable_warnings = module-not-measured, no-data-collected, module-not-imported
"""
_coverage = coverage.Coverage(data_file=None, source=["smartpipe"], messages=False)
_durations: dict[str, float] = {}


def pytest_configure(config: pytest.Config) -> None:
    # The plugin of smartpipe's testing kit has imported the package already, and xdist's controller runs no test.
    _coverage.set_option("run:disable_warnings", ["module-not-measured", "no-data-collected"])
    _coverage.start()


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    if coverage.Coverage.current() is _coverage:
        _coverage.switch_context(nodeid)
        os.environ |= {TEST: nodeid, "COVERAGE_PROCESS_START": str(_write_child_configuration())}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _durations[report.nodeid] = _durations.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    _coverage.stop()
    target = Path(DIRECTORY) / f"{os.getpid()}.json"
    target.write_text(json.dumps({"lines": _list_lines([_coverage.get_data()]), "durations": _durations}))


def read_contexts(directory: Path) -> list[Any]:
    """Return what the processes of pytest have written, and what was measured in the processes that tests started."""
    children = []
    for file in (directory / CHILDREN).glob("data.*"):
        data = coverage.CoverageData(str(file))
        data.read()
        children.append(data)
    return [json.loads(file.read_text()) for file in directory.glob("*.json")] + [
        {"lines": _list_lines(children), "durations": {}}
    ]


def _list_lines(measured: Iterable[coverage.CoverageData]) -> dict[str, dict[str, list[int]]]:
    """Return the lines of each file that each test ran."""
    lines: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for data in measured:
        for file in data.measured_files():
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    lines[file].setdefault(test, []).append(line)
    return lines


def _write_child_configuration() -> Path:
    file = Path(DIRECTORY) / "children.cfg"
    if not file.exists():
        (Path(DIRECTORY) / CHILDREN).mkdir(exist_ok=True)
        file.write_text(CHILD_CONFIGURATION.format(directory=DIRECTORY, children=CHILDREN, test=TEST))
    return file
