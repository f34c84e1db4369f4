"""Wait for real processes and threads, up to a deadline."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_SECONDS = 45.0


async def until(condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until *condition* holds. Fail after a time that only a broken program needs."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {deadline_seconds} s"
        await asyncio.sleep(0.01)


def until_blocking(condition: Callable[[], object], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Wait as ``until`` does, but block the thread."""
    asyncio.run(until(condition, deadline_seconds))
