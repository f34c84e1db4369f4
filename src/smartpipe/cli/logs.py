"""Logs as a stream of events on standard output (12-factor, XI): JSON lines, or text for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
NOISY = ("aiobotocore", "aiohttp", "asyncio", "botocore", "urllib3")


class JsonLines(logging.Formatter):
    """One JSON object a line; a record's ``fields`` stand beside time, level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class Text(logging.Formatter):
    """A line for people: time, level, message, then the fields that tell messages apart."""

    shown = ("event_type", "event_id", "handler", "receive_count")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below where there is one."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        colour = COLOURS.get(record.levelno, "0")
        fields: dict[str, Any] = getattr(record, "fields", {})
        rest = " ".join(f"{name}={fields[name]}" for name in self.shown if fields.get(name) is not None)
        line = f"{moment} \x1b[{colour}m{record.levelname.lower():<7}\x1b[0m {record.getMessage()}"
        if rest:
            line += f" \x1b[2m{rest}\x1b[0m"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(level: str, log_format: str) -> None:
    """Send every logger's records to standard output; ``auto`` is text on a terminal and JSON elsewhere."""
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Text() if text else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:  # their debug lines hold credentials and bodies
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
