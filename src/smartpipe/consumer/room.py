"""Room for so many at once, from which those who still wait can be sent away."""

from __future__ import annotations

import asyncio
from collections import deque


class HandlerLimit:
    """A semaphore that can be closed. First come, first served.

    Args:
        size: How many may be in it at once.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._closed = False
        self._waiting: deque[tuple[asyncio.Future[bool], bool]] = deque()

    async def enter(self, *, leaves: bool) -> bool:
        """Wait for room and return True; who is in calls ``leave``. A cancel gives the place to the next.

        Args:
            leaves: Who waits so is sent away, with False, when the room is closed, and does not wait after that.
        """
        if self._free > 0:
            self._free -= 1
            return True
        if self._closed and leaves:
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, leaves))
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.leave()
            raise

    def leave(self) -> None:
        """Make room for the next."""
        while self._waiting:
            place, _ = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self._free += 1

    def close(self) -> None:
        """Send away those who wait and may leave, now and from now on."""
        self._closed = True
        staying = deque[tuple[asyncio.Future[bool], bool]]()
        for place, leaves in self._waiting:
            if leaves and not place.done():
                place.set_result(False)
            else:
                staying.append((place, leaves))
        self._waiting = staying
