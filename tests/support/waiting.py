"""Waiting for what real processes and threads do: as long as it takes, and not for ever."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_SECONDS = 45.0


async def until(condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Return when *condition* is true; fail after a bound that only a broken program reaches."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {deadline_seconds} s"
        await asyncio.sleep(0.01)


def until_blocking(condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Do the same in a thread."""
    asyncio.run(until(condition, deadline_seconds))
