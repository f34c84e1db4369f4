"""Logs as a stream of events on standard output (12-factor, XI): JSON lines, or text for people."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
NOISY = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3", "watchfiles")


class JsonLines(logging.Formatter):
    """One JSON object a line; a record's ``fields`` stand beside time, level, logger, process and message."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class Text(logging.Formatter):
    """A line for people: time, level, process, message, then the fields that tell messages apart."""

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
        fields: dict[str, Any] = getattr(record, "fields", {})
        names = self.shown if "event_id" in fields else self.shown_without_event
        rest = " ".join(f"{name}={fields[name]}" for name in names if fields.get(name) is not None)
        level = self._paint(COLOURS.get(record.levelno, "0"), f"{record.levelname.lower():<7}")
        line = f"{self._prefix}{moment} {level} {self._process}{record.getMessage()}"
        if rest:
            line += " " + self._paint("2", rest)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


def configure(level: str, log_format: str, *, process: int | None = None, prefix: str = "") -> None:
    """Send every logger's records to standard output; ``auto`` is text on a terminal and JSON elsewhere.

    Args:
        process: The number of this process among those of a supervisor.
        prefix: Goes before each line of text.
    """
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what handlers print appears when they print it
    handler = logging.StreamHandler(sys.stdout)
    formatter = Text(coloured=has_colours(), process=process, prefix=prefix) if text else JsonLines(process)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:  # their debug lines hold credentials and bodies
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def has_colours() -> bool:
    """Return whether standard output shows them: a terminal, or what FORCE_COLOR calls one, without NO_COLOR."""
    return not os.environ.get("NO_COLOR") and bool(os.environ.get("FORCE_COLOR") or sys.stdout.isatty())
