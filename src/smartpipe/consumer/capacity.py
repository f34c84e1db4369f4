"""The capacity of a process: counts handler calls that do not end, and notices resources that ran out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from concurrent.futures import Future

log = logging.getLogger("smartpipe.capacity")

MIN_OVERDUE = 2
"""With a single slot, the worker goes on after one call that hangs."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
QUIET_SECONDS = 60.0
"""A resource that has not run out again for this long counts as available."""
RESTART_AFTER_SECONDS = 30.0
"""A resource that keeps running out for this long fails liveness: a restart frees it."""
LOG_EVERY_SECONDS = 60.0
"""Calls that end late all the time would otherwise be logged over and over."""
NAMES_SHOWN = 5


class Capacity:
    """One for each process, shared by all its queues, whose polls its gates hold back.

    A handler call is overdue when it did not end at its timeout: a sync handler's thread was abandoned, or an async
    handler does not end although it was cancelled. Its message has been settled and its slot is free, so that other
    messages are handled. At *limit* overdue calls the process takes on nothing more, until some of them end.

    A resource that runs out leaves the process under strain. Polls stop for 1 s, or for up to 30 s while no handler
    succeeds; then each queue has one message out. Each success lets one more message out, and the next
    shortage halves that number, as TCP does with its window (RFC 5681).

    Args:
        limit: The number of slots of the process; at least 2 calls may be overdue.
    """

    def __init__(self, limit: int) -> None:
        self.full = False
        self.strained = False
        self._gates: list[CapacityGate] = []
        self.exhausted: str | None = None
        self._limit = max(MIN_OVERDUE, limit)
        self._overdue: dict[Hashable, str] = {}
        self._wakes: list[Callable[[], None]] = []
        self._window = 1
        self.strains = 0
        self._since = self._last = self._opens_at = -math.inf
        self._pause = FIRST_PAUSE_SECONDS
        self._filled_at = -math.inf
        self._quietly = False

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

    def on_open(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when messages may be received again."""
        self._wakes.append(wake)

    def add(self, call: Hashable, handler: str) -> None:
        """Take note that *call*, of this handler, is overdue. Call it in the event loop."""
        self._overdue[call] = handler
        if not self.full and self.overdue >= self._limit:
            self.full = True
            self._set_gates()
            now = asyncio.get_running_loop().time()
            self._quietly = now - self._filled_at < LOG_EVERY_SECONDS
            if not self._quietly:
                self._filled_at = now
            log.log(
                logging.DEBUG if self._quietly else logging.ERROR,
                "Receiving no more messages: %s. /livez fails, so that a restart frees them; if enough of them end, "
                "receiving goes on",
                self.reasons[0],
            )

    def abandon(self, future: Future[Any], handler: str) -> None:
        """Take note that a function in a thread is overdue, until its *future* is done. Call it in the event loop."""
        loop = asyncio.get_running_loop()

        def ended(_: Future[Any]) -> None:  # in its thread
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.remove, future)

        self.add(future, handler)
        future.add_done_callback(ended)

    def remove(self, call: Hashable) -> bool:
        """Take note that *call* has ended after all; return whether it was overdue. Call it in the event loop."""
        was_overdue = self._overdue.pop(call, None) is not None
        if self.full and self.overdue < self._limit:
            self.full = False
            self._set_gates()
            level = logging.DEBUG if self._quietly else logging.INFO
            log.log(level, "Receiving messages again: %d overdue handler calls are left", self.overdue)
            self._wake()
        return was_overdue

    def ran_out(self, resource: str) -> None:
        """Take note that *resource* ran out."""
        now = asyncio.get_running_loop().time()
        if now - self._last > QUIET_SECONDS:
            self._recover()
        if not self.strained:
            self.strained, self._window = True, 1
            self._set_gates()
            self.strains += 1
            self._pause = FIRST_PAUSE_SECONDS
            log.error(
                "This process has run out of %s: messages are deferred, none is dead-lettered, and fewer are received",
                resource,
            )
        if self.exhausted is None:
            self._since = now
        self.exhausted, self._last = resource, now
        if now >= self._opens_at:  # else of another message in the same moment
            self._opens_at = now + self._pause
            self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
            self._window = max(1, self._window // 2)

    def succeeded(self) -> None:
        """Take note that a handler returned, while the process is under strain."""
        if asyncio.get_running_loop().time() < self._opens_at:
            return  # it may have begun before, and have had the resource all the time
        self.exhausted, self._pause = None, FIRST_PAUSE_SECONDS
        self._window += 1
        if self._window > self._limit:
            self._recover()

    def gate(self) -> CapacityGate:
        """Return a gate for the slots of one queue."""
        gate = CapacityGate(self)
        self._gates.append(gate)
        return gate

    @property
    def passive(self) -> bool:
        """Whether messages are received without a limit."""
        return not self.full and not self.strained

    def allowed(self) -> int | None:
        """Return how many messages each queue may have out, or None without a bound."""
        if self.full:
            return 0
        if not self.strained:
            return None
        now = asyncio.get_running_loop().time()
        if now - self._last > QUIET_SECONDS:
            self._recover()
            return None
        return 0 if now < self._opens_at else self._window

    def seconds_until_open(self) -> float | None:
        """Return when the pause ends; None while nothing but the end of a message or of an overdue call helps."""
        seconds = self._opens_at - asyncio.get_running_loop().time()
        return seconds if seconds > 0 and not self.full else None

    def _recover(self) -> None:
        if self.strained:
            log.info("This process has its resources again: receiving as before")
            self.strained, self.exhausted = False, None
            self._set_gates()
            self._wake()

    def _set_gates(self) -> None:
        for gate in self._gates:
            gate.passive = self.passive

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def _names(self) -> str:
        counts = Counter(self._overdue.values()).most_common()
        more = f" and {len(counts) - NAMES_SHOWN} more handlers" if len(counts) > NAMES_SHOWN else ""
        return ", ".join(f"{name} ({count})" for name, count in counts[:NAMES_SHOWN]) + more


class CapacityGate:
    """A Gate of one queue's poller: counts the messages that the queue has out while the process is under strain."""

    def __init__(self, capacity: Capacity) -> None:
        self.passive = capacity.passive
        self._capacity = capacity
        self._strain = 0
        self._out = 0

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received."""
        allowed = self._capacity.allowed()
        if allowed is None:
            return wanted
        if self._strain != self._capacity.strains:
            self._strain, self._out = self._capacity.strains, 0
        admitted = max(0, min(wanted, allowed - self._out))
        self._out += admitted
        return admitted

    def polled(self, admitted: int, received: int) -> None:
        """Take note that a poll for *admitted* messages has ended and brought *received*."""
        if self._out:
            self._out = max(0, self._out - (admitted - received))

    def ended(self, count: int) -> None:
        """Take note that *count* messages have been settled."""
        if self._out:
            self._out = max(0, self._out - count)

    def seconds_until_open(self) -> float | None:
        """Return when the pause after a shortage ends, or None while receive calls wait for something else."""
        return self._capacity.seconds_until_open()

    def on_open(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when messages may be received again."""
        self._capacity.on_open(wake)
