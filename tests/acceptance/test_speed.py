"""smartpipe uses much less CPU than a loop of aiobotocore: benchmarks/guard.py in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

TIMEOUT_SECONDS = 360


@pytest.mark.timeout(TIMEOUT_SECONDS + 10)  # it takes more turns before it fails
def test_a_worker_and_publish_many_take_less_cpu_than_the_bare_loop() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SMARTPIPE_"))}

    guard = subprocess.run(
        [sys.executable, "-m", "benchmarks.guard"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    assert guard.returncode == 0, guard.stdout + guard.stderr
