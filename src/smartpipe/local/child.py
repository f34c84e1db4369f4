"""The broker's process: ``python -m smartpipe.local.child BACKEND PORT``, started by EmbeddedBroker only.

It ends when standard input does, which the system closes however the parent went.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import threading

GRACE_SECONDS = 3.0
HOST = "127.0.0.1"


def end_with_parent() -> None:
    """Wait for the end of standard input, then stop: politely first, as the backends clean up."""
    while os.read(sys.stdin.fileno(), 1024):  # unbuffered: the interpreter's end must not wait for a buffer's lock
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(1)


def main() -> None:
    """Run the backend in this process."""
    backend, port = sys.argv[1:]
    threading.Thread(target=end_with_parent, daemon=True).start()
    if backend == "moto":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, for as long as it runs
        sys.argv = ["moto_server", "-H", HOST, "-p", port]
        runpy.run_module("moto.server", run_name="__main__")
    else:
        sys.argv = ["ministack"]
        runpy.run_module("ministack", run_name="__main__")


if __name__ == "__main__":
    main()
