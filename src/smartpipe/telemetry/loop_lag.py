"""Measure how late the event loop runs its timers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from smartpipe.telemetry.families import Family, Sample
from smartpipe.telemetry.histograms import Histogram

if TYPE_CHECKING:
    from types import TracebackType

    from smartpipe.telemetry.families import Labels

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. A loop that is not busy is less than a few milliseconds late."""
EVERY_SECONDS = 0.5


class LoopLag:
    """Records how late a timer runs, every 0.5 s while it is entered. A blocked loop makes one late timer, not many."""

    def __init__(self) -> None:
        self.seconds = Histogram(LAG_BOUNDS)
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Start to measure the running loop."""
        self._schedule(asyncio.get_running_loop())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def collect(self, labels: Labels) -> Family:
        """Return the metric, with *labels*."""
        text = "Delay with which the event loop runs a timer, measured every 0.5 s."
        return Family("smartpipe_event_loop_lag_seconds", "histogram", text, [Sample(labels, self.seconds)])

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + EVERY_SECONDS
        self._timer = loop.call_at(due, self._record, loop, due)

    def _record(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self.seconds.record(max(0.0, loop.time() - due))
        self._schedule(loop)
