"""Messages that may kill their process: begun last, one at a time, and in the end dead-lettered.

A message that takes its process down, by running it out of memory for instance, takes all other messages with it that
are being handled there. They are delivered again, and so is the one that did it. SQS says of a message only how often
it was received. More often than failures and ordinary deferrals explain means that deliveries ended without a result.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import asynccontextmanager
from random import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from smartpipe.topology.derive import redrive_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.leases import Lease
    from smartpipe.topology.derive import Binding

log = logging.getLogger("smartpipe.consumer")

PATIENCE_SECONDS = 60.0
"""A suspect waits this long for other messages to be done with, and polls wait this long for a suspect."""
LOOK_EVERY_SECONDS = 0.05
UNEXPLAINED_DELIVERIES = 7
"""So many more deliveries than attempts before a message is dead-lettered as ``worker-lost``.

Those that died with it have the same count, and then are suspects too. Suspects take their turns in random order, so
that another one has had no turn yet, after seven deliveries, in 1 of 128 cases.
"""


class HasOpenWork(Protocol):
    """A consumer, as the isolation of its process sees it."""

    @property
    def open_work(self) -> int:
        """The number of groups being handled, and of receive calls that may bring more."""


class Thresholds(NamedTuple):
    """From which receive count on a message of one queue is treated differently.

    Args:
        suspect: A message received, or claimed, more often is handled last and alone.
        lost: A message received this often is dead-lettered: it is the last delivery before SQS itself would move the
            message, without a reason. Infinite where the queue allows hardly more receives than attempts. One claimed
            more often is dead-lettered, too.
    """

    suspect: float
    lost: float


NEVER = Thresholds(math.inf, math.inf)


def thresholds_of(binding: Binding, handlers: Sequence[Handler]) -> Thresholds:
    """Return the thresholds of a queue with these handlers.

    Failures explain as many deliveries as the retry policy has attempts. Probes of a circuit breaker, looks at a claim
    that another worker holds, and on FIFO queues the messages before it in its group, explain many more: there a
    message is a suspect from half of the receives that the queue allows.
    """
    receives = redrive_count(binding)
    often = binding.queue.fifo or any(one.options.breaker or one.options.idempotency for one in handlers)
    suspect = max(binding.attempts, receives // 2) if often else binding.attempts
    return Thresholds(suspect, receives if receives >= binding.attempts + UNEXPLAINED_DELIVERIES else math.inf)


def claim_thresholds_of(handler: Handler) -> Thresholds:
    """Return the thresholds of an idempotent handler's claims, which its store counts.

    No look at a claim that another worker holds is among them. Those given back by a worker that stops are, or lost by
    one that crashed for another reason, of which one is nothing unusual; so are the probes of a circuit breaker, to
    which there is no end.
    """
    attempts = handler.retry.attempts
    return Thresholds(
        attempts + 1, math.inf if handler.options.breaker else attempts + max(attempts, UNEXPLAINED_DELIVERIES)
    )


class Isolation:
    """Lets suspects of one process run one at a time, when nothing else does; a Gate of its pollers meanwhile.

    A suspect waits until all other messages of the process have been dealt with and no poll is open, or for 60 s. No
    poll is opened from when it is received until it has been dealt with, or has run for 60 s.
    """

    def __init__(self) -> None:
        self.passive = True  # of a gate: whether there are no suspects
        self._consumers: list[HasOpenWork] = []
        self._wakes: list[Callable[[], None]] = []
        self._turns: set[Lease] = set()
        self._begun = 0
        self._suspects = 0
        self._holds_polls_until = -math.inf
        self._stopped = False

    def join(self, consumer: HasOpenWork) -> None:
        """Make suspects wait for the other messages of *consumer*, too."""
        self._consumers.append(consumer)

    def on_open(self, wake: Callable[[], None]) -> None:
        """Have *wake* called when messages may be received again."""
        self._wakes.append(wake)

    def is_alone(self, lease: Lease) -> bool:
        """Return whether *lease* has its turn, or waits for it."""
        return lease in self._turns

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to begin."""
        return self._stopped

    def stop(self) -> None:
        """Let those that wait for their turn go on: the worker is draining, and they give their messages back."""
        self._stopped = True

    @asynccontextmanager
    async def alone(self, lease: Lease) -> AsyncIterator[None]:
        """Wait for a turn, and keep it inside of the block, unless *lease* has it. Cancelled, it gives the turn up."""
        if lease in self._turns:
            yield
            return
        self._turns.add(lease)
        loop = asyncio.get_running_loop()
        self._suspects += 1
        self.passive = False
        self._holds_polls_until = max(self._holds_polls_until, loop.time() + 2 * PATIENCE_SECONDS)
        begun = 0
        try:
            until = loop.time() + PATIENCE_SECONDS
            while not self._stopped and (  # noqa: ASYNC110
                loop.time() < self._holds_polls_until if self._begun else self._others and loop.time() < until
            ):
                # An event would cost every other message a call. Whose sleep ends first, has the next turn.
                await asyncio.sleep(LOOK_EVERY_SECONDS * (0.5 + random()))  # noqa: S311 - nobody may foresee nothing
            begun = 1
            self._begun += begun  # those that have overrun their time included: nothing begins beside them
            self._holds_polls_until = loop.time() + PATIENCE_SECONDS
            yield
        finally:
            self._turns.discard(lease)
            self._suspects -= 1
            self._begun -= begun
            if not self._suspects:
                self.passive = True
                for wake in self._wakes:
                    wake()

    @property
    def _others(self) -> bool:
        """Whether there are messages besides the suspects, or polls that may bring some."""
        return sum(consumer.open_work for consumer in self._consumers) > self._suspects

    def admit(self, wanted: int) -> int:
        """Return how many of *wanted* messages may be received: none while there are suspects, for a while."""
        return 0 if self.seconds_until_open() else wanted

    def polled(self, admitted: int, received: int) -> None:
        """Do nothing: what a poll brings is counted elsewhere."""

    def ended(self, count: int) -> None:
        """Do nothing: suspects end with their block."""

    def seconds_until_open(self) -> float:
        """Return how long polls are held back at most."""
        if not self._suspects or self._stopped:
            return 0.0
        return max(0.0, self._holds_polls_until - asyncio.get_running_loop().time())
