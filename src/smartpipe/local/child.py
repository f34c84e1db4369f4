"""The process of the local broker: ``python -m smartpipe.local.child BACKEND HOST PORT``.

Only EmbeddedBroker starts it. It ends when its standard input ends, which the operating system closes even if the
parent was killed.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import threading

GRACE_SECONDS = 3.0


def end_with_parent() -> None:
    """Wait for the end of standard input, then stop. SIGTERM comes first, so that the backend can clean up."""
    while os.read(sys.stdin.fileno(), 1024):  # unbuffered: a lock of a buffer would block the interpreter's exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(1)


def main() -> None:
    """Run the backend in this process."""
    backend, host, port = sys.argv[1:]
    threading.Thread(target=end_with_parent, daemon=True).start()
    if backend == "moto":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log a line for each request
        sys.argv = ["moto_server", "-H", host, "-p", port]
        runpy.run_module("moto.server", run_name="__main__")
    else:
        sys.argv = ["ministack"]
        runpy.run_module("ministack", run_name="__main__")


if __name__ == "__main__":
    main()
