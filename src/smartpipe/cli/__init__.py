"""The ``smartpipe`` command. Each command imports its modules when it runs, so that ``--help`` is fast."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line. A configuration error prints one line and exits with 2, and other failures exit with 1."""
    from smartpipe.cli.app import app
    from smartpipe.errors import ConfigError, SmartpipeError
    from smartpipe.escaping import escape_text

    _open_closed_streams()
    try:
        app()
    except ConfigError as error:
        for text in error.problems:
            print(f"smartpipe: {escape_text(text)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the final flush fails too
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        print(f"smartpipe: {escape_text(str(error))}", file=sys.stderr)
        sys.exit(2)
    except SmartpipeError as error:
        for line in str(error).splitlines():
            print(f"smartpipe: {escape_text(line)}", file=sys.stderr)
        sys.exit(1)


def _open_closed_streams() -> None:
    """Replace closed standard streams with /dev/null. Otherwise a socket could get their file descriptors."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the process ends
