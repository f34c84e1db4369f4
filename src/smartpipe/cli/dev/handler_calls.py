"""Show handler calls to a developer: a line for each handled event, and the place where a handler failed.

The log of a production process has neither. There, the lines of handled events have level debug, which costs nothing
while it is off, and a traceback is logged only when a message is dead-lettered.
"""

from __future__ import annotations

import logging
import sysconfig
from collections import OrderedDict
from copy import copy
from pathlib import Path
from traceback import StackSummary, TracebackException
from typing import TYPE_CHECKING, Any

import smartpipe
from smartpipe.cli.logs import TextFormatter
from smartpipe.errors import Retry
from smartpipe.escaping import escape_text, shorten_text
from smartpipe.log_fields import fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = "smartpipe.consumer"
HANDLED, IGNORED = "Handled", "Ignored"
FAILURES = ("Handler failed", "Dead-lettered", "Group ")
"""The beginnings of lines about failures of handlers. An internal error keeps its whole traceback."""
MAX_REMEMBERED = 1_000
MAX_LINE_CHARACTERS = 2_048
LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PACKAGE = f"{Path(smartpipe.__file__).parent}/"


def show_handler_calls() -> None:
    """Show handler calls in this process, if its log is text of level info.

    At level debug, the log has all of it already. At higher levels, the user does not want it.
    """
    root = logging.getLogger()
    formatters = [handler.formatter for handler in root.handlers]
    if root.level != logging.INFO or not any(isinstance(formatter, TextFormatter) for formatter in formatters):
        return
    for handler in root.handlers:
        if isinstance(handler.formatter, TextFormatter):
            handler.setFormatter(HandlerCallFormatter(handler.formatter))
    logging.getLogger(LOGGER).setLevel(logging.DEBUG)  # the consumer attaches tracebacks at this level only


class HandlerCallFormatter(logging.Formatter):
    """Formats handled events as short lines of level info, and failures with the user's part of the traceback.

    A traceback is left out if the previous failure of the same message had the same one.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner
        self._tracebacks: OrderedDict[str, list[str]] = OrderedDict()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, followed by the lines of the traceback."""
        if record.name != LOGGER:
            return self._inner.format(record)
        fields = fields_of(record)
        if record.levelno == logging.DEBUG and record.msg in (HANDLED, IGNORED):
            return self._inner.format(_as_short_line(record, fields))
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not str(record.msg).startswith(FAILURES):
            return self._inner.format(record)
        plain = copy(record)
        plain.exc_info = plain.exc_text = None
        asked = isinstance(error, Retry) and error.__cause__ is None  # the handler asked for it: there is no error
        lines = [] if asked else list(format_user_frames(error))
        if not self._is_new(str(fields.get("message_id")), lines):
            lines = []
        return self._inner.format(plain) + "".join(
            f"\n  {escape_text(shorten_text(line, MAX_LINE_CHARACTERS))}" for line in lines
        )

    def _is_new(self, message_id: str, lines: list[str]) -> bool:
        known = self._tracebacks.pop(message_id, None)
        self._tracebacks[message_id] = lines
        if len(self._tracebacks) > MAX_REMEMBERED:
            self._tracebacks.popitem(last=False)
        return lines != known


def _as_short_line(record: logging.LogRecord, fields: Any) -> logging.LogRecord:
    """Return the record with its type, handler and duration in the message, and without the fields at the end."""
    line = copy(record)
    line.levelno, line.levelname = logging.INFO, "INFO"
    handler = f" by {fields['handler']}" if fields.get("handler") else ""
    seconds = fields.get("seconds")
    duration = f" in {seconds * 1_000:,.0f} ms" if isinstance(seconds, float) else ""
    receives = fields.get("receive_count", 1)
    attempt = f", receive {receives}" if receives != 1 else ""
    line.msg = f"{str(record.msg).lower()} {fields.get('event_type')}{handler}{duration}{attempt}"
    line.args = None
    line.__dict__["fields"] = {}
    return line


def format_user_frames(error: BaseException) -> Iterator[str]:
    """Yield the lines of the traceback, with only the frames in the user's code, and the last frame of each stack.

    The frames of smartpipe, of the standard library and of installed packages are left out, except for the last one,
    where the exception was raised.
    """
    summary = TracebackException.from_exception(error, compact=True)
    _keep_user_frames(summary)
    for text in summary.format():
        yield from text.rstrip("\n").split("\n")


def _keep_user_frames(summary: TracebackException) -> None:
    outside = [frame for frame in summary.stack if not frame.filename.startswith(PACKAGE)]
    kept = [frame for frame in outside if not frame.filename.startswith((*LIBRARIES, "<frozen"))]
    if outside and outside[-1] not in kept:
        kept.append(outside[-1])
    summary.stack = StackSummary.from_list(kept)
    for inner in (summary.__cause__, summary.__context__, *(summary.exceptions or ())):
        if inner is not None:
            _keep_user_frames(inner)  # this ends: a summary leaves out causes that it has had
