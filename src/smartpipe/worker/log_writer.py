"""Writes lines from a thread, so that a reader that is slow or gone never stops the event loop.

logging.handlers.QueueHandler and QueueListener lack three things: a bound beyond which lines are dropped and counted,
a wait at the end that is bounded too, and a way to go on in a forked process.
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

from smartpipe.worker.metrics import Family, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_PENDING_CHARACTERS = 4_194_304
"""Some ten thousand lines: more than any burst, and little memory."""
MAX_WRITE_BYTES = 4_096
"""Linux's PIPE_BUF: a pipe does not mix a write of this size with those of other processes (pipe(7))."""
FLUSH_SECONDS = 2.0
STALLED_SECONDS = 0.5
LOOK_SECONDS = 0.02

_Item: TypeAlias = "str | Event"


class Lines(Protocol):
    """Where whole lines go."""

    dropped: int
    describe: Callable[[int], str]

    def write(self, line: str) -> object:
        """Take one line with its end. Does not block."""

    def flush(self) -> None:
        """Wait, for a bounded time, until the lines are written."""


class LineWriter:
    """Writes to a duplicate of a file descriptor, in order. Beyond 4 million characters, lines are dropped and counted.

    So are lines that cannot be written, because a disk is full or the reader has gone. After a fork the child process
    writes without a thread. Pending lines are lost by SIGKILL and ``os._exit``.

    Args:
        describe: Makes a line of the number of lines dropped, which is written as soon as writing works again.
    """

    def __init__(
        self, fd: int, *, encoding: str = "utf-8", describe: Callable[[int], str] = "{} lines dropped\n".format
    ) -> None:
        self.dropped = 0
        self.describe = describe
        self._fd = os.dup(fd)
        self._encoding = encoding
        self._lock = RLock()  # a signal handler may write a line in the middle of another
        self._lines: SimpleQueue[_Item] = SimpleQueue()
        self._held: _Item | None = None
        self._put = self._taken = self._reported = 0
        self._thread: Thread | None = None
        forked = weakref.WeakMethod(self._forked)
        os.register_at_fork(after_in_child=lambda: (method := forked()) and method())
        try:
            self._thread = Thread(target=self._work, name="smartpipe-log", daemon=True)
            self._thread.start()
        except RuntimeError:  # no thread can be started: lines are written all the same
            self._thread = None

    def write(self, line: str) -> None:
        """Have *line*, which ends with a newline, written soon."""
        if self._thread is None:
            self._write([self._encoded(line)])
            return
        size = len(line)
        with self._lock:
            if self._put - self._taken + size > MAX_PENDING_CHARACTERS:
                self.dropped += 1
                return
            self._put += size
            self._lines.put(line)

    def flush(self) -> None:
        """Wait until all is written: while it goes on for at most 2 s, and half a second when it does not."""
        if self._thread is None:
            return
        written = Event()
        self._lines.put(written)
        now = time.monotonic()
        until, taken, moved_at = now + FLUSH_SECONDS, self._taken, now
        while not written.wait(LOOK_SECONDS) and (now := time.monotonic()) < min(until, moved_at + STALLED_SECONDS):
            if self._taken != taken:
                taken, moved_at = self._taken, now

    def _work(self) -> None:
        while True:
            try:
                self._write_next()
            except MemoryError:  # without this thread there would be no log any more
                self.dropped += 1

    def _write_next(self) -> None:
        """Wait for a line, and write it with those behind it that fit into one write."""
        item, self._held = self._held or self._lines.get(), None
        if isinstance(item, Event):
            item.set()
            return
        batch, characters = [self._encoded(item)], len(item)
        size = len(batch[0])
        try:
            while True:
                item = self._lines.get_nowait()
                data = b"" if isinstance(item, Event) else self._encoded(item)
                size += len(data)
                if isinstance(item, Event) or size > MAX_WRITE_BYTES:
                    self._held = item
                    break
                batch.append(data)
                characters += len(item)
        except Empty:
            pass
        finally:
            self._taken += characters
        self._write(batch)
        if self.dropped != self._reported and self._put - self._taken < MAX_PENDING_CHARACTERS // 2:
            count = self.dropped - self._reported
            if self._write([self._encoded(self.describe(count))], counted=False):
                self._reported += count

    def _encoded(self, line: str) -> bytes:
        return line.encode(self._encoding, "backslashreplace")

    def _write(self, lines: list[bytes], *, counted: bool = True) -> bool:
        """Write all of it, however long that takes; return whether it could be written."""
        data = memoryview(b"".join(lines))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # another process has made it non-blocking
                writable = select.poll()
                writable.register(self._fd, select.POLLOUT)
                writable.poll()
            except OSError:  # the reader has gone, or the disk is full
                self.dropped += len(lines) if counted else 0
                return False
        return True

    def _forked(self) -> None:
        """Go on in a child process, which has no thread but the one that forked."""
        self._thread = None
        self._lock = RLock()
        self._lines = SimpleQueue()
        self._held = None


class StreamLines:
    """Writes to a stream that has no file descriptor, as tests have, or to none."""

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
    """Return the one writer to this process's standard output, so that its lines keep their order."""
    global _standard_output  # noqa: PLW0603 - there is one standard output
    if _standard_output is None:
        try:
            _standard_output = LineWriter(sys.stdout.fileno(), encoding=sys.stdout.encoding)
        except (AttributeError, OSError, ValueError):  # it is closed, or a stream of a test
            return StreamLines()
    return _standard_output


def family_of_dropped_lines(labels: Mapping[str, str]) -> Family:
    """Return the number of lines that standard output did not take."""
    dropped = 0 if _standard_output is None else _standard_output.dropped
    return Family(
        "smartpipe_log_lines_dropped_total",
        "counter",
        "Lines that standard output did not take in time.",
        [Sample(labels, dropped)],
    )
