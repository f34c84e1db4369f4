"""Run a command in a pseudo-terminal, read its output and type into it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from threading import Thread
from typing import TYPE_CHECKING

from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from pathlib import Path

# The terminal becomes the controlling terminal, so that Ctrl-C sends SIGINT to its foreground processes.
IN_ITS_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "smartpipe", *sys.argv[1:]])
"""


class Terminal:
    """Runs a command of smartpipe until Ctrl-C."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._screen = b""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", IN_ITS_TERMINAL, *arguments],
            cwd=directory,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines(self) -> list[str]:
        return self._screen.decode().replace("\r\n", "\n").splitlines()

    def wait_for(self, text: str, count: int = 1) -> None:
        def is_visible() -> bool:
            ended = self._process.poll() is not None
            found = sum(text in line for line in self.lines) >= count
            assert found or not ended, "the process ended unexpectedly:\n" + "\n".join(self.lines)
            return found

        until_blocking(is_visible)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self) -> int:
        code = self._process.wait(DEADLINE_SECONDS)
        self._reader.join()
        return code

    def end(self) -> None:
        """Kill the process if it still runs, at the end of a test."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._master, 65_536)
            except OSError:  # on Linux, the other side is closed
                return
            if not chunk:
                return
            self._screen += chunk
