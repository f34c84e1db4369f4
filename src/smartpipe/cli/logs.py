"""Logs as a stream of events on standard output (12-factor, XI): JSON lines, or text for people."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smartpipe.escaping import escape_json, escape_text, shorten_text
from smartpipe.worker.log_writer import standard_output

if TYPE_CHECKING:
    from smartpipe.worker.log_writer import Lines

COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
NOISY = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3", "watchfiles")
FIELD_CHARACTERS = 256
"""As long as CloudEvents wants contexts to be at most; a producer may send a megabyte."""
NESTED_CHARACTERS = 4_096
MESSAGE_CHARACTERS = 8_192
TRACEBACK_LINE_CHARACTERS = 2_048
TRACEBACK_LINES = 100
"""Of its beginning, and as many of its end."""


class JsonLines(logging.Formatter):
    """One JSON object a line; a record's ``fields`` stand beside time, level, logger, process and message.

    Control characters, and what else could do harm on a terminal, are escaped as JSON does; long values are cut.

    Args:
        process: The number of this process among those of a supervisor.
        ascii_only: Escape everything beyond ASCII, where the output is not in UTF-8.
    """

    def __init__(self, process: int | None = None, *, ascii_only: bool = False) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}
        self._encode = json.JSONEncoder(ensure_ascii=ascii_only).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": message_of(record),
        }
        for name, value in fields_of(record).items():
            short = isinstance(value, str) and len(value) <= FIELD_CHARACTERS
            line[name] = value if short or isinstance(value, (int, float)) else _bounded(value)
        if record.exc_info:
            line["exception"] = "\n".join(traceback_of(self, record))
        try:
            text = self._encode(line)
        except (TypeError, ValueError):  # keys that JSON does not have
            text = self._encode({str(name): _text(value) for name, value in line.items()})
        return escape_json(text)


class Text(logging.Formatter):
    """A line for people: time, level, process, message, then the fields that tell messages apart.

    Line breaks and control characters are escaped, and long values are cut. The lines of a traceback are indented, so
    that none can be taken for a line of the log.
    """

    shown = ("event_type", "event_id", "handler", "receive_count")
    shown_without_event = ("queue", "message_id", "receive_count")

    def __init__(self, *, coloured: bool = True, process: int | None = None, prefix: str = "") -> None:
        super().__init__()
        self._coloured = coloured
        self._process = "" if process is None else f"[{process}] "
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below where there is one."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        names = self.shown if "event_id" in fields else self.shown_without_event
        rest = " ".join(
            f"{name}={shorten_text(_text(fields[name]), FIELD_CHARACTERS)}"
            for name in names
            if fields.get(name) is not None
        )
        level = self._paint(COLOURS.get(record.levelno, "0"), f"{escape_text(record.levelname).lower():<7}")
        line = f"{self._prefix}{moment} {level} {self._process}{escape_text(message_of(record))}"
        if rest:
            line += " " + self._paint("2", escape_text(rest))
        if record.exc_info:
            line += "".join(f"\n  {escape_text(one)}" for one in traceback_of(self, record))
        return line

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


class LinesHandler(logging.Handler):
    """Hands each record, formatted, to a writer that does not block; each record becomes a line, whatever it holds."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a line that cannot be formatted says at least that
            message = f"A log line cannot be formatted: {type(error).__name__}; its message is {record.msg!r:.200}"
            line = self.format(logging.LogRecord(record.name, record.levelno, "", 0, message, None, None))
        self._lines.write(f"{line}\n")

    def flush(self) -> None:
        """Wait, for a bounded time, until the lines are written; logging does so at the process's end."""
        self._lines.flush()

    def describe_dropped(self, count: int) -> str:
        """Return the line that says how many were dropped."""
        message = "%d log lines were dropped: standard output was blocked, or could not be written"
        return self.format(logging.LogRecord("smartpipe.logs", logging.WARNING, "", 0, message, (count,), None)) + "\n"


def message_of(record: logging.LogRecord) -> str:
    """Return the record's message, also where its arguments do not fit."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or that have no text
        message = f"{_text(record.msg)} {_text(record.args)}"
    return shorten_text(message, MESSAGE_CHARACTERS)


def fields_of(record: logging.LogRecord) -> Mapping[Any, Any]:
    """Return what the record was given as ``extra={"fields": …}``."""
    fields = getattr(record, "fields", {})
    return fields if isinstance(fields, Mapping) else {"fields": fields}


def traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Return the lines of the record's traceback, neither too long nor too many."""
    assert record.exc_info  # noqa: S101 - asked for only where there is one
    lines = formatter.formatException(record.exc_info).split("\n")
    left_out = len(lines) - 2 * TRACEBACK_LINES
    if left_out > 0:
        lines[TRACEBACK_LINES:-TRACEBACK_LINES] = [f"…({left_out} lines)"]
    return [shorten_text(line, TRACEBACK_LINE_CHARACTERS) for line in lines]


def _bounded(value: Any) -> Any:
    """Return a field's value as JSON can have it, and cut if it is long."""
    if value is None or isinstance(value, str):
        return value if value is None else shorten_text(value, FIELD_CHARACTERS)
    if not isinstance(value, (dict, list, tuple)):
        return shorten_text(_text(value), FIELD_CHARACTERS)
    try:
        text = json.dumps(value, default=_text, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return shorten_text(_text(value), FIELD_CHARACTERS)
    return json.loads(text) if len(text) <= NESTED_CHARACTERS else shorten_text(text, NESTED_CHARACTERS)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever a __str__ does
        return f"({type(value).__name__} without a text)"


def configure(level: str, log_format: str, *, process: int | None = None, prefix: str = "") -> None:
    """Send every logger's records to standard output; ``auto`` is text on a terminal and JSON elsewhere.

    Lines are written from a thread, so that a reader that does not read never stops the event loop.

    Args:
        process: The number of this process among those of a supervisor.
        prefix: Goes before each line of text.
    """
    text = log_format == "text" or (log_format == "auto" and _is_terminal())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what handlers print appears when they print it
    lines = standard_output()
    handler = LinesHandler(lines)
    if text:
        handler.setFormatter(Text(coloured=has_colours(), process=process, prefix=prefix))
    else:
        handler.setFormatter(JsonLines(process, ascii_only=not _takes_unicode()))
    lines.describe = handler.describe_dropped
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:  # their debug lines hold credentials and bodies
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def has_colours() -> bool:
    """Return whether standard output shows them: a terminal, or what FORCE_COLOR calls one, without NO_COLOR."""
    return not os.environ.get("NO_COLOR") and bool(os.environ.get("FORCE_COLOR") or _is_terminal())


def _takes_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name == "utf-8"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
