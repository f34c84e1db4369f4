"""The writer of log lines step by step, without its thread: limits, batches, and lines that could not be written."""

from __future__ import annotations

import io
import os
import sys
import time
from threading import Event
from typing import TYPE_CHECKING

import pytest

from smartpipe.worker import log_writer
from smartpipe.worker.log_writer import (
    MAX_PENDING_CHARACTERS,
    MAX_WRITE_BYTES,
    LineWriter,
    StreamLines,
    family_of_dropped_lines,
    standard_output,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class IdleThread:
    """A thread that never runs, so that the test writes in its place."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        assert (name, daemon) == ("smartpipe-log", True)

    def start(self) -> None: ...


class NoThread(IdleThread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


class Output:
    """Records each write. It takes at most ``takes`` bytes of one, or raises ``error``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[bytes] = []
        self.takes = sys.maxsize
        self.error: OSError | None = None
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "dup", lambda fd: fd)

    def write(self, fd: int, data: memoryview) -> int:
        assert fd == 1
        if self.error is not None:
            raise self.error
        self.writes.append(bytes(data[: self.takes]))
        return len(self.writes[-1])


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    monkeypatch.setattr(log_writer, "Thread", IdleThread)
    return Output(monkeypatch)


def write_all(writer: LineWriter) -> None:
    """Write everything that is pending, as the thread does."""
    written = Event()
    writer._lines.put(written)
    while not written.is_set():
        writer._write_next()


def test_lines_share_a_write_up_to_the_size_of_which_a_pipe_mixes_none(output: Output) -> None:
    writer, half = LineWriter(1), MAX_WRITE_BYTES // 2
    for size in (half, half, half, half + 1, 1, MAX_WRITE_BYTES + 5, 3):
        writer.write("x" * (size - 1) + "\n")

    write_all(writer)

    assert [len(data) for data in output.writes] == [2 * half, half, half + 2, MAX_WRITE_BYTES + 5, 3]
    assert MAX_WRITE_BYTES == 4_096
    assert writer.dropped == 0


def test_the_bytes_count_and_not_the_characters(output: Output) -> None:
    writer = LineWriter(1)
    for _ in range(2):
        writer.write("\u20ac" * 700 + "\n")  # 2,101 bytes

    write_all(writer)

    assert [len(data) for data in output.writes] == [2_101, 2_101]


def test_lines_beyond_the_limit_are_dropped_until_others_have_been_written_and_counted_in_a_line(
    output: Output,
) -> None:
    writer, tenth = LineWriter(1, describe="{} lost\n".format), MAX_PENDING_CHARACTERS // 16
    for round_ in (1, 2):
        for _ in range(16):
            writer.write("x" * tenth)
        assert writer.dropped == 3 * (round_ - 1)
        for _ in range(3):
            writer.write("\n")
        assert writer.dropped == 3 * round_
        output.writes.clear()
        writer._write_next()
        assert len(output.writes) == 1  # too many are pending to speak of those that were lost
        writer.write("x" * tenth)  # there is space for it again
        assert writer.dropped == 3 * round_
        write_all(writer)
        assert [data for data in output.writes if b"lost" in data] == [b"3 lost\n"]
        assert sum(map(len, output.writes)) == 17 * tenth + len("3 lost\n")


def test_lines_that_cannot_be_written_are_counted_and_reported_when_writing_works_again(output: Output) -> None:
    writer = LineWriter(1, describe="{} lost\n".format)
    for count in (1, 2):
        output.error = OSError(28, "No space left on device")
        for _ in range(3):
            writer.write("a\n")
        write_all(writer)
        assert (writer.dropped, writer._reported) == (3 * count, 3 * (count - 1))
        output.error = None
        output.writes.clear()
        writer.write("b\n")
        write_all(writer)
        assert b"".join(output.writes) == b"b\n3 lost\n"
        writer.write("c\n")
        write_all(writer)
        assert b"".join(output.writes) == b"b\n3 lost\nc\n"


def test_a_write_that_takes_a_part_is_continued_and_a_lone_surrogate_is_escaped(output: Output) -> None:
    output.takes = 4
    writer = LineWriter(1, encoding="ascii")
    writer.write("0123456789\n")
    writer.write("\ud800\u20ac\n")

    write_all(writer)

    assert output.writes[:3] == [b"0123", b"4567", b"89\n\\"]
    assert b"".join(output.writes) == b"0123456789\n\\ud800\\u20ac\n"


def test_a_flush_marks_the_lines_before_it_and_not_those_behind_it(output: Output) -> None:
    writer, mark = LineWriter(1), Event()
    writer.write("a\n")
    writer._lines.put(mark)
    writer.write("b\n")

    writer._write_next()
    assert (output.writes, mark.is_set()) == ([b"a\n"], False)
    writer._write_next()
    assert (output.writes, mark.is_set()) == ([b"a\n"], True)
    write_all(writer)
    assert output.writes == [b"a\n", b"b\n"]


def test_without_a_thread_each_line_is_written_by_its_caller(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "Thread", NoThread)
    writer = LineWriter(1)
    writer.write("a\n")
    writer.write("b\n")
    writer.flush()  # does not wait

    assert output.writes == [b"a\n", b"b\n"]


def test_after_a_fork_the_child_writes_without_a_thread_and_without_the_lines_of_its_parent(output: Output) -> None:
    writer = LineWriter(1)
    writer.write("of the parent\n")
    writer._reset_after_fork()
    writer.write("of the child\n")
    writer.flush()

    assert output.writes == [b"of the child\n"]


class Clock:
    """The clock of a flush, and an event that moves it on instead of waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: Callable[[float], None]) -> None:
        self.now, self.step = 100.0, step
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        clock = self

        class Waiting(Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                clock.now += timeout
                clock.step(clock.now)
                return self.is_set()

        monkeypatch.setattr(log_writer, "Event", Waiting)


@pytest.mark.parametrize(("moves", "seconds"), [(False, 0.5), (True, 2.0)])
def test_a_flush_waits_half_a_second_without_progress_and_two_seconds_in_all(
    moves: bool, seconds: float, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = LineWriter(1)

    def step(_: float) -> None:
        writer._dequeued += moves

    clock = Clock(monkeypatch, step)
    writer.write("x\n")
    writer.flush()

    assert clock.now - 100 == pytest.approx(seconds, abs=0.03)


def test_a_flush_ends_with_the_last_line(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LineWriter(1)

    def step(now: float) -> None:
        if now > 100.1:
            writer._write_next()

    clock = Clock(monkeypatch, step)
    writer.write("x\n")
    writer.flush()

    assert output.writes == [b"x\n"]
    assert clock.now - 100 < 0.2


def test_an_output_without_a_file_descriptor_gets_each_line_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_standard_output", None)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)

    lines = standard_output()
    lines.write("a\n")
    lines.flush()

    assert isinstance(lines, StreamLines)
    assert (stream.getvalue(), lines.dropped) == ("a\n", 0)
    monkeypatch.setattr(sys, "stdout", None)  # as in a process without one
    standard_output().write("b\n")
    standard_output().flush()


def test_a_process_has_one_writer_whose_dropped_lines_are_a_metric(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "_standard_output", None)
    monkeypatch.setattr(os, "dup", lambda _: 1)

    class Stream(io.StringIO):
        encoding = "latin-1"

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr(sys, "stdout", Stream())
    assert family_of_dropped_lines({"a": "b"}).samples == [({"a": "b"}, 0)]
    writer = standard_output()
    assert standard_output() is writer
    assert isinstance(writer, LineWriter)
    writer.write("\xe9\n")
    write_all(writer)
    assert output.writes == [b"\xe9\n"]
    writer.dropped = 7
    assert family_of_dropped_lines({}).samples == [({}, 7)]
