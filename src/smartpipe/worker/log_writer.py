"""Write log lines from a thread, so that a slow or closed reader does not block the event loop.

logging.handlers.QueueHandler and QueueListener lack three features: a limit above which lines are dropped and counted,
a limited wait at the end, and support for forked processes.
"""

from __future__ import annotations

import os
import select
import sys
import time
import weakref
from queue import Empty, SimpleQueue
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Protocol, TypeAlias

from smartpipe.telemetry.families import Family, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_PENDING_CHARACTERS = 4_194_304
"""About ten thousand lines: more than any burst, and little memory."""
MAX_WRITE_BYTES = 4_096
"""Linux's PIPE_BUF: a pipe does not mix a write of this size with those of other processes (pipe(7))."""
FLUSH_SECONDS = 2.0
STALLED_SECONDS = 0.5
CHECK_SECONDS = 0.02

_Item: TypeAlias = "str | Event"


class Lines(Protocol):
    """A destination for whole lines."""

    dropped: int
    describe: Callable[[int], str]

    def write(self, line: str) -> object:
        """Write one line, which ends with a newline. Does not block."""

    def flush(self) -> None:
        """Wait for a limited time until the lines are written."""


class LineWriter:
    """Writes lines to a duplicate of a file descriptor, in order.

    It drops and counts lines if more than 4 million characters are pending. It also counts lines that it cannot write,
    because the disk is full or the reader has closed the pipe. After a fork, the child process writes without a thread.
    SIGKILL and ``os._exit`` lose pending lines.

    Args:
        describe: Returns a line about the number of dropped lines. It is written as soon as writing works again.
    """

    def __init__(
        self, fd: int, *, encoding: str = "utf-8", describe: Callable[[int], str] = "{} lines dropped\n".format
    ) -> None:
        self.dropped = 0
        self.describe = describe
        self._fd = os.dup(fd)
        self._encoding = encoding
        self._lock = RLock()  # a signal handler may write a line while another line is written
        self._lines: SimpleQueue[_Item] = SimpleQueue()
        self._next: _Item | None = None
        self._put = self._dequeued = 0  # characters
        self._reported = 0  # dropped lines
        self._thread: Thread | None = None
        reset = weakref.WeakMethod(self._reset_after_fork)
        os.register_at_fork(after_in_child=lambda: (method := reset()) and method())
        try:
            self._thread = Thread(target=self._work, name="smartpipe-log", daemon=True)
            self._thread.start()
        except RuntimeError:  # no thread can be started: write in the calling thread
            self._thread = None

    def write(self, line: str) -> None:
        """Queue *line*, which ends with a newline, for the thread."""
        if self._thread is None:
            self._write([self._encode(line)])
            return
        size = len(line)
        with self._lock:
            if self._put - self._dequeued + size > MAX_PENDING_CHARACTERS:
                self.dropped += 1
                return
            self._put += size
            self._lines.put(line)

    def flush(self) -> None:
        """Wait until all lines are written: at most 2 s, and at most 0.5 s without progress."""
        if self._thread is None:
            return
        written = Event()
        self._lines.put(written)
        now = time.monotonic()
        until, characters, moved_at = now + FLUSH_SECONDS, self._dequeued, now
        while not written.wait(CHECK_SECONDS) and (now := time.monotonic()) < min(until, moved_at + STALLED_SECONDS):
            if self._dequeued != characters:
                characters, moved_at = self._dequeued, now

    def _work(self) -> None:
        while True:
            try:
                self._write_next()
            except MemoryError:  # the thread must not end, because without it the process has no log
                self.dropped += 1

    def _write_next(self) -> None:
        """Wait for a line, and write it together with the following lines that fit into one write."""
        item, self._next = self._next or self._lines.get(), None
        if isinstance(item, Event):
            item.set()
            return
        batch, characters = [self._encode(item)], len(item)
        size = len(batch[0])
        try:
            while True:
                item = self._lines.get_nowait()
                data = b"" if isinstance(item, Event) else self._encode(item)
                size += len(data)
                if isinstance(item, Event) or size > MAX_WRITE_BYTES:
                    self._next = item
                    break
                batch.append(data)
                characters += len(item)
        except Empty:
            pass
        finally:
            self._dequeued += characters
        self._write(batch)
        if self.dropped != self._reported and self._put - self._dequeued < MAX_PENDING_CHARACTERS // 2:
            count = self.dropped - self._reported
            if self._write([self._encode(self.describe(count))], counted=False):
                self._reported += count

    def _encode(self, line: str) -> bytes:
        return line.encode(self._encoding, "backslashreplace")

    def _write(self, lines: list[bytes], *, counted: bool = True) -> bool:
        """Write all lines, without a time limit. Return whether that succeeded."""
        data = memoryview(b"".join(lines))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # another process has made the descriptor non-blocking
                writable = select.poll()
                writable.register(self._fd, select.POLLOUT)
                writable.poll()
            except OSError:  # the reader has closed the pipe, or the disk is full
                self.dropped += len(lines) if counted else 0
                return False
        return True

    def _reset_after_fork(self) -> None:
        """Continue in a forked process, where only the forking thread exists: write without a thread."""
        self._thread = None
        self._lock = RLock()
        self._lines = SimpleQueue()
        self._next = None


class StreamLines:
    """Writes to standard output when it has no file descriptor, as in tests, or is closed."""

    def __init__(self) -> None:
        self.dropped = 0
        self.describe: Callable[[int], str] = str

    def write(self, line: str) -> None:
        """Write *line* now."""
        if sys.stdout is not None:
            sys.stdout.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        if sys.stdout is not None:
            sys.stdout.flush()


_standard_output: Lines | None = None


def standard_output() -> Lines:
    """Return the only writer to this process's standard output, so that lines stay in order."""
    global _standard_output  # noqa: PLW0603 - there is one standard output
    if _standard_output is None:
        try:
            _standard_output = LineWriter(sys.stdout.fileno(), encoding=sys.stdout.encoding)
        except (AttributeError, OSError, ValueError):  # standard output is closed, or a test has replaced it
            return StreamLines()
    return _standard_output


def family_of_dropped_lines(labels: Mapping[str, str]) -> Family:
    """Return the number of lines that standard output did not accept."""
    dropped = 0 if _standard_output is None else _standard_output.dropped
    return Family(
        "smartpipe_log_lines_dropped_total",
        "counter",
        "Log lines dropped because standard output did not accept them in time.",
        [Sample(labels, dropped)],
    )
