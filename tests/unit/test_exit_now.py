"""The end of a worker process, which waits for no thread."""

from __future__ import annotations

import atexit
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from smartpipe.cli import worker
from smartpipe.cli.worker import exit_now


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: found.append("exit functions"))
    monkeypatch.setattr(worker, "os", SimpleNamespace(_exit=lambda code: found.append(("exit", code))))
    return found


def stream(happened: list[Any], name: str, error: Exception | None = None) -> Any:
    def flush() -> None:
        happened.append(name)
        if error is not None:
            raise error

    return SimpleNamespace(flush=flush)


def test_a_process_runs_its_exit_functions_and_flushes_its_streams(
    happened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream(happened, "stdout", OSError("full")))
        patch.setattr(sys, "stderr", stream(happened, "stderr", ValueError("closed")))
        exit_now(3)

    assert happened == ["exit functions", "stdout", "stderr", ("exit", 3)]


@pytest.mark.parametrize("missing", ["stdout", "stderr"])
def test_a_stream_that_python_has_not_opened_is_left_out(
    happened: list[Any], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, None if name == missing else stream(happened, name))
        exit_now(0)

    assert happened == ["exit functions", "stderr" if missing == "stdout" else "stdout", ("exit", 0)]


def test_a_stream_that_nothing_reads_delays_the_end_by_a_second_at_most(
    happened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Thread:
        def __init__(self, *, target: Any, daemon: bool) -> None:
            happened.append((target.__name__, daemon))

        def start(self) -> None: ...

        def join(self, seconds: float) -> None:
            happened.append(seconds)

    monkeypatch.setattr(worker, "threading", SimpleNamespace(Thread=Thread))

    exit_now(1)

    assert happened == ["exit functions", ("_flush", True), 1.0, ("exit", 1)]


def test_a_process_without_a_free_thread_ends_too(happened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)

    exit_now(1)

    assert happened == ["exit functions", ("exit", 1)]
