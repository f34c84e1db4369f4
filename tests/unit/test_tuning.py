from __future__ import annotations

import gc
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe.worker.tuning import GC_THRESHOLD, tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = """
import logging, resource, sys
from smartpipe.worker.tuning import raise_file_limit
logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(message)s")
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.fixture
def _gc_settings() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("_gc_settings")
def test_a_worker_process_collects_garbage_less_often() -> None:
    gc.set_threshold(700, 10, 10)

    tune_garbage_collector()
    frozen = gc.get_freeze_count()
    tune_garbage_collector()

    assert gc.get_threshold() == (GC_THRESHOLD, 10, 10)
    assert frozen > 0
    assert gc.get_freeze_count() <= frozen


@pytest.mark.usefixtures("_gc_settings")
def test_a_garbage_collector_that_was_configured_before_keeps_its_settings() -> None:
    gc.set_threshold(50_000, 5, 5)

    tune_garbage_collector()

    assert gc.get_threshold() == (50_000, 5, 5)


@pytest.mark.parametrize(
    ("soft", "hard", "output"), [(64, 256, "Raised the limit of open files from 64 to 256\n"), (128, 128, "")]
)
def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(soft: int, hard: int, output: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )

    assert run.stdout == f"{output}{hard} {hard}\n"
