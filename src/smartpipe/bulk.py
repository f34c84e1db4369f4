"""The requests of one ``publish_many``: so many at once and no more, and what failed of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from smartpipe.errors import PublishFailure
    from smartpipe.outgoing import Outgoing


class Requests:
    """Starts a request for each chunk, at most *max_in_flight* at once.

    Args:
        failures: Where the failures of finished requests are added.
    """

    def __init__(
        self,
        deliver_chunk: Callable[[list[Outgoing]], Coroutine[Any, Any, list[PublishFailure]]],
        failures: list[PublishFailure],
        max_in_flight: int,
    ) -> None:
        self._deliver = deliver_chunk
        self._failures = failures
        self._max_in_flight = max_in_flight
        self._tasks: set[asyncio.Task[list[PublishFailure]]] = set()

    async def start(self, chunk: list[Outgoing]) -> None:
        """Start a request, after waiting for room."""
        while len(self._tasks) >= self._max_in_flight:
            await self._collect(asyncio.FIRST_COMPLETED)
        self._tasks.add(asyncio.get_running_loop().create_task(self._deliver(chunk)))

    async def finish(self) -> None:
        """Wait for all of them."""
        if self._tasks:
            await self._collect(asyncio.ALL_COMPLETED)

    def cancel(self) -> None:
        """Abandon those that are open."""
        for task in self._tasks:
            task.cancel()

    async def _collect(self, when: str) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=when)
        for task in done:
            self._failures.extend(task.result())
