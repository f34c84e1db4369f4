"""Run the worker of one queue: the real worker, with a handler that only records events."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from smartpipe.bench.counting import CountingTransport
from smartpipe.bench.fanout import HandledEvents, build_service, count_ticks
from smartpipe.bench.latencies import encode_latencies, encode_seen
from smartpipe.bench.messages import WorkerReport
from smartpipe.settings import WorkerSettings
from smartpipe.worker.tuning import tune_garbage_collector
from smartpipe.worker.worker import Worker

if TYPE_CHECKING:
    from smartpipe.bench.load import Load
    from smartpipe.transport import Transport

WAIT_SECONDS = 1
"""The length of a long poll. The end of a run has to wait for the open poll."""
DRAIN_SECONDS = 10.0
POLL_CHECK_SECONDS = 0.01


class BenchWorker:
    """Runs the worker of one queue, and measures its requests and CPU time.

    Args:
        queue: The number of the queue, from 1.
        transport_name: The name of the transport in the report.
    """

    def __init__(self, load: Load, queue: int, transport: Transport, transport_name: str) -> None:
        self.handled = HandledEvents(load.events)
        self._queue = queue
        self._transport_name = transport_name
        self._transport = CountingTransport(transport)
        settings = WorkerSettings.load(
            concurrency=load.concurrency,
            wait_seconds=WAIT_SECONDS,
            drain_seconds=DRAIN_SECONDS,
            host="127.0.0.1",
            port=0,
        )
        tune_garbage_collector()  # as `smartpipe worker` does
        self._worker = Worker(build_service(queue, self.handled), self._transport, settings)
        self.task = asyncio.create_task(self._worker.run())
        self._begun_at = 0.0
        self._cpu_seconds = 0.0

    async def wait_until_polling(self) -> None:
        """Wait until the worker polls, and raise its error if it has ended.

        It does not wait until the worker is ready, because the first poll may have failed already.
        """
        while not self._worker.consumers and not self.task.done():  # noqa: ASYNC110 - a worker has no event for this
            await asyncio.sleep(POLL_CHECK_SECONDS)
        if self.task.done():
            await self.task

    def measure(self) -> None:
        """Start to count requests and CPU time."""
        self._transport.reset()
        self._begun_at, self._cpu_seconds = time.monotonic(), time.process_time()

    def stop(self) -> None:
        """Begin to drain. A second call does nothing."""
        self._worker.stop("the run is over")

    async def drain(self) -> WorkerReport:
        """Drain, and return the report."""
        self.stop()
        await self.task
        cpu_seconds = time.process_time() - self._cpu_seconds  # without the time to build the report
        handled = self.handled
        counts: Counter[str] = Counter()
        for consumer in self._worker.consumers:
            counts.update(consumer.counters.as_dict())
        return WorkerReport(
            begun_at=self._begun_at,
            ended_at=max(handled.handled_at, default=self._begun_at),
            cpu_seconds=cpu_seconds,
            transport=self._transport_name,
            requests=self._transport.requests,
            timeline=dict(count_ticks(handled.handled_at)),
            queue=self._queue,
            seen=encode_seen(handled.seen),
            deliveries=handled.deliveries,
            latencies=encode_latencies(handled.latencies_seconds),
            counts=dict(counts),
        )
