"""One queue's worker: the real one, around a handler that only notes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.bench.counting import CountingTransport
from smartpipe.bench.fanout import Ledger, course, service_of
from smartpipe.bench.latencies import encoded, packed
from smartpipe.bench.messages import Handled
from smartpipe.settings import WorkerSettings
from smartpipe.worker.tuning import tune_garbage_collector
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from smartpipe.bench.load import Load
    from smartpipe.transport import Transport

WAIT_SECONDS = 1
"""Of a poll: the end of a run has to sit it out."""
DRAIN_SECONDS = 10.0
READY_EVERY_SECONDS = 0.01


class Handling:
    """Runs the worker of one queue, and knows what it took.

    Args:
        queue: Its number, from 1.
    """

    def __init__(self, load: Load, queue: int, transport: Transport) -> None:
        self.ledger = Ledger(load.events)
        self._queue = queue
        self._transport = CountingTransport(transport)
        settings = WorkerSettings.load(
            concurrency=load.concurrency,
            wait_seconds=WAIT_SECONDS,
            drain_seconds=DRAIN_SECONDS,
            host="127.0.0.1",
            port=0,
        )
        tune_garbage_collector()  # as the command does
        self._worker = Worker(service_of(queue, self.ledger), self._transport, settings)
        self.running = asyncio.create_task(self._worker.run())
        self._begun_at = 0.0
        self._cpu = 0.0

    async def ready(self) -> None:
        """Wait until it polls, or has ended. Not until it is ready: its first poll may have failed already."""
        while not self._worker.consumers and not self.running.done():  # noqa: ASYNC110 - a worker has no event for its start
            await asyncio.sleep(READY_EVERY_SECONDS)
        if self.running.done():
            await self.running

    def measure(self) -> None:
        """Count requests and CPU time from now on."""
        self._transport.reset()
        self._begun_at, self._cpu = time.monotonic(), time.process_time()

    def stop(self) -> None:
        """Begin to drain. Twice is once."""
        self._worker.stop("the run is over")

    async def report(self) -> Handled:
        """Drain, and report."""
        self.stop()
        await self.running
        cpu_seconds = time.process_time() - self._cpu  # what follows is only the report's
        ledger = self.ledger
        counts: Counter[str] = Counter()
        for consumer in self._worker.consumers:
            counts.update(consumer.counts.as_dict())
        return Handled(
            begun_at=self._begun_at,
            ended_at=max(ledger.handled_at, default=self._begun_at),
            cpu_seconds=cpu_seconds,
            transport=self._transport.name,
            requests=self._transport.requests,
            course=dict(course(ledger.handled_at)),
            queue=self._queue,
            seen=packed(ledger.seen),
            deliveries=ledger.deliveries,
            latencies=encoded(ledger.latencies_seconds),
            counts=dict(counts),
        )
