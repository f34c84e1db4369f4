from __future__ import annotations

import gc
import logging
import resource
import subprocess
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from smartpipe.worker import tuning
from smartpipe.worker.tuning import (
    GC_THRESHOLD,
    MAX_OPEN_FILES,
    choose_loop_factory,
    raise_file_limit,
    tune_garbage_collector,
)

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


class Limits:
    """The limits of open files of a process, and of a system that refuses some."""

    def __init__(self, soft: int, hard: int, error: Exception | None = None) -> None:
        self.soft, self.hard, self.error = soft, hard, error
        self.calls: list[tuple[int, int]] = []

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.calls.append(limits)
        if self.error is not None:
            raise self.error


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "calls"),
    [
        (1_024, 4_096, [(4_096, 4_096)]),
        (4_096, 4_096, []),
        (1_024, INFINITY, [(MAX_OPEN_FILES, INFINITY)]),
        (1_024, 1_000_000_000, [(MAX_OPEN_FILES, 1_000_000_000)]),
        (MAX_OPEN_FILES, INFINITY, []),
        (MAX_OPEN_FILES - 1, INFINITY, [(MAX_OPEN_FILES, INFINITY)]),
        (MAX_OPEN_FILES + 1, 1_000_000_000, []),
        (INFINITY, INFINITY, []),
    ],
)
@pytest.mark.parametrize("error", [None, ValueError("not allowed"), OSError("refused")])
def test_the_limit_of_open_files_is_raised_once_to_a_million_at_most(
    soft: int, hard: int, calls: list[tuple[int, int]], error: Exception | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    limits = Limits(soft, hard, error)
    for name in ("getrlimit", "setrlimit"):
        monkeypatch.setattr(resource, name, getattr(limits, name))

    with caplog.at_level(logging.DEBUG, "smartpipe.limits"):
        raise_file_limit()

    assert limits.calls == calls
    begin = "Raised" if error is None else "Cannot raise"
    assert [message.startswith(begin) for message in caplog.messages] == [True] * len(calls)


@pytest.mark.usefixtures("_gc_settings")
@pytest.mark.parametrize(
    ("youngest", "enabled", "expected"),
    [(700, True, GC_THRESHOLD), (2_000, True, GC_THRESHOLD), (2_000, False, 2_000), (701, True, 701), (0, True, 0)],
)
def test_only_a_collector_with_pythons_own_settings_is_tuned(youngest: int, enabled: bool, expected: int) -> None:
    gc.unfreeze()
    gc.set_threshold(youngest, 11, 12)
    if not enabled:
        gc.disable()
    try:
        tune_garbage_collector()
    finally:
        gc.enable()

    assert gc.get_threshold() == (expected, 11, 12)
    assert (gc.get_freeze_count() > 0) == (expected == GC_THRESHOLD)


def test_uvloop_is_used_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("uvloop")
    module.new_event_loop = object()  # type: ignore[attr-defined]

    monkeypatch.setattr(tuning, "find_spec", lambda _: None)
    assert choose_loop_factory() is None
    monkeypatch.setattr(tuning, "find_spec", lambda name: object() if name == "uvloop" else None)
    monkeypatch.setitem(sys.modules, "uvloop", module)
    assert choose_loop_factory() is module.new_event_loop


@pytest.mark.usefixtures("_gc_settings")
def test_garbage_is_collected_before_the_rest_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, partial(order.append, name))
    gc.set_threshold(700, 10, 10)

    tune_garbage_collector()

    assert order == ["collect", "freeze"]
