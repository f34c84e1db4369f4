"""Pyright finds the same mistakes of users as mypy, and no others. It is not one of the development tools."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import look_for

TYPING = Path(__file__).parent / "typing"
PYRIGHT = look_for("pyright") or look_for("basedpyright")


@pytest.mark.timeout(200)
@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: run pip install basedpyright")
def test_pyright_reports_errors_where_a_mistake_is_and_nowhere_else(tmp_path: Path) -> None:
    options = {
        "include": [str(TYPING)],
        "extraPaths": [str(TYPING.parents[1]), str(TYPING.parents[1] / "src")],
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(options))
    command = [str(PYRIGHT), "-p", str(tmp_path), "--outputjson", "--pythonpath", sys.executable]

    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)

    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"])
        for one in json.loads(ran.stdout)["generalDiagnostics"]
        if one["severity"] == "error"
    }
    expected = {
        (path.name, number)
        for path in TYPING.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines())
        if "# type: ignore[" in line
    }
    assert found == expected
