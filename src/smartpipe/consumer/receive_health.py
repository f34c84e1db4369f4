"""Tracks whether receive calls of a queue succeed, and waits after one that failed."""

from __future__ import annotations

import asyncio
import logging

from smartpipe.errors import SmartpipeError, TransportError
from smartpipe.retry import OUTAGE_WAITS, backoff_seconds

log = logging.getLogger("smartpipe.poller")


class ReceiveHealth:
    """The health of one queue's receive calls. It logs the first failure, a different failure, and the recovery.

    ``succeeded_at`` is the event loop's time of the last success, None before the first call.
    """

    def __init__(self, queue: str) -> None:
        self.succeeded_at: float | None = None
        self.failing = False
        self._queue = queue
        self._code = ""
        self._failures = 0

    def recover(self) -> None:
        """Record that a call has succeeded after others had failed."""
        log.info("Receiving from queue %s again after %d failed calls", self._queue, self._failures)
        self.failing, self._code, self._failures = False, "", 0

    async def back_off(self, error: Exception, stopping: asyncio.Event) -> None:
        """Log *error* if it differs from the last one, and wait: with full jitter, at most 30 s or until *stopping*."""
        if stopping.is_set():
            return
        self._failures += 1
        code = error.code if isinstance(error, TransportError) else type(error).__name__
        if not self.failing or code != self._code:
            self.failing, self._code = True, code
            unexpected = None if isinstance(error, SmartpipeError) else error
            log.error("Cannot receive from queue %s, retrying: %s", self._queue, error, exc_info=unexpected)
        try:
            async with asyncio.timeout(backoff_seconds(OUTAGE_WAITS, self._failures, error)):
                await stopping.wait()
        except TimeoutError:
            return
