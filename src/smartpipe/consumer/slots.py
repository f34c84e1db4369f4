"""The capacity of one queue's consumer, in one place: how many messages it may receive, and when.

A slot is taken by a message, or by a receive call that may bring one. A message frees its slot when its handlers have
ended. Gates hold receive calls back on top of that: rate limits, circuit breakers, and a process that is short of a
resource. The consumer has no buffer of its own: a message waits in SQS, where other workers can take it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_CALLS = 10
GATHER_SLOTS = 5
GATHER_SECONDS = 0.01
"""While calls come back full, a call waits this long for this many slots. Otherwise each free slot would be a call, and
each message a request."""
MAX_UNSETTLED = 200
"""With this many messages waiting to be deleted or returned, no slot becomes free. The others wait in SQS."""


class Gate(Protocol):
    """Limits how many messages a receive call may ask for."""

    @property
    def passive(self) -> bool:
        """Whether it limits nothing at the moment. Its methods below are not called then, which spares time."""

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages a call may ask for, and reserve them."""

    def polled(self, admitted: int, received: int) -> None:
        """Take note that a call for *admitted* messages has ended and brought *received*."""

    def ended(self, count: int) -> None:
        """Take note that *count* messages have been handled."""

    def seconds_until_open(self) -> float | None:
        """Return when to ask again, or None if the gate itself reports it to ``on_open``."""

    def on_open(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when messages may be received again."""


class Slots:
    """The slots of one consumer. It belongs to the event loop in which it is created.

    Args:
        size: The maximum number of messages that the consumer holds at a time.
        gates: Each is asked before a receive call how many messages it admits.
    """

    def __init__(self, size: int, gates: Sequence[Gate] = ()) -> None:
        self.open_calls = 0
        self.paused = False
        self.unsettled = 0
        self._loop = asyncio.get_running_loop()
        self._free = size
        self._gates = gates
        self._postponed = 0  # slots of messages that ended while too many others were unsettled
        self._wanted_calls = 1
        self._gather_slots = min(GATHER_SLOTS, size // 2)
        self._gathered = False
        self._gather_timer: asyncio.TimerHandle | None = None
        self._gate_timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        for gate in gates:
            gate.on_open(self.wake)

    async def acquire(self) -> int:
        """Wait until a receive call is worth making; return how many messages to ask for, or 0 once closed.

        The call is open from now on, and has taken that many slots: report its answer to ``return_unused`` and its end
        to ``end_call``. One task at a time may wait here; cancelled, it has taken nothing.
        """
        while not self._closed:
            count = self._take()
            if count:
                return count
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return 0

    def return_unused(self, asked: int, received: int) -> None:
        """Free the slots of a call for *asked* messages that brought only *received*."""
        self._free += asked - received
        for gate in self._gates:
            if not gate.passive:
                gate.polled(asked, received)
        if received == asked:
            self._wanted_calls = min(self._wanted_calls + 1, MAX_CALLS)
        else:
            self._wanted_calls = max(1, self._wanted_calls - 1) if received else 1

    def end_call(self) -> None:
        """Take note that a receive call is not open any more."""
        self.open_calls -= 1
        if self._gather_timer is None:
            self.wake()

    def release(self) -> None:
        """Free the slot of a message whose handlers have ended; later if too many messages are unsettled."""
        if self.unsettled < MAX_UNSETTLED:
            self._release()
        else:
            self._postponed += 1

    def settled(self, count: int) -> None:
        """Take note that *count* messages have been deleted or returned, or that this was given up."""
        self.unsettled -= count
        while self._postponed and self.unsettled < MAX_UNSETTLED:
            self._postponed -= 1
            self._release()

    def wake(self) -> None:
        """Let ``acquire`` look again: something has changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause(self) -> None:
        """Let no receive call begin until ``resume``. A second call does nothing."""
        self.paused = True

    def resume(self) -> None:
        """Let receive calls begin again."""
        self.paused = False
        self.wake()

    def close(self) -> None:
        """Let no receive call begin any more."""
        self._closed = True
        for timer in (self._gather_timer, self._gate_timer):
            if timer is not None:
                timer.cancel()
        self.wake()

    def _take(self) -> int:
        if self.paused or self._free <= 0 or self.open_calls >= self._wanted_calls or self._gathers():
            return 0
        count = self._admitted(min(self._free, MAX_BATCH_ENTRIES))
        if count:
            self._free -= count
            self.open_calls += 1
        return count

    def _release(self) -> None:
        self._free += 1
        for gate in self._gates:
            if not gate.passive:
                gate.ended(1)
        # `acquire` goes on in the next turn of the loop, so that slots which become free in this turn join.
        if self._gather_timer is None or self._free == self._gather_slots:
            self.wake()

    def _gathers(self) -> bool:
        """Return whether to wait a moment for more free slots: there is a backlog, and few are free."""
        if self._wanted_calls == 1 or self._free >= self._gather_slots or self._gathered:
            self._gathered = False
            if self._gather_timer is not None:
                self._gather_timer.cancel()
                self._gather_timer = None
            return False
        if self._gather_timer is None:
            self._gather_timer = self._loop.call_later(GATHER_SECONDS, self._stop_gathering)
        return True

    def _stop_gathering(self) -> None:
        self._gather_timer = None
        self._gathered = True
        self.wake()

    def _admitted(self, wanted: int) -> int:
        """Ask every gate. When one of them admits nothing, look again when it says so."""
        for index, gate in enumerate(self._gates):
            if gate.passive:
                continue
            admitted = gate.admit(wanted)
            for earlier in self._gates[:index]:
                if not earlier.passive:
                    earlier.polled(wanted - admitted, 0)
            wanted = admitted
            if not wanted:
                seconds = gate.seconds_until_open()
                if seconds is not None:
                    if self._gate_timer is not None:
                        self._gate_timer.cancel()
                    self._gate_timer = self._loop.call_later(seconds, self.wake)
                break
        return wanted
