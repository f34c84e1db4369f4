"""SIGTERM and SIGINT, in one place: the worker knows how to stop, and nothing of POSIX."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def on_stop(stop: Callable[[str], None], kill: Callable[[str], None]) -> Iterator[None]:
    """Call *stop* at the first SIGTERM or SIGINT and *kill* at the second; a third has its default effect.

    The handlers are asyncio's, so both run in the loop between two steps of it, where they may set
    events and cancel tasks; a plain signal handler could interrupt the loop anywhere.
    """
    loop = asyncio.get_running_loop()
    calls = [stop, kill]

    def received(name: str) -> None:
        if calls:  # signals that came while the loop was blocked are all heard at once
            calls.pop(0)(name)
        if not calls:
            restore()

    def restore() -> None:
        for signum in SIGNALS:
            loop.remove_signal_handler(signum)

    for signum in SIGNALS:
        loop.add_signal_handler(signum, received, signum.name)
    try:
        yield
    finally:
        restore()
