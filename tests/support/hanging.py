"""Handlers that hang in threads, and run into their timeouts as soon as they have begun."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tests.support.virtual_time import movable_time
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe.consumer.consumer import Consumer


class Hanging:
    """A function for handlers that returns when the test sets ``release``."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._begun: list[None] = []

    def wait(self) -> None:
        """Wait for the test. Called in threads."""
        self._begun.append(None)
        assert self.release.wait(60)

    async def fill(self, consumer: Consumer, seconds: float) -> None:
        """Let *seconds* pass whenever all calls have begun, until the consumer accepts no more messages."""
        capacity = consumer.processor._resources.threads.capacity

        def step() -> bool:
            if consumer.in_flight and len(self._begun) >= capacity.overdue + consumer.in_flight:
                move(seconds)
            return capacity.full and not consumer.in_flight and not consumer.open_calls

        with movable_time() as move:
            await until(step)
