"""The ``smartpipe`` command. Commands import what they need when they run: ``--help`` stays quick."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2, other failures in 1."""
    from smartpipe.cli.app import app
    from smartpipe.errors import ConfigError, SmartpipeError
    from smartpipe.escaping import escape_text

    _open_closed_streams()
    try:
        app()
    except ConfigError as error:
        for problem in error.problems:
            print(f"smartpipe: {escape_text(problem)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lest the interpreter's last flush fail too
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        print(f"smartpipe: {escape_text(str(error))}", file=sys.stderr)
        sys.exit(2)
    except SmartpipeError as error:
        for line in str(error).splitlines():
            print(f"smartpipe: {escape_text(line)}", file=sys.stderr)
        sys.exit(1)


def _open_closed_streams() -> None:
    """Open standard output and error to nowhere if the caller has closed them: sockets would take their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - as long as the process
