"""The exit codes of commands, and the errors that they print."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError, cli
from smartpipe.cli import exit as ending
from smartpipe.cli.exit import _error_format, open_closed_streams, run_to_exit_code
from smartpipe.errors import SmartpipeError
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str]]


class WrongCommandLine(Exception):
    """A usage error of typer, as far as the command knows it."""

    exit_code = "2"

    def format_message(self) -> str:
        return "No such option"

    def show(self) -> None:
        sys.stderr.write("Usage: and the error\n")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command that returns a value or raises; it returns the code and the errors."""

    def run(result: object, line: str = "topology plan") -> tuple[int, str]:
        def command() -> object:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr("sys.argv", ["smartpipe", *line.split()])
        monkeypatch.delenv("SMARTPIPE_LOG_FORMAT", raising=False)
        code = run_to_exit_code(command)
        return code, capsys.readouterr().err

    return run


def ended_by_a_broken_pipe() -> SystemExit:
    error = SystemExit(1)
    error.__context__ = BrokenPipeError()
    return error


@pytest.mark.parametrize(
    ("result", "code", "errors"),
    [
        (None, 0, ""),
        ("text", 0, ""),
        (3, 3, ""),
        (ConfigError(["one", "t\x1bwo"]), 2, "smartpipe: one\nsmartpipe: t\\x1bwo\n"),
        (SmartpipeError("one\ntwo"), 1, "smartpipe: one\nsmartpipe: two\n"),
        (SystemExit(4), 4, ""),
        (SystemExit(None), 1, ""),
        (SystemExit("text"), 1, ""),
        (ended_by_a_broken_pipe(), 141, ""),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, ""),
        (WrongCommandLine(), 2, "Usage: and the error\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "smartpipe: the output cannot be written: No space left on device\n",
        ),
        (OSError(errno.ENOSPC, "No space", "a.json"), 2, "smartpipe: [Errno 28] No space: 'a.json'\n"),
        (OSError(errno.EIO, "Input/output error"), 2, "smartpipe: [Errno 5] Input/output error\n"),
    ],
)
def test_the_end_of_a_command_has_an_exit_code_and_one_line_for_each_error(
    run: Run, result: object, code: int, errors: str
) -> None:
    assert run(result) == (code, errors)


def test_an_internal_error_prints_its_traceback(run: Run) -> None:
    code, errors = run(ValueError("wrong"))

    assert code == 1
    assert errors.startswith("Traceback (most recent call last):\n")
    assert errors.endswith("ValueError: wrong\n")


@pytest.mark.parametrize(
    ("result", "code", "errors"),
    [
        (ConfigError(["one", "zwölf"]), 2, ["one", "zwölf"]),
        (SmartpipeError("one\ntwo"), 1, ["one", "two"]),
        (WrongCommandLine(), 2, ["No such option"]),
    ],
)
def test_with_json_all_errors_are_one_object(run: Run, result: object, code: int, errors: list[str]) -> None:
    found, text = run(result, "topology plan --json")

    assert found == code
    assert json.loads(text) == {"errors": errors, "exit_code": code}
    assert "zw\\u00f6lf" not in text


def test_with_json_an_internal_error_is_an_object_with_its_traceback(run: Run) -> None:
    code, text = run(ValueError("wrong"), "topology plan --json")

    fields = json.loads(text)
    assert (code, fields["exit_code"], fields["errors"]) == (1, 1, ["internal error: ValueError: wrong"])
    assert fields["traceback"].startswith("Traceback")
    assert fields["traceback"].endswith("ValueError: wrong\n")


def test_with_a_json_log_each_error_is_a_record(run: Run) -> None:
    code, text = run(ConfigError(["one", "two"]), "worker --log-format json")

    records = [json.loads(line) for line in text.splitlines()]
    assert code == 2
    assert [(one["level"], one["logger"], one["message"]) for one in records] == [
        ("critical", "smartpipe.worker", "one"),
        ("critical", "smartpipe.worker", "two"),
    ]
    assert not any("exception" in one for one in records)


def test_with_a_json_log_the_record_of_an_internal_error_has_its_traceback(run: Run) -> None:
    code, text = run(ValueError("wrong"), "relay --log-format=json")

    [record] = [json.loads(line) for line in text.splitlines()]
    assert (code, record["message"]) == (1, "internal error: ValueError: wrong")
    assert "ValueError: wrong" in json.dumps(record)
    assert "Traceback (most recent call last):" in json.dumps(record)


@pytest.mark.parametrize(
    ("command_line", "environment", "expected"),
    [
        ("topology plan a:b", {}, "text"),
        ("topology plan --json", {}, "json"),
        ("topology plan -- --json", {}, "text"),
        ("worker a:b", {}, "text"),
        ("worker a:b", {"SMARTPIPE_LOG_FORMAT": "auto"}, "text"),
        ("worker a:b --log-format json", {}, "log"),
        ("worker a:b --log-format=json", {}, "log"),
        ("worker a:b --log-format=text", {"SMARTPIPE_LOG_FORMAT": "json"}, "text"),
        ("relay", {"SMARTPIPE_LOG_FORMAT": "json"}, "log"),
        ("topology plan", {"SMARTPIPE_LOG_FORMAT": "json"}, "text"),
        ("worker --log-format", {}, "text"),
        ("worker a:b --log-format json --log-format text", {}, "text"),
        ("worker a:b json", {}, "text"),
        ("worker a:b --log-format", {"SMARTPIPE_LOG_FORMAT": "json"}, "text"),
        ("worker a:b -- --log-format json", {}, "text"),
        ("worker a:b", {"SMARTPIPE_LOG_FORMAT": " Json "}, "log"),
        ("", {}, "text"),
    ],
)
def test_errors_are_json_if_the_user_asked_for_json(
    command_line: str, environment: dict[str, str], expected: str
) -> None:
    assert _error_format(command_line.split(), environment) == expected


def test_an_error_keeps_its_exit_code_if_standard_error_is_full(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())

    assert run(ConfigError(["one"]))[0] == 2


def test_errors_are_written_before_the_process_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(written), write_through=False)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(ending, "_discard_unwritten_output", lambda: None)

    run(ConfigError(["one"]))

    assert written.getvalue() == b"smartpipe: one\n"


@pytest.mark.parametrize("redirected", ["stdout", "stderr"])
def test_output_that_nothing_reads_is_discarded_once_it_cannot_be_written(
    redirected: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter would try to write it again at its end, and exit with 120."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(f"sys.{redirected}", stream)
    stream.write("text")

    code, _ = run(None)
    stream.write("more")
    stream.close()

    assert code == (141 if redirected == "stdout" else 0)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_no_error(stream: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(f"sys.{stream}", closed)
    if stream == "stdout":
        monkeypatch.setattr(closed, "flush", Flush())

    assert run(None)[0] == 0


class Flush:
    """Succeeds once, and then fails, as a stream does that is closed in between."""

    def __init__(self) -> None:
        self._called = False

    def __call__(self) -> None:
        if self._called:
            raise ValueError("I/O operation on closed file")
        self._called = True


class Descriptors:
    """The file descriptors of a process, some of them closed."""

    devnull, O_RDWR = os.devnull, os.O_RDWR

    def __init__(self, *closed: int) -> None:
        self.closed = set(closed)
        self.inheritable: list[int] = []

    def fstat(self, fd: int) -> None:
        if fd in self.closed:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def open(self, name: str, flags: int) -> int:
        assert (name, flags) == (os.devnull, os.O_RDWR)
        found = min(self.closed | {7})
        self.closed.discard(found)
        return found

    def dup2(self, source: int, target: int) -> None:
        assert source not in self.closed
        self.closed.discard(target)

    def close(self, fd: int) -> None:
        self.closed.add(fd)

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        assert fd not in self.closed
        if inheritable:
            self.inheritable.append(fd)


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1, 2), (1, 2)])
def test_closed_standard_streams_lead_to_dev_null_also_in_child_processes(
    closed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = Descriptors(*closed)
    monkeypatch.setattr(ending, "os", descriptors)

    open_closed_streams()

    assert descriptors.closed == set()
    assert tuple(descriptors.inheritable) == closed


def test_a_descriptor_that_is_not_the_closed_one_is_moved_there(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = Descriptors(1)
    monkeypatch.setattr(descriptors, "open", lambda *_: 7)
    monkeypatch.setattr(ending, "os", descriptors)

    open_closed_streams()

    assert descriptors.closed == {7}


def test_a_stream_that_python_has_not_opened_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def open_stream(*arguments: Any, **options: Any) -> str:
        opened.append((arguments, options))
        return "the stream"

    streams = SimpleNamespace(stdin=None, stdout=sys.stdout, stderr=None)
    monkeypatch.setattr(ending, "sys", streams)
    monkeypatch.setattr(ending, "open", open_stream, raising=False)

    open_closed_streams()

    assert opened == [((0, "r"), {"closefd": False}), ((2, "w"), {"closefd": False})]
    assert (streams.stdin, streams.stdout, streams.stderr) == ("the stream", sys.stdout, "the stream")


def test_the_command_opens_closed_streams_before_it_does_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(_: object) -> int:
        order.append("run")
        return 3

    monkeypatch.setattr(ending, "open_closed_streams", lambda: order.append("open"))
    monkeypatch.setattr(ending, "run_to_exit_code", run)

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert (order, ended.value.code) == (["open", "run"], 3)


def test_an_error_in_the_command_line_has_the_exit_code_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["smartpipe", "topology", "plan", "--json", "--no-such-option"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().err) == {"errors": ["No such option: --no-such-option"], "exit_code": 2}


AS_PID_1 = """
import os, signal, sys
from smartpipe.cli.exit import end_on_signals_as_pid_1

own, os.getpid = os.getpid(), lambda: int(sys.argv[1])
signal.signal(signal.SIGHUP, signal.SIG_IGN)
end_on_signals_as_pid_1()
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup decides"
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
os.kill(own, getattr(signal, sys.argv[2]))
signal.pause()
"""


@pytest.mark.parametrize(
    ("pid", "name", "code"),
    [("1", "SIGTERM", 143), ("1", "SIGQUIT", 131), ("2", "SIGTERM", -signal.SIGTERM)],
)
def test_a_signal_ends_a_command_that_is_pid_1_although_the_kernel_would_ignore_it(
    pid: str, name: str, code: int
) -> None:
    done = subprocess.run([sys.executable, "-c", AS_PID_1, pid, name], timeout=DEADLINE_SECONDS, check=False)

    assert done.returncode == code
