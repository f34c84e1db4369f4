"""What `make demo` runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.timeout(150)
def test_the_demo_holds_every_expectation() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "signup.demo"],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "every expectation held" in result.stdout
