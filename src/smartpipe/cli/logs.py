"""Write logs to standard output (12-factor, XI), as JSON lines or as text."""

from __future__ import annotations

import codecs
import io
import json
import logging
import math
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smartpipe.escaping import escape_json, escape_text, shorten_text
from smartpipe.log_fields import fields_of, is_own
from smartpipe.worker.log_writer import standard_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.worker.log_writer import Lines

COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
NOISY = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3", "watchfiles")
RESERVED_FIELDS = frozenset({"time", "level", "logger", "process", "message", "exception", "stack"})
"""The keys of a JSON line that no field may have."""
MAX_INTEGER = 2**63
"""Integers beyond become text, because parsers of JSON round or refuse them."""
FIELD_CHARACTERS = 256
"""CloudEvents recommends at most this length for context attributes. A producer may send a megabyte."""
NESTED_CHARACTERS = 4_096
MESSAGE_CHARACTERS = 8_192
TRACEBACK_LINE_CHARACTERS = 2_048
TRACEBACK_LINES = 100
"""The number of lines that are kept at the beginning of a traceback, and at its end."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, process, message, and the record's fields.

    In a handler, the fields of its delivery are among them. Control characters and other characters that could affect
    a terminal are escaped as in JSON. Long values are cut. Numbers that JSON lacks become text, such as ``"nan"``.

    Args:
        process: The number of this process under its supervisor.
        ascii_only: Escape all non-ASCII characters, for an output that is not in UTF-8.
    """

    def __init__(self, process: int | None = None, *, ascii_only: bool = False) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}
        self._encode = json.JSONEncoder(ensure_ascii=ascii_only, allow_nan=False).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": message_of(record),
        }
        for name, value in fields_of(record, RESERVED_FIELDS).items():
            short = isinstance(value, str) and len(value) <= FIELD_CHARACTERS
            line[shorten_text(name, FIELD_CHARACTERS)] = value if short else _shorten_value(value)
        if has_exception(record):
            line["exception"] = "\n".join(traceback_of(self, record))
        if record.stack_info:
            line["stack"] = "\n".join(shorten_lines(_to_text(record.stack_info)))
        try:
            text = self._encode(line)
        except (TypeError, ValueError):  # a subclass of a type that JSON supports may have any behaviour
            text = self._encode({str(name): _to_text(value) for name, value in line.items()})
        return escape_json(text)


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text: time, level, process, message, and fields.

    A line of smartpipe has the fields that identify the message. Any other line has all fields that its caller added,
    and in a handler those that identify the delivery. Line breaks and control characters are escaped, and long values
    are cut. The lines of a traceback are indented, so that they cannot be mistaken for lines of the log.
    """

    event_fields = ("event_type", "event_id", "handler", "receive_count")
    other_fields = ("queue", "message_id", "receive_count")
    delivery_fields = ("event_type", "event_id", "message_id", "trace_id", "handler", "receive_count")
    hidden_fields = frozenset({"service", "queue"})
    """Fields of a delivery that its handler implies."""

    def __init__(self, *, coloured: bool, process: int | None = None, prefix: str = "") -> None:
        super().__init__()
        self._coloured = coloured
        self._process = "" if process is None else f"[{process}] "
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback and the stack if there are any."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        rest = " ".join(
            f"{shorten_text(name, FIELD_CHARACTERS)}={_quote(shorten_text(_to_text(fields[name]), FIELD_CHARACTERS))}"
            for name in self._names(record, fields)
            if fields.get(name) is not None
        )
        level = self._paint(COLOURS.get(record.levelno, "0"), f"{escape_text(record.levelname).lower():<7}")
        line = f"{self._prefix}{time} {level} {self._process}{escape_text(message_of(record))}"
        if rest:
            line += " " + self._paint("2", escape_text(rest))
        below = traceback_of(self, record) if has_exception(record) else []
        if record.stack_info:
            below += shorten_lines(_to_text(record.stack_info))
        return line + "".join(f"\n  {escape_text(text)}" for text in below)

    def _names(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the fields to show, in their order."""
        if is_own(record):
            return self.event_fields if "event_id" in fields else self.other_fields
        hidden = self.hidden_fields if "handler" in fields else frozenset[str]()
        names = dict.fromkeys((*self.delivery_fields, *fields))
        return [name for name in names if name not in hidden]

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


class LineHandler(logging.Handler):
    """Formats each record as a line for a writer that does not block. Every record yields a line, even a broken one."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of *record*."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a record that cannot be formatted is still logged
            message = f"Cannot format a log record: {type(error).__name__}; its message is {_to_text(record.msg):.200}"
            line = self.format(logging.LogRecord(record.name, record.levelno, "", 0, message, None, None))
        self._lines.write(f"{line}\n")

    def flush(self) -> None:
        """Wait for a limited time until the lines are written. logging calls it at the end of the process."""
        self._lines.flush()

    def describe_dropped(self, count: int) -> str:
        """Return a line with the number of dropped lines."""
        message = "Dropped %d log lines, because standard output was blocked or could not be written"
        return self.format(logging.LogRecord("smartpipe.logs", logging.WARNING, "", 0, message, (count,), None)) + "\n"


def message_of(record: logging.LogRecord) -> str:
    """Return the message of the record, even if its arguments do not match."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - wrong arguments, or arguments whose __str__ fails
        message = f"{_to_text(record.msg)} {_to_text(record.args)}"
    return shorten_text(message, MESSAGE_CHARACTERS)


def has_exception(record: logging.LogRecord) -> bool:
    """Return whether the record has an exception, or the text of one that another handler has formatted."""
    return bool(record.exc_info or record.exc_text)


def traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Return the lines of the record's traceback, with limits on their length and number."""
    if not isinstance(record.exc_info, tuple):
        return shorten_lines(_to_text(record.exc_text or record.exc_info))
    try:
        text = formatter.formatException(record.exc_info)
    except Exception as error:  # noqa: BLE001 - an exception's own methods may raise any error
        text = f"(the traceback cannot be formatted: {type(error).__name__})"
    return shorten_lines(text)


def shorten_lines(text: str) -> list[str]:
    """Return the lines of *text*, each cut if it is long. Above 200 lines, the ones in the middle are left out."""
    lines = text.split("\n")
    left_out = len(lines) - 2 * TRACEBACK_LINES
    if left_out > 0:
        lines[TRACEBACK_LINES:-TRACEBACK_LINES] = [f"…({left_out} lines)"]
    return [shorten_text(line, TRACEBACK_LINE_CHARACTERS) for line in lines]


def _shorten_value(value: Any) -> Any:
    """Return the value of a field as JSON supports it, cut if it is long."""
    match value:
        case None | bool():
            return value
        case str():
            return shorten_text(value, FIELD_CHARACTERS)
        case int() if -MAX_INTEGER < value < MAX_INTEGER:
            return value
        case float() if math.isfinite(value):
            return value
        case dict() | list() | tuple():
            try:
                text = json.dumps(value, default=_to_text, ensure_ascii=False)
                # Infinity and NaN are not JSON, and most parsers would refuse the whole line.
                return (
                    json.loads(text, parse_constant=str)
                    if len(text) <= NESTED_CHARACTERS
                    else shorten_text(text, NESTED_CHARACTERS)
                )
            except (TypeError, ValueError, RecursionError):
                return shorten_text(_to_text(value), FIELD_CHARACTERS)
    return shorten_text(_to_text(value), FIELD_CHARACTERS)


def _quote(text: str) -> str:
    """Return *text* in quotes if it contains spaces, so that it is not mistaken for several fields."""
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _to_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - __str__ may raise any error
        return f"({type(value).__name__} without a text)"


def configure(level: str, log_format: str, *, process: int | None = None, prefix: str = "") -> None:
    """Send the records of all loggers to standard output. ``auto`` means text on a terminal, and JSON otherwise.

    A thread writes the lines, so that a slow reader does not block the event loop.

    Args:
        process: The number of this process under its supervisor.
        prefix: A prefix for each line of text.
    """
    is_text = log_format == "text" or (log_format == "auto" and _is_terminal())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the output of print in a handler appears immediately
    lines = standard_output()
    handler = LineHandler(lines)
    if is_text:
        handler.setFormatter(TextFormatter(coloured=has_colours(), process=process, prefix=prefix))
    else:
        handler.setFormatter(JsonFormatter(process, ascii_only=not _is_utf8()))
    lines.describe = handler.describe_dropped
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:  # their debug lines contain credentials and bodies
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def has_colours() -> bool:
    """Return whether standard output has colours: a terminal or FORCE_COLOR, and no NO_COLOR."""
    return not os.environ.get("NO_COLOR") and bool(os.environ.get("FORCE_COLOR") or _is_terminal())


def _is_utf8() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name == "utf-8"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
