"""A pytest plugin that records which tests run each line: ``-p tests.mutants.contexts``.

It writes a file for each process of pytest into the directory MUTANTS_CONTEXTS.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coverage

if TYPE_CHECKING:
    import pytest

DIRECTORY = os.environ.get("MUTANTS_CONTEXTS", "")
_coverage = coverage.Coverage(data_file=None, source=["smartpipe"], messages=False)
_durations: dict[str, float] = {}


def pytest_configure(config: pytest.Config) -> None:
    # The plugin of smartpipe's testing kit has imported the package already, and xdist's controller runs no test.
    _coverage.set_option("run:disable_warnings", ["module-not-measured", "no-data-collected"])
    _coverage.start()


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    if hasattr(_coverage, "switch_context") and coverage.Coverage.current() is _coverage:
        _coverage.switch_context(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _durations[report.nodeid] = _durations.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    _coverage.stop()
    data = _coverage.get_data()
    lines: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for file in data.measured_files():
        by_line = data.contexts_by_lineno(file)
        for line, tests in by_line.items():
            for test in filter(None, tests):
                lines[file].setdefault(test, []).append(line)
    target = Path(DIRECTORY) / f"{os.getpid()}.json"
    target.write_text(json.dumps({"lines": lines, "durations": _durations}))
