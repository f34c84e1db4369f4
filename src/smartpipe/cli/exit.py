"""End a command: print its error, choose the exit code, and tolerate standard streams that are closed or full."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from smartpipe.errors import ConfigError, SmartpipeError
from smartpipe.escaping import escape_json, escape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ErrorFormat: TypeAlias = Literal["text", "json", "log"]

LOGGING_COMMANDS = ("worker", "relay")
LOG_FORMAT = "--log-format"
READER_GONE = 128 + signal.SIGPIPE
"""The exit code that a shell reports for a process that SIGPIPE has ended."""
INTERRUPTED = 128 + signal.SIGINT


def run_to_exit_code(command: Callable[[], object]) -> int:
    """Run *command*, print the error that ends it, and return the exit code.

    The code is 2 for a configuration error, a wrong command line, and an output that cannot be written. It is 141 if
    the reader of the output has closed the pipe, and 1 for other failures. An unexpected error prints its traceback.
    """
    try:
        code = _run(command)
        sys.stdout.flush()
    except BrokenPipeError:
        code = READER_GONE
    except OSError as error:
        is_full = error.errno == errno.ENOSPC and error.filename is None
        code = _print_errors([f"the output cannot be written: {error.strerror}" if is_full else str(error)], 2)
    _discard_unwritten_output()
    return code


def _run(command: Callable[[], object]) -> int:
    try:
        result = command()
    except ConfigError as error:
        return _print_errors(error.problems, 2)
    except SmartpipeError as error:
        return _print_errors(str(error).splitlines(), 1)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer ends with 1 then, which is `plan`'s code for changes
            return READER_GONE
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a command line that is wrong, or an internal error
        if hasattr(error, "format_message"):  # a wrong command line: typer's UsageError and its siblings
            return _print_usage_error(error)
        if _error_format(sys.argv[1:], os.environ) == "text":
            traceback.print_exc()
            return 1
        return _print_errors([f"internal error: {type(error).__name__}: {error}"], 1, traceback.format_exc())
    return result if isinstance(result, int) else 0


def _print_usage_error(error: Any) -> int:
    code = int(error.exit_code)
    if _error_format(sys.argv[1:], os.environ) == "text":
        error.show()
        return code
    return _print_errors([error.format_message()], code)


def _print_errors(texts: Sequence[str], code: int, details: str | None = None) -> int:
    """Print *texts* to standard error, each on one line, and return *code*.

    With ``--json`` they are one JSON object. If the log is JSON, each is a record of the log.

    Args:
        details: A traceback.
    """
    form = _error_format(sys.argv[1:], os.environ)
    if form == "log":
        lines = [_format_record(text, details) for text in texts]
    elif form == "json":
        fields = {"errors": list(texts), "exit_code": code, **({"traceback": details} if details else {})}
        lines = [escape_json(json.dumps(fields, ensure_ascii=False))]
    else:
        lines = [f"smartpipe: {escape_text(text)}" for text in texts]
    with suppress(OSError):  # standard error is full, or its reader is gone; the exit code still reports the failure
        for line in lines:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    return code


def _format_record(text: str, details: str | None) -> str:
    import logging

    from smartpipe.cli.logs import JsonFormatter

    record = logging.LogRecord("smartpipe.worker", logging.CRITICAL, "", 0, text, None, None)
    if details:
        record.__dict__["fields"] = {"exception": details.splitlines()}
    return JsonFormatter().format(record)


def _error_format(arguments: Sequence[str], environment: Mapping[str, str]) -> ErrorFormat:
    """Return the format that the user has asked for: JSON if the output, or the log, of the command is JSON.

    It is found without typer, because the command line itself may be wrong. ``SMARTPIPE_LOG_FORMAT=auto`` does not
    count: it concerns standard output, and errors go to standard error, which people read.
    """
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if "--json" in words:
        return "json"
    if not words or words[0] not in LOGGING_COMMANDS:
        return "text"
    value = environment.get("SMARTPIPE_LOG_FORMAT", "")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == LOG_FORMAT:
            value = following
        elif word.startswith(f"{LOG_FORMAT}="):
            value = word.removeprefix(f"{LOG_FORMAT}=")
    return "log" if value.strip().lower() == "json" else "text"


def end_on_signals_as_pid_1() -> None:
    """Let signals end this process if it is PID 1, as in a container, until the command has handlers of its own.

    The kernel ignores a signal whose effect is the default one if it is for PID 1. So a worker that is told to stop
    while it imports its service would start nevertheless, and be killed later, while it handles messages.
    """
    if os.getpid() != 1:
        return
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # Python itself handles SIGINT
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, lambda number, _: os._exit(128 + number))


def open_closed_streams() -> None:
    """Open /dev/null in place of closed standard streams, also for child processes.

    Otherwise, the next file or socket would get the number of the stream, and would receive what is printed.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - open until the process ends


def _discard_unwritten_output() -> None:
    """Let output that could not be written go to /dev/null. The interpreter would try again, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
