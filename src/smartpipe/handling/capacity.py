"""What a process can still take on: counts handler calls that do not end, and notices resources that ran out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

log = logging.getLogger("smartpipe.capacity")

MIN_OVERDUE = 2
"""With a single slot, the worker goes on after one call that hangs."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
QUIET_SECONDS = 60.0
"""A resource that has not run out again for this long counts as available."""
RESTART_AFTER_SECONDS = 30.0
"""A resource that keeps running out for this long fails liveness: a restart frees it."""
NAMES_SHOWN = 5


class Capacity:
    """One for each process, shared by all its queues; a Gate of their pollers.

    A handler call is overdue when it did not end at its timeout: a sync handler's thread was abandoned, or an async
    handler does not end although it was cancelled. Its message has been settled and its slot is free, so that other
    messages are handled. At *limit* overdue calls the process takes on nothing more, until some of them end.

    Args:
        limit: The number of slots of the process; at least 2 calls may be overdue.
    """

    counts_ends = False

    def __init__(self, limit: int) -> None:
        self.full = False
        self.exhausted: str | None = None
        self._limit = max(MIN_OVERDUE, limit)
        self._overdue: dict[Hashable, str] = {}
        self._wakes: list[Callable[[], None]] = []
        self._since = self._last = self._opens_at = -math.inf
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def overdue(self) -> int:
        """The number of overdue calls that still run."""
        return len(self._overdue)

    @property
    def alive(self) -> bool:
        """Whether a restart would not help: calls may begin, and nothing has been exhausted for 30 s."""
        return not self.full and (self.exhausted is None or self._last - self._since < RESTART_AFTER_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether messages are received."""
        return not self.full and self.exhausted is None

    @property
    def reasons(self) -> list[str]:
        """A sentence for each reason not to be ready."""
        reasons = []
        if self.full:
            reasons.append(
                f"{self.overdue} handler calls ran into their timeout and have not ended, {self._limit} are allowed: "
                f"{self._names()}"
            )
        if self.exhausted is not None:
            reasons.append(f"this process has run out of {self.exhausted}")
        return reasons

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have *wake* called whenever messages may be received again."""
        self._wakes.append(wake)

    def add(self, call: Hashable, handler: str) -> None:
        """Take note that *call*, of this handler, is overdue. Call it in the event loop."""
        self._overdue[call] = handler
        if not self.full and self.overdue >= self._limit:
            self.full = True
            log.error(
                "Receiving no more messages: %s. /livez fails, so that a restart frees them; if enough of them end, "
                "receiving goes on",
                self.reasons[0],
            )

    def remove(self, call: Hashable) -> bool:
        """Take note that *call* has ended after all; return whether it was overdue. Call it in the event loop."""
        was_overdue = self._overdue.pop(call, None) is not None
        if self.full and self.overdue < self._limit:
            self.full = False
            log.info("Receiving messages again: %d overdue handler calls are left", self.overdue)
            self._wake()
        return was_overdue

    def ran_out(self, resource: str) -> None:
        """Take note that *resource* ran out: receive nothing for a second, or longer each time, up to 30 s."""
        now = asyncio.get_running_loop().time()
        if now - self._last > QUIET_SECONDS:
            self.exhausted, self._pause = None, FIRST_PAUSE_SECONDS
        if self.exhausted is None:
            self._since = now
            log.error(
                "This process has run out of %s: messages are deferred, none is dead-lettered, and fewer are received",
                resource,
            )
        self.exhausted, self._last = resource, now
        if now >= self._opens_at:
            self._opens_at = now + self._pause
            self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)

    def succeeded(self) -> None:
        """Take note that a handler returned, while a resource counts as exhausted."""
        if asyncio.get_running_loop().time() >= self._opens_at:
            self._recover()

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received: one, as a probe, after a resource ran out."""
        if self.full:
            return 0
        if self.exhausted is None:
            return wanted
        now = asyncio.get_running_loop().time()
        if now < self._opens_at:
            return 0
        if now - self._last > QUIET_SECONDS:
            self._recover()
            return wanted
        return min(1, wanted)

    def polled(self, admitted: int, received: int) -> None:
        """Do nothing: what a poll brings is counted elsewhere."""

    def ended(self, count: int) -> None:
        """Do nothing: the end of an overdue call is reported to ``remove``."""

    def seconds_until_open(self) -> float | None:
        """Return when a probe is due; None while overdue calls hold polls back: `remove` wakes the pollers."""
        return None if self.full else max(0.0, self._opens_at - asyncio.get_running_loop().time())

    def _recover(self) -> None:
        log.info("This process no longer runs out of %s: receiving as before", self.exhausted)
        self.exhausted = None
        self._wake()

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def _names(self) -> str:
        counts = Counter(self._overdue.values()).most_common()
        more = f" and {len(counts) - NAMES_SHOWN} more handlers" if len(counts) > NAMES_SHOWN else ""
        return ", ".join(f"{name} ({count})" for name, count in counts[:NAMES_SHOWN]) + more
