"""Write logs to standard output (12-factor, XI), as JSON lines or as text."""

from __future__ import annotations

import codecs
import io
import json
import logging
import math
import os
import sys
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smartpipe.escaping import escape_json, escape_text, shorten_text
from smartpipe.log_fields import fields_of, is_own
from smartpipe.telemetry.resource import ProcessResource
from smartpipe.worker.log_writer import standard_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smartpipe.worker.log_writer import Lines

log = logging.getLogger("smartpipe.resource")

NO_RESOURCE = ProcessResource({})
_NO_LABELS: Mapping[str, str] = {}
COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
COLOURLESS = ("dumb", "unknown")
"""Values of TERM."""
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
WIDE = 100
"""On a terminal that is narrower, loggers and messages are not aligned: the space is worth more."""
MIN_WIDTH = 20
UNKNOWN_WIDTH = 80
LOGGER_CHARACTERS = 20
MESSAGE_CHARACTERS_ALIGNED = 28


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, process, message, and the record's fields.

    In a handler, the fields of its delivery are among them. Control characters and other characters that could affect
    a terminal are escaped as in JSON. Long values are cut. Numbers that JSON lacks become text, such as ``"nan"``.

    Args:
        process: The number of this process under its supervisor.
        labels: Further fields of each line. A field of the record with the same name replaces one of them.
        ascii_only: Escape all non-ASCII characters, for an output that is not in UTF-8.
    """

    def __init__(
        self, process: int | None = None, *, labels: Mapping[str, str] = _NO_LABELS, ascii_only: bool = False
    ) -> None:
        super().__init__()
        self._labels = dict(labels)
        self._process = {} if process is None else {"process": process}
        self._encode = json.JSONEncoder(ensure_ascii=ascii_only, allow_nan=False).encode
        self._second = (-1, "")  # the last one, and its text: most lines share it with the line before

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": self._format_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": message_of(record),
        }
        for name, value in fields_of(record, RESERVED_FIELDS).items():
            key = name if len(name) <= FIELD_CHARACTERS else shorten_text(name, FIELD_CHARACTERS)
            kind = type(value)
            if kind is str:
                plain = len(value) <= FIELD_CHARACTERS
            else:
                plain = kind is int and -MAX_INTEGER < value < MAX_INTEGER
            line[key] = value if plain else _shorten_value(value)
        for name, text in self._labels.items():
            line.setdefault(name, text)
        if has_exception(record):
            line["exception"] = "\n".join(traceback_of(self, record))
        if record.stack_info:
            line["stack"] = "\n".join(shorten_lines(_to_text(record.stack_info)))
        try:
            text = self._encode(line)
        except Exception:  # noqa: BLE001 - a subclass of a type that JSON supports may have any behaviour
            text = self._encode({str(name): _to_text(value) for name, value in line.items()})
        return escape_json(text)

    def _format_time(self, created: float) -> str:
        known, text = self._second
        second = int(created)
        if second != known:
            text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
            self._second = second, text
        microseconds = min(round((created - second) * 1_000_000), 999_999)
        return f"{text}.{microseconds // 1_000:03d}+00:00"


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text: time, level, process, message, and fields.

    A line of smartpipe has the fields that identify the message. Any other line has all fields that its caller added,
    and in a handler those that identify the delivery. Line breaks and control characters are escaped, and long values
    are cut. The lines of a traceback are indented, so that they cannot be mistaken for lines of the log.

    Args:
        coloured: Write colours.
        process: The number of this process under its supervisor.
        prefix: A prefix for each line.
        width: Returns the width of the terminal. With it, the parts of a line are columns, the logger's name among
            them, and the fields that do not fit follow on indented lines, so that no value is broken at the edge.
    """

    event_fields = ("event_type", "event_id", "handler", "attempt", "receive_count")
    other_fields = ("queue", "message_id", "receive_count")
    delivery_fields = (
        "event_type", "event_id", "message_id", "trace_id", "span_id", "handler", "attempt", "receive_count",
    )  # fmt: skip
    hidden_fields = frozenset({"service", "queue", "trace_flags"})
    """Fields of a delivery that its handler implies, or that are for machines."""

    def __init__(
        self, *, coloured: bool, process: int | None = None, prefix: str = "", width: Callable[[], int] | None = None
    ) -> None:
        super().__init__()
        self._coloured = coloured
        self._process = "" if process is None else f"[{process}] "
        self._prefix = prefix
        self._width = width

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the traceback and the stack if there are any."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = escape_text(record.levelname).lower()
        message = f"{self._process}{escape_text(message_of(record))}"
        fields = fields_of(record)
        shown = [
            escape_text(f"{shorten_text(name, FIELD_CHARACTERS)}={_quote(shorten_text(value, FIELD_CHARACTERS))}")
            for name, value in ((name, _to_text(fields[name])) for name in self._names(record, fields))
        ]
        colour = COLOURS.get(record.levelno, "0")
        if self._width is not None:
            line = self._prefix + self._lay_out(time, self._paint(colour, f"{level:<8}"), record.name, message, shown)
        else:
            line = f"{self._prefix}{time} {self._paint(colour, f'{level:<7}')} {message}"
            if shown:
                line += " " + self._paint("2", " ".join(shown))
        below = traceback_of(self, record) if has_exception(record) else []
        if record.stack_info:
            below += shorten_lines(_to_text(record.stack_info))
        return line + "".join(f"\n  {escape_text(text)}" for text in below)

    def _names(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> list[str]:
        """Return the names of the fields to show, in their order. On a terminal, the user's own are the first."""
        if is_own(record):
            names = list(self.event_fields if "event_id" in fields else self.other_fields)
        else:
            hidden = self.hidden_fields if "handler" in fields else frozenset[str]()
            ids = list(self.delivery_fields)
            own = [name for name in fields if name not in self.delivery_fields and name not in hidden]
            names = [*ids, *own] if self._width is None else [*own, *ids]
        if "attempt" in fields and _is_equal(fields["attempt"], fields.get("receive_count")):
            names = [name for name in names if name != "receive_count"]  # it says the same
        return [name for name in names if fields.get(name) is not None]

    def _lay_out(self, time: str, level: str, logger: str, message: str, fields: Sequence[str]) -> str:
        """Return the line in columns, and the fields that do not fit on further lines."""
        width = max(self._width() if self._width is not None else 0, MIN_WIDTH)
        logger = escape_text(shorten_text(logger, FIELD_CHARACTERS))
        if width >= WIDE:
            logger = f"{logger:<{LOGGER_CHARACTERS}}"
        head = f"{self._paint('2', time)} {level} {self._paint('36', logger)} {message}"
        if not fields:
            return head
        used = len(time) + 8 + count_cells(logger) + count_cells(message) + 3
        aligned = len(time) + 8 + LOGGER_CHARACTERS + MESSAGE_CHARACTERS_ALIGNED + 3
        if width >= WIDE and used < aligned:
            head, used = head + " " * (aligned - used), aligned
        indent = " " * (len(time) + 1 if width >= WIDE else 2)
        lines, left = [list[str]()], width - used
        for field in fields:
            cells = count_cells(field) + 1
            if cells > left and (lines[-1] or len(lines) == 1):
                lines.append([])
                left = width - len(indent) + 1
            lines[-1].append(field)
            left -= cells
        first, *others = [self._paint("2", " ".join(line)) if line else "" for line in lines]
        return "".join([f"{head} {first}" if first else head.rstrip(), *(f"\n{indent}{other}" for other in others)])

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
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a record that cannot be formatted is still logged
            message = f"Cannot format a log record: {type(error).__name__}; its message is {_to_text(record.msg):.200}"
            line = self.format(logging.LogRecord(_to_text(record.name), record.levelno, "", 0, message, None, None))
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
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - wrong arguments, or arguments whose __str__ fails
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - an exception's own methods may raise any error
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
    """Return the value of a field as JSON supports it, cut if it is long. Any object has a value, even a broken one."""
    try:
        return _convert_value(value)
    except Exception:  # noqa: BLE001 - a subclass of a type that JSON supports may have any behaviour
        return shorten_text(_to_text(value), FIELD_CHARACTERS)


def _convert_value(value: Any) -> Any:
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
            text = json.dumps(value, default=_to_text, ensure_ascii=False)
            # Infinity and NaN are not JSON, and most parsers would refuse the whole line.
            return (
                json.loads(text, parse_constant=str)
                if len(text) <= NESTED_CHARACTERS
                else shorten_text(text, NESTED_CHARACTERS)
            )
    return shorten_text(_to_text(value), FIELD_CHARACTERS)


def _quote(text: str) -> str:
    """Return *text* in quotes if it contains spaces, so that it is not mistaken for several fields."""
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _is_equal(one: object, other: object) -> bool:
    """Return whether the two are the same number. Other objects may compare in any way, or raise."""
    return type(one) is type(other) is int and one == other


def count_cells(text: str) -> int:
    """Return the number of columns that a terminal takes for *text*."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _to_text(value: object) -> str:
    try:
        return str(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - __str__ may raise any error, and that of a Rust object may panic
        return f"({type(value).__name__} without a text)"


def configure(
    level: str,
    log_format: str,
    *,
    process: int | None = None,
    prefix: str = "",
    resource: ProcessResource = NO_RESOURCE,
) -> None:
    """Send the records of all loggers to standard output. ``auto`` means text on a terminal, and JSON otherwise.

    A thread writes the lines, so that a slow reader does not block the event loop.

    Args:
        process: The number of this process under its supervisor.
        prefix: A prefix for each line of text.
        resource: Where the process runs, for lines of JSON.
    """
    is_text = log_format == "text" or (log_format == "auto" and _is_terminal())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the output of print in a handler appears immediately
    lines = standard_output()
    handler = LineHandler(lines)
    if is_text:
        width = terminal_width if _is_terminal() and not prefix else None  # with a prefix, one of several processes
        handler.setFormatter(TextFormatter(coloured=has_colours(), process=process, prefix=prefix, width=width))
    else:
        handler.setFormatter(JsonFormatter(process, labels=resource.labels, ascii_only=not _is_utf8()))
    lines.describe = handler.describe_dropped
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:  # their debug lines contain credentials and bodies
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    if resource.problem:
        log.warning("%s. Log lines and metrics do not name the task", resource.problem)


def has_colours() -> bool:
    """Return whether standard output has colours: a terminal that has them or FORCE_COLOR, and no NO_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (_is_terminal() and os.environ.get("TERM") not in COLOURLESS)


def terminal_width() -> int:
    """Return the number of columns of the terminal that standard output is, even after it was resized."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (AttributeError, OSError, ValueError):  # standard output was replaced or closed
        columns = 0
    return columns or UNKNOWN_WIDTH  # a terminal may not know its size


def _is_utf8() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name == "utf-8"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
