"""Isolates messages that may kill their process: handles them last and one at a time, and finally dead-letters them.

A message that kills its process, for instance by running it out of memory, interrupts all other messages there. SQS
delivers them all again, the guilty one included. All that SQS reports about a message is how often it was received. If
that is more than failures and ordinary deferrals explain, some deliveries have ended without a result.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import asynccontextmanager
from random import random
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.limits import MAX_RECEIVES
from smartpipe.topology.derive import redrive_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from smartpipe.consumer.consumer import Consumer
    from smartpipe.consumer.handlers import Handler
    from smartpipe.consumer.leases import Lease
    from smartpipe.topology.derive import Binding

log = logging.getLogger("smartpipe.consumer")

PATIENCE_SECONDS = 60.0
"""A suspect waits this long for other messages to be settled, and receive calls wait this long for a suspect."""
CHECK_EVERY_SECONDS = 0.05
UNEXPLAINED_DELIVERIES = 7
"""The number of deliveries beyond the attempts after which a message is dead-lettered as ``worker-lost``.

Messages that were interrupted with it have the same count, and are suspects too. Suspects take their turns in random
order: after seven deliveries, another suspect has had no turn yet in 1 of 128 cases.
"""


class Thresholds(NamedTuple):
    """The receive counts from which a message of one queue is treated differently.

    Args:
        suspect: A message that was received, or claimed, more often is handled last and alone.
        lost: A message that was received this often is dead-lettered. It is the last delivery before SQS itself would
            move the message, without a reason. Infinite if the queue allows hardly more receives than attempts. A
            message that was claimed more often is dead-lettered, too.
    """

    suspect: float
    lost: float


NEVER = Thresholds(math.inf, math.inf)


def thresholds_of(binding: Binding, handlers: Sequence[Handler]) -> Thresholds:
    """Return the thresholds of a queue with these handlers.

    Failures explain as many deliveries as the retry policy has attempts. Many more are explained by probes of a circuit
    breaker, by deferrals while another worker holds the claim, and on FIFO queues by the messages before it in its
    group. There, a message is a suspect after half of the receives that the queue allows.
    """
    receives = redrive_count(binding)
    often = binding.queue.fifo or any(one.options.breaker or one.options.idempotency for one in handlers)
    suspect = max(binding.attempts, receives // 2) if often else binding.attempts
    return Thresholds(suspect, receives if receives >= binding.attempts + UNEXPLAINED_DELIVERIES else math.inf)


def claim_thresholds_of(handler: Handler) -> Thresholds:
    """Return the thresholds of an idempotent handler's claims, which its store counts.

    The store does not count deferrals while another worker holds the claim. It does count claims that a stopping worker
    released, or that a worker lost when it crashed for another reason, of which one is nothing unusual. It also counts
    the probes of a circuit breaker, whose number is unlimited, and the retries of a halted group, which explain all of
    them.
    """
    if handler.retry.on_exhausted == "halt":
        return Thresholds(MAX_RECEIVES, math.inf)
    attempts = handler.retry.attempts
    return Thresholds(
        attempts + 1, math.inf if handler.options.breaker else attempts + max(attempts, UNEXPLAINED_DELIVERIES)
    )


class Isolation:
    """Lets suspects of one process run alone, one at a time. Meanwhile it is a gate that holds receive calls back.

    A suspect waits until all other messages of the process have been settled and no receive call is open, or for 60 s.
    No receive call is made from its receipt until it has been settled, or has run for 60 s.
    """

    def __init__(self) -> None:
        self.passive = True  # whether there are no suspects
        self._consumers: list[Consumer] = []
        self._wakes: list[Callable[[], None]] = []
        self._leases: set[Lease] = set()
        self._begun = 0
        self._suspects = 0
        self._holds_calls_until = -math.inf
        self._stopped = False

    def join(self, consumer: Consumer) -> None:
        """Make suspects wait for the other messages of *consumer*, too."""
        self._consumers.append(consumer)

    def on_open(self, wake: Callable[[], None]) -> None:
        """Call *wake* when messages may be received again."""
        self._wakes.append(wake)

    def is_alone(self, lease: Lease) -> bool:
        """Return whether *lease* has its turn or waits for it."""
        return lease in self._leases

    @property
    def stopped(self) -> bool:
        """Whether nothing more may begin."""
        return self._stopped

    def stop(self) -> None:
        """End the wait of suspects, because the worker is draining: their tasks return the messages to the queue."""
        self._stopped = True

    @asynccontextmanager
    async def alone(self, lease: Lease) -> AsyncIterator[None]:
        """Wait for a turn, and keep it within the block, unless *lease* has it. If cancelled, give the turn up."""
        if lease in self._leases:
            yield
            return
        self._leases.add(lease)
        loop = asyncio.get_running_loop()
        self._suspects += 1
        self.passive = False
        for consumer in self._consumers:
            consumer.return_waiting()  # nothing begins any more, so they would wait for the suspects
        self._holds_calls_until = max(self._holds_calls_until, loop.time() + 2 * PATIENCE_SECONDS)
        begun = 0
        try:
            until = loop.time() + PATIENCE_SECONDS
            while not self._stopped and (  # noqa: ASYNC110
                loop.time() < self._holds_calls_until if self._begun else self._others and loop.time() < until
            ):
                # An event would cost every other message a call. The suspect whose sleep ends first has the next turn.
                await asyncio.sleep(CHECK_EVERY_SECONDS * (0.5 + random()))  # noqa: S311 - no secret
            begun = 1
            self._begun += begun  # overdue suspects stay included: nothing may begin beside them
            self._holds_calls_until = loop.time() + PATIENCE_SECONDS
            yield
        finally:
            self._leases.discard(lease)
            self._suspects -= 1
            self._begun -= begun
            if not self._suspects:
                self.passive = True
                for wake in self._wakes:
                    wake()

    @property
    def _others(self) -> bool:
        """Whether there are messages besides the suspects, settled ones excluded, or calls that may bring some."""
        return sum(consumer.open_work for consumer in self._consumers) > self._suspects

    def admit(self, wanted: int) -> int:
        """Return *wanted*, or 0 while suspects hold receive calls back."""
        return 0 if self.seconds_until_open() else wanted

    def end_call(self, admitted: int, received: int) -> None:
        """Do nothing: ``Consumer.open_work`` counts the messages of a call."""

    def end_messages(self, count: int) -> None:
        """Do nothing: suspects end with their block."""

    def seconds_until_open(self) -> float:
        """Return the maximum time for which receive calls are still held back."""
        if not self._suspects or self._stopped:
            return 0.0
        return max(0.0, self._holds_calls_until - asyncio.get_running_loop().time())
