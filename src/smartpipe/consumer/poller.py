"""Long polls for free slots: none when all are busy, one when idle, more while batches come back full."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smartpipe.errors import TransportError
from smartpipe.limits import MAX_BATCH_ENTRIES
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smartpipe.consumer.pace import Gate
    from smartpipe.message import Message

log = logging.getLogger("smartpipe.poller")

MAX_POLLS = 10
GATHER_SLOTS = 5
GATHER_SECONDS = 0.01
"""While batches come back full, a poll waits so long for so many slots: a poll for each slot would be a request for
each message."""


class Poller:
    """Keeps polls open for one queue and hands on what they bring. It belongs to the event loop in which it is made.

    A poll asks for as many messages as there are slots that neither a message nor another poll has
    taken: nothing waits in a buffer of ours. A poll once open is never cancelled, because SQS may
    have handed out its messages already, and they would be stranded until their timeout.

    Args:
        receive: Makes one poll for at most so many messages.
        deliver: Takes each non-empty batch; it must call ``free`` for each message when done with it.
        slots: How many messages may be out at once.
        gates: Each is asked before a poll how many messages it admits.
    """

    def __init__(
        self,
        queue: str,
        receive: Callable[[int], Awaitable[list[Message]]],
        deliver: Callable[[Sequence[Message]], None],
        *,
        slots: int,
        gates: Sequence[Gate] = (),
    ) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._deliver = deliver
        self._slots = slots
        self._free = slots
        self._gates = gates
        self._counting_ends = [gate for gate in gates if gate.counts_ends]
        self._gather_slots = min(GATHER_SLOTS, slots // 2)
        self._wake_up: asyncio.TimerHandle | None = None
        self._gathering: asyncio.Handle | None = None
        self.paused = False
        self._polls: dict[asyncio.Task[None], float] = {}  # with the time at which each was opened
        self._wanted_polls = 1
        self._stopping = asyncio.Event()
        self._failures = 0
        self._fault: str | None = None
        self._last_success: float | None = None

    def start(self) -> None:
        """Open the first poll."""
        self._open()

    def free(self) -> None:
        """Give back the slot of one message."""
        self._free += 1
        for gate in self._counting_ends:
            gate.ended(1)
        if self._gathering is None or self._free == self._gather_slots:
            if self._gathering is not None:
                self._gathering.cancel()
            # What else is freed in this turn of the loop joins.
            self._gathering = self._loop.call_soon(self._gathered)

    def pause(self) -> None:
        """Open no poll until ``resume``; the open ones still bring what they bring. Twice is once."""
        self.paused = True

    def resume(self) -> None:
        """Poll again."""
        self.paused = False
        self._open()

    def wake(self) -> None:
        """Look again whether a poll may be opened: a gate has changed its mind."""
        self._open()

    def stop(self) -> None:
        """Open no further poll."""
        self._stopping.set()
        for timer in (self._wake_up, self._gathering):
            if timer is not None:
                timer.cancel()

    async def closed(self) -> None:
        """Wait, after ``stop``, until the open polls have returned."""
        while self._polls:
            await asyncio.wait(self._polls)

    @property
    def open_polls(self) -> int:
        """How many polls wait for an answer."""
        return len(self._polls)

    def seconds_until_closed(self, wait_seconds: float) -> float:
        """Return for how long SQS may still hand messages to a poll of ours that nobody waits for any more."""
        if not self._polls:
            return 0.0
        return max(0.0, max(self._polls.values()) + wait_seconds - self._loop.time())

    @property
    def failing(self) -> bool:
        """Whether the last poll failed."""
        return self._fault is not None

    def seconds_since_success(self) -> float:
        """Return how long ago a poll succeeded or, with no slot to poll for, 0: busy is not dead."""
        if self._last_success is None or not self._polls:
            return 0.0
        return self._loop.time() - self._last_success

    def _gathered(self) -> None:
        """Open polls for what was freed; if that is little and more is to come, a moment later."""
        self._gathering = None
        if self._wanted_polls > 1 and 0 < self._free < self._gather_slots:
            self._gathering = self._loop.call_later(GATHER_SECONDS, self._gathered_enough)
        else:
            self._open()

    def _gathered_enough(self) -> None:
        self._gathering = None
        self._open()

    def _open(self) -> None:
        while self._free > 0 and len(self._polls) < self._wanted_polls and not self._stopping.is_set():
            asked = 0 if self.paused else self._admitted(min(self._free, MAX_BATCH_ENTRIES))
            if not asked:
                return
            self._free -= asked
            if not self._polls and self._fault is None:  # nothing was due while every slot was busy
                self._last_success = self._loop.time()
            poll = self._loop.create_task(self._poll(asked))
            self._polls[poll] = self._loop.time()
            poll.add_done_callback(self._closed_one)

    def _admitted(self, wanted: int) -> int:
        """Ask every gate; when one says none, look again when it says so."""
        for index, gate in enumerate(self._gates):
            admitted = gate.admit(wanted)
            for earlier in self._gates[:index]:
                earlier.polled(wanted - admitted, 0)
            wanted = admitted
            if not wanted:
                seconds = gate.seconds_until_open()
                if seconds is not None:
                    self._look_again(seconds)
                break
        return wanted

    def _look_again(self, seconds: float) -> None:
        if self._wake_up is not None:
            self._wake_up.cancel()
        self._wake_up = self._loop.call_later(seconds, self._open)

    def _polled(self, asked: int, received: int) -> None:
        self._free += asked - received
        for gate in self._gates:
            gate.polled(asked, received)

    def _closed_one(self, poll: asyncio.Task[None]) -> None:
        del self._polls[poll]
        if self._gathering is None:
            self._gathered()

    async def _poll(self, asked: int) -> None:
        messages: Sequence[Message] = ()
        try:
            messages = await self._receive(asked)
        except Exception as error:  # noqa: BLE001 - whatever happens, polling goes on
            self._polled(asked, 0)
            await self._back_off(error)
            return
        self._polled(asked, len(messages))
        self._succeeded()
        if len(messages) == asked:
            self._wanted_polls = min(self._wanted_polls + 1, MAX_POLLS)
        else:
            self._wanted_polls = max(1, self._wanted_polls - 1) if messages else 1
        if messages:
            self._deliver(messages)

    def _succeeded(self) -> None:
        self._last_success = self._loop.time()
        if self._fault is not None:
            log.info("queue %s can be polled again after %d failed polls", self._queue, self._failures)
        self._fault, self._failures = None, 0

    async def _back_off(self, error: Exception) -> None:
        """Say so once per change of state, and wait, with jitter, at most 30 s; a stop ends the wait."""
        if self._stopping.is_set():
            return
        self._failures += 1
        self._wanted_polls = 1
        code = error.code if isinstance(error, TransportError) else type(error).__name__
        if code != self._fault:
            self._fault = code
            unexpected = None if isinstance(error, TransportError) else error
            log.error("queue %s cannot be polled, trying on: %s", self._queue, error, exc_info=unexpected)
        try:
            async with asyncio.timeout(backoff_seconds(OUTAGE_WAITS, self._failures, error)):
                await self._stopping.wait()
        except TimeoutError:
            return
