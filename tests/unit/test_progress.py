"""The progress of a redrive, a purge or an apply: on a terminal in one line, elsewhere in several."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from smartpipe.cli import redrive
from smartpipe.cli.changes import ProgressLine
from smartpipe.cli.redrive import CLEAR, Progress


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(redrive, "time", clock)
    return clock


def progress(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, as_json: bool = False) -> Any:
    monkeypatch.setattr("sys.stderr", Stream(sys.stderr, terminal=terminal))
    operation: Any = SimpleNamespace(options=SimpleNamespace(as_json=as_json), past_tense="redriven")
    scanned: Any = SimpleNamespace(selected=SimpleNamespace(total=lambda: 2_000), complete=False)
    return Progress(operation, SimpleNamespace(name="mailer-dlq"), scanned)  # type: ignore[arg-type]


class Stream:
    """A stream that says whether it is a terminal."""

    def __init__(self, stream: Any, *, terminal: bool) -> None:
        self._stream = stream
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show(one: Any, clock: Clock, *times: tuple[float, int]) -> None:
    for seconds, done in times:
        clock.seconds = 100.0 + seconds
        one(SimpleNamespace(done=done))
    one.end()


def test_elsewhere_a_line_is_printed_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    show(
        progress(monkeypatch, terminal=False), clock, (0.2, 5), (9.9, 900), (10.0, 1_000), (19.9, 1_500), (20.0, 2_000)
    )

    assert capsys.readouterr().err == "mailer-dlq: redriven 1,000 of 2,000+\nmailer-dlq: redriven 2,000 of 2,000+\n"


def test_on_a_terminal_one_line_changes_and_is_cleared_at_the_end(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    show(progress(monkeypatch, terminal=True), clock, (0.1, 5), (0.2, 10), (0.3, 15), (0.4, 20))

    line = f"\rmailer-dlq: redriven {{}} of 2,000+{CLEAR}"
    assert capsys.readouterr().err == line.format(10) + line.format(20) + f"\r{CLEAR}"


def test_nothing_is_printed_beside_json_or_before_it_is_time(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    show(progress(monkeypatch, terminal=False, as_json=True), clock, (30.0, 5))
    show(progress(monkeypatch, terminal=True), clock, (0.1, 5))

    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_change_replaces_the_one_before_and_fits_into_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cursor behind the last column would wrap, and the next text could not replace this one."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stdout", Stream(sys.stdout, terminal=True))
    progress = ProgressLine()

    for text in ("a" * 19, "b" * 20, "short", "\n"):
        progress.show(text)
    progress.end()

    assert capsys.readouterr().out.split("\r") == [
        "",
        "a" * 19,
        "b" * 18 + "…",
        "short".ljust(19),
        "\\n".ljust(5) + "\n",
    ]


def test_elsewhere_each_change_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine()

    for text in ("a" * 200, "short"):
        progress.show(text)
    progress.end()

    assert capsys.readouterr().out == "a" * 200 + "\nshort\n"
