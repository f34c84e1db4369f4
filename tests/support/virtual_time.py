"""An event loop whose clock jumps to the next timer, so that half an hour of retries takes milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    import pytest

T = TypeVar("T")
THREAD_SECONDS = 20
"""A thread that ends the loop's executor needs less, on a machine however busy."""


class _VirtualSelector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:  # the end of an executor is awaited in a thread
            ready = super().select(THREAD_SECONDS)
            if not ready:
                raise RuntimeError("all tasks wait, and no timer or thread will wake them")
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop for tests that wait only for timers, not for sockets or threads."""

    def __init__(self) -> None:
        self._virtual_selector = _VirtualSelector()
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        return self._virtual_selector.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end on a virtual clock that starts at 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@contextmanager
def movable_time() -> Iterator[Callable[[float], None]]:
    """Provide a function that moves the running loop's clock forward by some seconds. Otherwise its time is real."""
    loop = asyncio.get_running_loop()
    real, moved = loop.time, [0.0]
    loop.time = lambda: real() + sum(moved)  # type: ignore[method-assign]
    try:
        yield moved.append
    finally:
        del loop.time


def put_retries_on_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tenacity measure time on the clock of the running loop."""
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time()))
