"""The ``smartpipe`` command. Each command imports its modules when it runs, so that ``--help`` is fast."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. A configuration error prints one line and exits with 2, and other failures exit with 1."""
    from smartpipe.cli.exit import end_on_signals_as_pid_1, open_closed_streams, run_to_exit_code

    end_on_signals_as_pid_1()
    open_closed_streams()  # first: the next file that is opened would get the number of a closed stream
    from smartpipe.cli.app import app

    sys.exit(run_to_exit_code(lambda: app(standalone_mode=False)))
