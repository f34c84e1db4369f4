"""The capacity of one queue's consumer: how many messages it may receive, and when.

A message takes a slot, and so does a receive call for each message that it may bring. A message frees its slot when its
handlers have ended. Gates can hold receive calls back as well: rate limits, circuit breakers, and a process that is
short of a resource. There are a few more slots than handlers may run: those of the messages that are received ahead
(``prefetch``). All others wait in SQS, where other workers can take them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_CALLS = 10
MAX_CALLS_AHEAD = 128
LINGER_SLOTS = 5
LINGER_SECONDS = 0.01
"""While calls come back full, a call waits this long for this many slots. Otherwise each free slot would start a call,
and each message would cost a request."""
MAX_UNSETTLED = 200
"""While this many messages wait to be deleted or returned, no slot becomes free. All others wait in SQS. As many more
may wait as are received ahead, because their deletes take a round trip, too."""


class Gate(Protocol):
    """Limits the number of messages that a receive call may ask for.

    Implemented by a handler's ``TokenBucket`` and ``Circuit``, the process's ``CapacityGate``, and ``Isolation``.
    """

    @property
    def passive(self) -> bool:
        """Whether it limits nothing at the moment. Its methods below are not called then, which saves time."""

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages a call may ask for, and reserve them."""

    def end_call(self, admitted: int, received: int) -> None:
        """Record that a call for *admitted* messages has ended and brought *received*."""

    def end_messages(self, count: int) -> None:
        """Record that *count* messages have been handled."""

    def seconds_until_open(self) -> float | None:
        """Return when to ask again, or None if the gate calls the function of ``on_open`` itself."""

    def on_open(self, wake: Callable[[], None]) -> None:
        """Call *wake* when messages may be received again."""


class Slots:
    """The slots of one consumer. It belongs to the event loop in which it is created.

    Args:
        size: The maximum number of messages that are handled at a time. Those received ahead have further slots.
        gates: Each is asked before a receive call how many messages it admits.
    """

    def __init__(self, size: int, gates: Sequence[Gate] = ()) -> None:
        self.open_calls = 0
        self.paused = False
        self.unsettled = 0
        self.ended = 0
        self.size = size
        self.prefetched = 0
        self._loop = asyncio.get_running_loop()
        self._free = size
        self._gates = gates
        self._postponed = 0  # slots of messages that ended while too many others were unsettled
        self._wanted_calls = 1
        self._max_calls = MAX_CALLS
        self._few_slots = self._linger_slots = min(LINGER_SLOTS, size // 2)
        self._has_lingered = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._gate_timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        for gate in gates:
            gate.on_open(self.wake)

    async def acquire(self) -> int:
        """Wait until a receive call is worth making; return how many messages to ask for, or 0 once closed.

        The call counts as open from now on, and has taken that many slots. Report its result to ``return_unused`` and
        its end to ``end_call``. One task at a time may wait here. If cancelled, it has taken nothing.
        """
        while not self._closed:
            count = self._take()
            if count:
                return count
            # A wake-up says only that something has changed, so the loop checks everything again.
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
                gate.end_call(asked, received)
        # A full call is a sign of a backlog: make one more in parallel. An empty one is a sign that one call suffices.
        if received == asked:
            self._wanted_calls = min(self._wanted_calls + 1, self._max_calls)
        else:
            self._wanted_calls = max(1, self._wanted_calls - 1) if received else 1

    def end_call(self) -> None:
        """Record that a receive call is no longer open."""
        self.open_calls -= 1
        if self._linger_timer is None:  # otherwise the timer wakes `acquire`
            self.wake()

    def release(self) -> None:
        """Free the slot of a message whose handlers have ended, or postpone it while too many are unsettled."""
        self.ended += 1
        if self.unsettled < MAX_UNSETTLED + self.prefetched:
            self._release()
        else:
            # Without this limit, handlers that are faster than deletes would pile up messages without a bound.
            self._postponed += 1

    def record_settled(self, count: int) -> None:
        """Record that *count* messages have been deleted or returned, or that the attempt was given up."""
        self.unsettled -= count
        while self._postponed and self.unsettled < MAX_UNSETTLED + self.prefetched:
            self._postponed -= 1
            self._release()

    @property
    def flowing(self) -> bool:
        """Whether receive calls are made without any limit besides the number of slots."""
        return not self.paused and not self._closed and all(gate.passive for gate in self._gates)

    def receive_ahead(self, count: int) -> None:
        """Have *count* slots more than handlers may run, from now on."""
        if count != self.prefetched:
            self._free += count - self.prefetched
            self.prefetched = count
            # With slots to spare, every call can ask for as many messages as SQS returns.
            self._linger_slots = MAX_BATCH_ENTRIES if count >= MAX_BATCH_ENTRIES else self._few_slots
            self._max_calls = min(max(MAX_CALLS, -(-(self.size + count) // MAX_BATCH_ENTRIES)), MAX_CALLS_AHEAD)
            self.wake()

    def wake(self) -> None:
        """Let ``acquire`` check again, because something has changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause(self) -> None:
        """Start no receive call until ``resume``. A second call does nothing."""
        self.paused = True

    def resume(self) -> None:
        """Start receive calls again."""
        self.paused = False
        self.wake()

    def close(self) -> None:
        """Start no more receive calls; ``acquire`` returns 0."""
        self._closed = True
        for timer in (self._linger_timer, self._gate_timer):
            if timer is not None:
                timer.cancel()
        self.wake()

    def _take(self) -> int:
        # In this order: lingering starts a timer, and gates reserve messages, so both are left for when a call is due.
        if self.paused or self._free <= 0 or self.open_calls >= self._wanted_calls or self._should_linger():
            return 0
        count = self._ask_gates(min(self._free, MAX_BATCH_ENTRIES))
        if count:
            self._free -= count
            self.open_calls += 1
        return count

    def _release(self) -> None:
        self._free += 1
        for gate in self._gates:
            if not gate.passive:
                gate.end_messages(1)
        # `acquire` continues in the next turn of the loop. Slots that become free in this turn then share one call.
        if self._linger_timer is None or self._free == self._linger_slots:
            self.wake()

    def _should_linger(self) -> bool:
        """Return whether to wait a moment for more free slots, because there is a backlog and few slots are free."""
        if self._wanted_calls == 1 or self._free >= self._linger_slots or self._has_lingered:
            self._has_lingered = False
            if self._linger_timer is not None:
                self._linger_timer.cancel()
                self._linger_timer = None
            return False
        if self._linger_timer is None:
            self._linger_timer = self._loop.call_later(LINGER_SECONDS, self._end_linger)
        return True

    def _end_linger(self) -> None:
        self._linger_timer = None
        self._has_lingered = True
        self.wake()

    def _ask_gates(self, wanted: int) -> int:
        """Return how many messages all gates admit; if one of them admits none, ask again when it opens."""
        for index, gate in enumerate(self._gates):
            if gate.passive:
                continue
            admitted = gate.admit(wanted)
            # The gates before this one have reserved more than the call will ask for: return the difference.
            for earlier in self._gates[:index]:
                if not earlier.passive:
                    earlier.end_call(wanted - admitted, 0)
            wanted = admitted
            if not wanted:
                seconds = gate.seconds_until_open()
                if seconds is not None:
                    if self._gate_timer is not None:
                        self._gate_timer.cancel()
                    self._gate_timer = self._loop.call_later(seconds, self.wake)
                break
        return wanted
