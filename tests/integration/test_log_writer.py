"""Log lines on real pipes: a reader that does not read must not block the writing process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from smartpipe.worker import log_writer as module
from smartpipe.worker.log_writer import LineWriter
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017 - closed by the test


def read_all(pipe: Pipe) -> list[str]:
    os.close(pipe[1])
    with os.fdopen(os.dup(pipe[0]), "rb") as reader:
        return reader.read().decode().splitlines()


def close(writer: LineWriter) -> None:
    """Close the writer, so that readers reach the end of the pipe."""
    os.close(writer._fd)


def test_lines_stay_in_order_and_none_is_lost(pipe: Pipe) -> None:
    writer = LineWriter(pipe[1])
    for number in range(500):
        writer.write(f"line {number} ü\n")
    writer.flush()
    close(writer)

    assert read_all(pipe) == [f"line {number} ü" for number in range(500)]
    assert writer.dropped == 0


def test_an_unread_pipe_does_not_block_and_costs_limited_memory(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_CHARACTERS", 100_000)
    writer = LineWriter(pipe[1], describe=lambda count: f"{count} dropped\n")
    for number in range(100_000):
        writer.write(f"line {number} {'x' * 90}\n")
    started = time.monotonic()
    writer.flush()

    assert writer.dropped > 90_000
    assert writer._put - writer._dequeued <= 100_000
    assert time.monotonic() - started < 30

    reported, numbers = 0, list[int]()
    with os.fdopen(os.dup(pipe[0]), "r") as reader:
        while reported < writer.dropped:
            words = reader.readline().split()
            if words[0] == "line":
                numbers.append(int(words[1]))
            else:
                reported += int(words[0])
    assert numbers == sorted(numbers)
    assert reported == writer.dropped
    close(writer)


def test_processes_that_share_a_pipe_do_not_mix_their_lines(pipe: Pipe) -> None:
    program = "import sys; from smartpipe.worker.log_writer import LineWriter; w = LineWriter(1)\n"
    program += "for _ in range(2000): w.write(sys.argv[1] * 99 + '\\n')\nw.flush()"
    writers = [subprocess.Popen([sys.executable, "-c", program, letter], stdout=pipe[1]) for letter in "abc"]
    lines = read_all(pipe)
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    assert set(lines) == {letter * 99 for letter in "abc"}
    assert len(lines) == 6_000


def test_a_closed_pipe_and_a_full_disk_only_lose_lines(pipe: Pipe) -> None:
    os.close(pipe[0])
    gone = LineWriter(pipe[1])
    gone.write("nobody reads this\n")
    until_blocking(lambda: gone.dropped == 1)

    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        disk = LineWriter(full.fileno())
    disk.write("no space\n")
    until_blocking(lambda: disk.dropped == 1)


def test_a_pipe_that_another_process_made_non_blocking_loses_no_line(pipe: Pipe) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, fcntl.fcntl(pipe[1], fcntl.F_GETFL) | os.O_NONBLOCK)
    writer = LineWriter(pipe[1])
    for number in range(2_000):
        writer.write(f"line {number} {'x' * 90}\n")
    with os.fdopen(os.dup(pipe[0]), "r") as reader:
        lines = [reader.readline() for _ in range(2_000)]

    assert lines == [f"line {number} {'x' * 90}\n" for number in range(2_000)]
    close(writer)


def test_a_lone_surrogate_is_written_and_not_lost(pipe: Pipe) -> None:
    writer = LineWriter(pipe[1])
    writer.write("before \ud800 after\n")
    writer.flush()
    close(writer)

    assert read_all(pipe) == ["before \\ud800 after"]


PROGRAM = """
import logging, os, sys, threading, time
from smartpipe.cli.logs import configure
configure("info", "json")
log = logging.getLogger("x")
"""

FORK = """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=log.info, args=("of a child",))
child.start(); child.join()
"""


@pytest.mark.parametrize(
    ("ending", "lines"),
    [
        ("log.info('last')", 1),
        ("log.info('last'); sys.exit(3)", 1),
        ("log.info('last'); raise RuntimeError('crash')", 1),
        ("from smartpipe.cli.worker import exit_now; log.error('x', exc_info=ValueError('y')); exit_now(1)", 1),
        ("for n in range(3000): log.info('line %d', n)", 3_000),
        ("log.info('parent')\nif os.fork() == 0:\n    log.info('child'); os._exit(0)\nos.wait()", 2),
        ("threading.Thread(target=log.info, args=('of a thread',)).start(); log.info('last')", 2),
        (FORK, 1),
        ("import logging; log.info('%d', 'wrong'); log.info('x', extra={'fields': {'id': '\\ud800'}})", 2),
    ],
)
def test_a_process_writes_all_its_lines_before_it_ends(ending: str, lines: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending], capture_output=True, text=True, timeout=60, check=False
    )

    assert len(run.stdout.splitlines()) == lines, run.stderr


@pytest.mark.parametrize(
    "ending",
    ["pass", "from smartpipe.cli.worker import exit_now; exit_now(0)"],
    ids=["the interpreter's end", "exit_now"],
)
def test_a_process_with_unread_output_still_ends(ending: str) -> None:
    program = f"{PROGRAM}for n in range(5000): log.info('line %d', n)\n"
    process = subprocess.Popen([sys.executable, "-c", program + ending], stdout=subprocess.PIPE)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_line_of_json_is_json_in_any_encoding(encoding: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM + "log.info('ü 漢 \x9b')"],
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )

    assert json.loads(run.stdout.decode(encoding))["message"] == "ü 漢 \x9b"
