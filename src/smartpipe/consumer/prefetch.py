"""Receives messages ahead of free slots, so that fast handlers do not wait for the network.

By Little's law, as many messages are on their way as are handled during a round trip. With fewer, the slots of handled
messages stay empty until the next response. With more, messages would wait here, and other workers could not take them.
Handlers that take longer than four round trips hardly wait for the network, so nothing is received ahead for them.

Messages that were received ahead are settled as all others: their leases are extended, and a drain returns them. They
are also returned when nothing may begin (a pause, an open circuit, a suspect that waits to be alone), and when handlers
have become slow: another worker may have them sooner.

The round trip is the mean of the responses, but at most ``SPREAD`` times the least of the last seconds. A response that
waits for a busy event loop or a busy broker takes longer, so the mean alone would make the number larger, and with it
the wait. TCP's BBR uses the least for the same reason. The least alone would be too little for a broker whose responses
take now 2 and now 20 ms.

Sources: J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9 (3), 1961.
N. Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14 (5), 2016.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

from smartpipe.consumer.handler_limits import EARLY
from smartpipe.limits import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpipe.consumer.consumer import GroupQueue, GroupRunner
    from smartpipe.consumer.slots import Slots
    from smartpipe.message import Message

MAX_WAIT_SECONDS = 1.0
"""After this time, all of them are returned."""
MAX_PREFETCHED = 1_000
MAX_PREFETCHED_BYTES = 16 * 1024 * 1024
GAIN = 2.0
"""Half of the messages are on their way while the other half wait here, for one round trip at most."""
WORTHWHILE = 0.5
"""Handlers that take longer than four round trips need no messages ahead: less than this part of the slots."""
SPREAD = 4.0
"""A mean round trip above this many times the least one is waiting in a queue, not distance."""
FULL_CALL_SECONDS = 0.01
"""If as many messages as there are slots, and ten at least, are handled in this time, the messages of one call are
received ahead, however short the round trip is. Otherwise each call would ask for the few slots that are free at the
moment, and each message would cost a larger part of a request."""
ROUND_TRIP_PERIOD_SECONDS = 5.0
MIN_PERIOD_SECONDS = 0.05
WEIGHT = 0.25
"""The weight of a new measurement in its moving average."""


class Prefetch:
    """Computes from measurements how many messages to receive ahead. Pure: the caller has the clock.

    Args:
        concurrency: The number of messages that are handled at a time.
    """

    def __init__(self, concurrency: int) -> None:
        self.count = 0
        self._concurrency = concurrency
        self._round_trips = (math.inf, math.inf)  # the least of this period and of the one before
        self._round_trips_began = 0.0
        self._mean_round_trip = 0.0
        self._rate_per_second = 0.0
        self._handled = 0
        self._began = -math.inf

    def record_receive(self, began: float, now: float, *, handled: int, bytes_each: float) -> int:
        """Record a full response to a receive call, and return the number of messages to receive ahead from now on.

        A response that is not full has waited for messages, so its duration says nothing about the round trip.

        Args:
            began: When the call began; *now*: when its response came.
            handled: The number of messages that have been handled so far.
            bytes_each: The mean length of the bodies in the response.
        """
        if now - self._round_trips_began > ROUND_TRIP_PERIOD_SECONDS:
            self._round_trips, self._round_trips_began = (math.inf, self._round_trips[0]), now
        round_trip = now - began
        self._round_trips = (min(self._round_trips[0], round_trip), self._round_trips[1])
        longest = SPREAD * min(self._round_trips)  # a longer one has waited, for messages or for the event loop
        mean = self._mean_round_trip or min(round_trip, longest)
        self._mean_round_trip = mean + WEIGHT * (min(round_trip, longest) - mean)
        seconds = now - self._began
        if seconds < MIN_PERIOD_SECONDS:
            return self.count
        rate = (handled - self._handled) / seconds
        self._rate_per_second += WEIGHT * (rate - self._rate_per_second)
        self._handled, self._began = handled, now
        wanted = GAIN * self._rate_per_second * min(self._mean_round_trip, SPREAD * min(self._round_trips))
        if wanted < self._concurrency * WORTHWHILE:
            wanted = 0
        if self._rate_per_second * FULL_CALL_SECONDS >= max(self._concurrency, MAX_BATCH_ENTRIES):
            wanted = max(wanted, MAX_BATCH_ENTRIES)
        self.count = int(min(wanted, MAX_PREFETCHED, MAX_PREFETCHED_BYTES / max(1.0, bytes_each)))
        return self.count

    def reset(self) -> None:
        """Receive nothing ahead until the rate has been measured again."""
        self.count, self._rate_per_second, self._mean_round_trip = 0, 0.0, 0.0


class ReceivedAhead:
    """The messages, or groups of a FIFO queue, that wait until fewer are being handled than there are slots.

    Args:
        prefetch: Computes how many to receive ahead; None: none at all, so no message ever waits here.
    """

    def __init__(self, runner: GroupRunner, slots: Slots, prefetch: Prefetch | None) -> None:
        self.groups: deque[GroupQueue] = deque()
        self._runner = runner
        self._slots = slots
        self._prefetch = prefetch
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._continuing = False

    def check(self) -> None:
        """Stop receiving ahead if a pause or a gate limits what may be received."""
        if not self._slots.flowing:
            self.return_all()

    def record_full_response(self, messages: Sequence[Message], began: float) -> None:
        """Measure with a receive call of which each wanted message came, and adjust how many are received ahead."""
        if self._prefetch is not None and self._slots.flowing:
            bytes_each = sum(len(message.body) for message in messages) / len(messages)
            count = self._prefetch.record_receive(
                began, messages[0].received_at, handled=self._slots.ended, bytes_each=bytes_each
            )
            self._slots.receive_ahead(count)

    def start(self, group: GroupQueue, *, ahead: bool) -> None:
        """Start *group*, or let it wait; return it if it was received *ahead* and nothing may begin now."""
        if ahead and not self._slots.flowing and not self._runner.stopping:
            self._runner.return_unhandled(group)
        elif self._runner.stopping or (not self.groups and len(self._runner.tasks) < self._slots.size):
            self._runner.start_group(group)
        else:
            self.groups.append(group)
            self._runner.on_end = self._start_waiting
            if self._timer is None:
                self._timer = self._loop.call_later(MAX_WAIT_SECONDS, self._end_wait)

    def _start_waiting(self) -> None:
        """Start the groups that have a slot now, or return all if nothing may begin. It runs whenever a group ends."""
        if self.groups and not self._slots.flowing:
            self.return_all()
        for _ in range(self._slots.size):  # a task may end as soon as it starts
            if not self.groups or len(self._runner.tasks) >= self._slots.size:
                break
            group = self.groups.popleft()
            if group[0].lost:  # while the event loop was blocked: another worker may have it by now
                self._runner.return_unhandled(group)
            else:
                self._runner.start_group(group)
        if not self.groups:
            self._runner.on_end = None
        elif len(self._runner.tasks) < self._slots.size and not self._continuing:
            self._continuing = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        self._start_waiting()

    def return_all(self) -> None:
        """Return the messages that wait, and receive none ahead until the rate of the handlers is known again."""
        self._slots.receive_ahead(0)
        if self._prefetch is not None:
            self._prefetch.reset()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.groups:
            self._runner.return_unhandled(self.groups.popleft())

    def _end_wait(self) -> None:
        self._timer = None
        if self.groups:
            waited = self._loop.time() - self.groups[0][0].message.received_at
            if waited >= MAX_WAIT_SECONDS - EARLY:
                self.return_all()
            else:
                self._timer = self._loop.call_later(MAX_WAIT_SECONDS - waited, self._end_wait)
