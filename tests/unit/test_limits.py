from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, resource, sys
from smartpipe.worker.limits import raise_file_limit
logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(message)s")
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "said"), [(64, 256, "Raised the limit of open files from 64 to 256\n"), (128, 128, "")]
)
def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(soft: int, hard: int, said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )

    assert run.stdout == f"{said}{hard} {hard}\n"
