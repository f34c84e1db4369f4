"""The capacity of a process: tracks handler calls that do not end, and resources that have run out."""

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
"""With a single slot, the worker continues after one call that hangs."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
QUIET_SECONDS = 60.0
"""A resource that has not run out again for this long counts as available."""
RESTART_AFTER_SECONDS = 30.0
"""If a resource keeps running out for this long, liveness fails, because a restart frees it."""
LOG_EVERY_SECONDS = 60.0
"""Calls that keep ending late would otherwise be logged over and over."""
MAX_NAMES = 5


class Capacity:
    """The capacity of one process, shared by all its queues. Its gates hold their receive calls back.

    A handler call is overdue if it did not end at its timeout: a sync handler's thread was abandoned, or an async
    handler does not end although it was cancelled. Its message has been settled and its slot is free, so that other
    messages are handled. At *limit* overdue calls the process receives nothing more, until some of them end.

    After a resource has run out, receive calls stop for 1 s, or for up to 30 s while no handler succeeds. Then each
    queue may have one message in flight. Each success adds one to that number, and the next shortage halves it, as TCP
    does with its congestion window (RFC 5681).

    Args:
        limit: The number of slots of the process. At least 2 calls may be overdue.
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
        self.shortages = 0
        self._exhausted_at = self._last_shortage_at = self._opens_at = -math.inf
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._filled_at = -math.inf
        self._log_quietly = False

    @property
    def overdue(self) -> int:
        """The number of overdue calls that are still running."""
        return len(self._overdue)

    @property
    def alive(self) -> bool:
        """Whether a restart would not help: calls may begin, and no resource has kept running out for 30 s."""
        if self.full:
            return False
        return self.exhausted is None or self._last_shortage_at - self._exhausted_at < RESTART_AFTER_SECONDS

    @property
    def ready(self) -> bool:
        """Whether messages are received."""
        return not self.full and self.exhausted is None

    @property
    def reasons(self) -> list[str]:
        """A sentence for each reason why the process is not ready."""
        reasons = []
        if self.full:
            reasons.append(
                f"{self.overdue} handler calls have not ended after their timeout, and {self._limit} are allowed: "
                f"{self._describe_overdue()}"
            )
        if self.exhausted is not None:
            reasons.append(f"this process has run out of {self.exhausted}")
        return reasons

    def on_open(self, wake: Callable[[], None]) -> None:
        """Call *wake* when messages may be received again."""
        self._wakes.append(wake)

    def add(self, call: Hashable, handler: str) -> None:
        """Record that *call*, of this handler, is overdue. Call it in the event loop."""
        self._overdue[call] = handler
        if not self.full and self.overdue >= self._limit:
            self.full = True
            self._set_gates()
            now = asyncio.get_running_loop().time()
            self._log_quietly = now - self._filled_at < LOG_EVERY_SECONDS
            if not self._log_quietly:
                self._filled_at = now
            log.log(
                logging.DEBUG if self._log_quietly else logging.ERROR,
                "Receiving no more messages: %s. /livez fails, so that a restart frees them. If enough of them end, "
                "messages will be received again",
                self.reasons[0],
            )

    def abandon(self, future: Future[Any], handler: str) -> None:
        """Record that a function in a thread is overdue, until its *future* is done. Call it in the event loop."""
        loop = asyncio.get_running_loop()

        def report_end(_: Future[Any]) -> None:  # runs in the thread of the function
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.remove, future)

        self.add(future, handler)
        future.add_done_callback(report_end)

    def remove(self, call: Hashable) -> bool:
        """Record that *call* has ended after all; return whether it was overdue. Call it in the event loop."""
        was_overdue = self._overdue.pop(call, None) is not None
        if self.full and self.overdue < self._limit:
            self.full = False
            self._set_gates()
            level = logging.DEBUG if self._log_quietly else logging.INFO
            log.log(level, "Receiving messages again: %d overdue handler calls are left", self.overdue)
            self._wake()
        return was_overdue

    def record_shortage(self, resource: str) -> None:
        """Record that *resource* ran out."""
        now = asyncio.get_running_loop().time()
        if now - self._last_shortage_at > QUIET_SECONDS:
            self._recover()
        if not self.strained:
            self.strained, self._window = True, 1
            self._set_gates()
            self.shortages += 1
            self._pause_seconds = FIRST_PAUSE_SECONDS
            log.error(
                "This process has run out of %s: messages are deferred, none is dead-lettered, and fewer are received",
                resource,
            )
        if self.exhausted is None:
            self._exhausted_at = now
        self.exhausted, self._last_shortage_at = resource, now
        if now >= self._opens_at:  # otherwise another message has reported the same shortage
            self._opens_at = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
            self._window = max(1, self._window // 2)

    def record_success(self) -> None:
        """Record that a handler returned, while the process is short of a resource."""
        if asyncio.get_running_loop().time() < self._opens_at:
            return  # the handler may have begun, and obtained the resource, before the shortage
        self.exhausted, self._pause_seconds = None, FIRST_PAUSE_SECONDS
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

    def allowance(self) -> int | None:
        """Return how many messages each queue may have in flight, or None without a limit."""
        if self.full:
            return 0
        if not self.strained:
            return None
        now = asyncio.get_running_loop().time()
        if now - self._last_shortage_at > QUIET_SECONDS:
            self._recover()
            return None
        return 0 if now < self._opens_at else self._window

    def seconds_until_open(self) -> float | None:
        """Return the rest of the pause; None if receiving waits for the end of a message or of an overdue call."""
        seconds = self._opens_at - asyncio.get_running_loop().time()
        return seconds if seconds > 0 and not self.full else None

    def _recover(self) -> None:
        if self.strained:
            log.info("This process has enough resources again: receiving as before")
            self.strained, self.exhausted = False, None
            self._set_gates()
            self._wake()

    def _set_gates(self) -> None:
        for gate in self._gates:
            gate.passive = self.passive

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def _describe_overdue(self) -> str:
        counts = Counter(self._overdue.values()).most_common()
        more = f" and {len(counts) - MAX_NAMES} more handlers" if len(counts) > MAX_NAMES else ""
        return ", ".join(f"{name} ({count})" for name, count in counts[:MAX_NAMES]) + more


class CapacityGate:
    """The gate of one queue: counts its messages in flight while the process is short of a resource."""

    def __init__(self, capacity: Capacity) -> None:
        self.passive = capacity.passive
        self._capacity = capacity
        self._shortage = 0
        self._in_flight = 0

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received."""
        allowed = self._capacity.allowance()
        if allowed is None:
            return wanted
        if self._shortage != self._capacity.shortages:
            self._shortage, self._in_flight = self._capacity.shortages, 0
        admitted = max(0, min(wanted, allowed - self._in_flight))
        self._in_flight += admitted
        return admitted

    def end_call(self, admitted: int, received: int) -> None:
        """Record that a call for *admitted* messages has ended and brought *received*."""
        if self._in_flight:
            self._in_flight = max(0, self._in_flight - (admitted - received))

    def end_messages(self, count: int) -> None:
        """Record that *count* messages have been settled."""
        if self._in_flight:
            self._in_flight = max(0, self._in_flight - count)

    def seconds_until_open(self) -> float | None:
        """Return the rest of the pause after a shortage, or None if receiving waits for an event."""
        return self._capacity.seconds_until_open()

    def on_open(self, wake: Callable[[], None]) -> None:
        """Call *wake* when messages may be received again."""
        self._capacity.on_open(wake)
