"""The disturbances of the soak: kills, deployments, and faults of the broker and the database, at random times."""

from __future__ import annotations

import heapq
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from tests.chaos.delivery_faults import DuplicateDelivery
from tests.chaos.faults import combine, expire_handles, inject
from tests.soak.service import FORM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.chaos.faults import FaultFunction
    from tests.chaos.servers import ServiceProcess
    from tests.chaos.setup import Setup

SLOW_SECONDS = 4.0
DOWN_SECONDS = 1.0


def deliver_twice(setup: Setup) -> None:
    """Deliver messages of standard queues a second time. A FIFO queue delivers the messages of a group in order."""
    for service in FORM.services.values():
        if not service.queue.fifo:
            setup.inject_delivery_fault(DuplicateDelivery(setup.random), queue=service.queue.name)


BROKER_FAULTS: dict[str, FaultFunction] = {
    "throttling": inject("", share=0.5, answer=(400, "ThrottlingException", "Rate exceeded")),
    "status 500": inject("", share=0.5, answer=(500, "InternalError", "we are sorry")),
    "dropped connections": combine(inject("", share=0.25, drop="request"), inject("", share=0.25, drop="reply")),
    "slow answers": inject("", share=0.3, delay_seconds=SLOW_SECONDS),
    "deletes that fail": combine(expire_handles, inject("DeleteMessageBatch", share=0.3, drop="reply")),
    "duplicates": deliver_twice,
}
UNREACHABLE, NO_DATABASE = "broker unreachable", "database restart"
NAMES = (*BROKER_FAULTS, UNREACHABLE, NO_DATABASE)


@contextmanager
def disturb(setup: Setup, name: str) -> Iterator[None]:
    """Cause the disturbance with this name until the block ends."""
    if name == UNREACHABLE:
        setup.proxy.refuse()
        yield
        setup.proxy.listen()
    elif name == NO_DATABASE:
        setup.servers.postgres.stop()
        time.sleep(DOWN_SECONDS)
        setup.servers.postgres.start()
        yield
    else:
        before = list(setup.proxy.faults)
        BROKER_FAULTS[name](setup)
        yield
        setup.proxy.faults = before


class Schedule:
    """Calls functions at random times around their intervals."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Call *call* once, after *seconds*."""
        heapq.heappush(self._calls, (time.monotonic() + seconds, next(self._numbers), call))

    def every(self, seconds: float, call: Callable[[], object]) -> None:
        """Call *call* again and again, on average every *seconds*."""

        def repeat() -> None:
            self.after(seconds * self._random.uniform(0.5, 1.5), repeat)
            call()

        self.after(seconds * self._random.uniform(0.5, 1.0), repeat)

    def run_due(self) -> None:
        """Make the calls that are due."""
        while self._calls and self._calls[0][0] <= time.monotonic():
            heapq.heappop(self._calls)[2]()


def kill_one(setup: Setup, spared: set[str]) -> None:
    """Kill a random worker or relay, except those of *spared*."""
    setup.kill(setup.random.choice([one for one in setup.processes if one.key not in spared and one.running]))


def deploy_one(setup: Setup, ready: set[str]) -> ServiceProcess | None:
    """Stop a random process of *ready* with SIGTERM, as a deployment does, and return it.

    Before a process is ready, it may not have a handler for the signal yet.
    """
    choice = [one for one in setup.processes if one.key in ready and one.running and not one.stopped]
    if not choice:
        return None
    process = setup.random.choice(choice)
    process.drain()
    return process
