"""The logging of a command: its format, its level, and lines about records that cannot be written."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.cli import logs
from smartpipe.cli.logs import NOISY, JsonFormatter, LineHandler, TextFormatter, configure

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lines:
    """Collects lines."""

    def __init__(self) -> None:
        self.dropped = 0
        self.written: list[str] = []
        self.flushed = 0
        self.describe: Any = None

    def write(self, line: str) -> None:
        self.written.append(line)

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The destination of the log, in place of standard output; afterwards the loggers are as they were."""
    lines = Lines()
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, NOISY)]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    root.handlers = []  # configure closes those that it replaces
    monkeypatch.setattr(logs, "standard_output", lambda: lines)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    yield lines
    root.handlers = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def output(*, terminal: bool = False, encoding: str = "utf-8") -> Any:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    return stream


@pytest.mark.parametrize(
    ("log_format", "terminal", "is_text"),
    [
        ("text", False, True),
        ("text", True, True),
        ("json", False, False),
        ("json", True, False),
        ("auto", False, False),
        ("auto", True, True),
    ],
)
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    lines: Lines, log_format: str, terminal: bool, is_text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", output(terminal=terminal))

    configure("info", log_format, process=2, prefix="> ")
    logging.getLogger("shop").info("hello")

    [line] = lines.written
    if is_text:
        assert line.startswith("> ")
        assert line.endswith("[2] hello\n")
        assert ("\x1b[32m" in line) == terminal
    else:
        assert json.loads(line).items() >= {"message": "hello", "process": 2}.items()


def test_without_standard_output_auto_is_json(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    configure("info", "auto")
    logging.getLogger("shop").info("zw\u00f6lf")

    assert json.loads(lines.written[0])["message"] == "zw\u00f6lf"
    assert "zw\u00f6lf" in lines.written[0]


@pytest.mark.parametrize(("encoding", "is_escaped"), [("utf-8", False), ("UTF8", False), ("latin-1", True)])
def test_in_another_encoding_than_utf_8_json_is_ascii(
    lines: Lines, encoding: str, is_escaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", output(encoding=encoding))

    configure("info", "json")
    logging.getLogger("shop").info("zw\u00f6lf")

    assert ("zw\\u00f6lf" in lines.written[0]) == is_escaped


def test_what_a_handler_prints_appears_immediately(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = output()
    monkeypatch.setattr(sys, "stdout", stream)

    configure("info", "json")

    assert stream.line_buffering
    assert lines.written == []


@pytest.mark.parametrize(("level", "shown"), [("debug", 2), ("info", 1), ("warning", 0), ("error", 0)])
def test_the_level_is_that_of_the_setting_and_replaces_an_earlier_configuration(
    lines: Lines, level: str, shown: int
) -> None:
    configure("error", "json")
    configure(level, "json")

    for number, write in enumerate((logging.getLogger("shop").debug, logging.getLogger("shop").info)):
        write("line %d", number)

    assert len(lines.written) == shown
    assert len(logging.getLogger().handlers) == 1


@pytest.mark.parametrize(
    ("level", "expected"),
    [("debug", logging.WARNING), ("warning", logging.WARNING), ("error", logging.ERROR)],
)
def test_libraries_write_warnings_at_most(lines: Lines, level: str, expected: int) -> None:
    """Their other lines contain credentials and bodies."""
    configure(level, "json")

    assert {logging.getLogger(name).level for name in NOISY} == {expected}
    logging.getLogger("botocore.endpoint").debug("secret")
    assert lines.written == []


def test_dropped_lines_are_described_in_the_format_of_the_log(lines: Lines) -> None:
    configure("info", "json")

    line = lines.describe(3)

    assert line.endswith("}\n")
    assert (
        json.loads(line).items()
        >= {
            "level": "warning",
            "logger": "smartpipe.logs",
            "message": "Dropped 3 log lines, because standard output was blocked or could not be written",
        }.items()
    )


def test_a_flush_reaches_the_destination(lines: Lines) -> None:
    LineHandler(lines).flush()

    assert lines.flushed == 1


class Broken(logging.Formatter):
    """Fails at every record but those about failures."""

    def format(self, record: logging.LogRecord) -> str:
        if "Cannot format" in str(record.msg):
            return f"{record.name} {record.levelname} {record.getMessage()}"
        raise ValueError("broken")


def test_a_record_that_cannot_be_formatted_is_a_line_about_that(lines: Lines) -> None:
    handler = LineHandler(lines)
    handler.setFormatter(Broken())

    handler.emit(logging.LogRecord("shop", logging.ERROR, "", 0, "x" * 300, None, None))

    assert lines.written == [
        f"shop ERROR Cannot format a log record: ValueError; its message is {'x' * 200}\n",
    ]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter(coloured=False)])
def test_a_traceback_that_cannot_be_formatted_is_named(
    formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise RecursionError

    error = ValueError("no")
    record = logging.LogRecord("shop", logging.ERROR, "", 0, "text", None, (ValueError, error, None))
    monkeypatch.setattr(formatter, "formatException", fail)

    assert "(the traceback cannot be formatted: RecursionError)" in formatter.format(record)


def test_nested_values_keep_their_characters_and_no_number_is_invalid_json() -> None:
    record = logging.LogRecord("shop", logging.INFO, "", 0, "text", None, None)
    record.__dict__["fields"] = {
        "nested": {"a": "zw\u00f6lf"},
        "long": {"a": "\u00f6" * 4_083},
        "beyond": ["\u00f6" * 4_095],
    }

    fields = json.loads(JsonFormatter().format(record))

    assert (fields["nested"], fields["long"]) == ({"a": "zw\u00f6lf"}, {"a": "\u00f6" * 4_083})
    assert fields["beyond"].endswith("…(4099 characters)")
