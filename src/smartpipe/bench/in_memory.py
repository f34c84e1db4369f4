"""Run a benchmark in this process, on topics and queues in memory: it measures the cost of smartpipe itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from smartpipe.bench.fanout import build_services
from smartpipe.bench.producer import Producer
from smartpipe.bench.run import Reports, RunProgress
from smartpipe.bench.worker import BenchWorker
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import ProducerReport

CHECK_SECONDS = 0.01
PROGRESS_SECONDS = 0.1
TRANSPORT_NAME = "memory"


class InMemoryRun:
    """Publishes and handles events on one event loop.

    Without a rate, it publishes all events before it handles them. Otherwise the CPU time of the two sides could not be
    separated.

    Args:
        on_progress: Called every 0.1 s.
    """

    def __init__(self, load: Load, on_progress: Callable[[RunProgress], None]) -> None:
        self._load = load
        self._on_progress = on_progress
        self._transport = MemoryTransport()
        self._transport.apply(derive(build_services(load), NAMING))
        self._producer = Producer(load, 0, self._transport, TRANSPORT_NAME)
        self._workers: list[BenchWorker] = []

    async def run(self) -> Reports:
        """Warm up, measure, and return the reports."""
        reporting = asyncio.create_task(self._report_progress())
        try:
            self._start()
            await self._producer.warm_up()
            await self._wait_for(lambda: sum(worker.handled.warm for worker in self._workers), self._load.warmup)
            published = await (self._publish_first() if self._load.rate_per_second is None else self._run_both())
            handled = [await worker.drain() for worker in self._workers]
            return Reports([published], handled)
        finally:
            reporting.cancel()
            for worker in self._workers:
                worker.stop()
            await asyncio.gather(*(worker.task for worker in self._workers), return_exceptions=True)
            await self._producer.aclose()

    async def _publish_first(self) -> ProducerReport:
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(worker.task for worker in self._workers))
        published = await self._producer.publish(time.monotonic())
        self._start()
        for worker in self._workers:
            worker.measure()
        await self._wait_until_handled()
        return published

    async def _run_both(self) -> ProducerReport:
        for worker in self._workers:
            worker.measure()
        published = await self._producer.publish(time.monotonic())
        await self._wait_until_handled()
        return published

    def _start(self) -> None:
        self._workers = [
            BenchWorker(self._load, queue, self._transport, TRANSPORT_NAME) for queue in range(1, self._load.queues + 1)
        ]

    async def _wait_until_handled(self) -> None:
        await self._wait_for(lambda: self._handled, self._load.events)

    async def _wait_for(self, count: Callable[[], int], events: int) -> None:
        """Wait until *count* reaches *events* for every queue, or has not changed for ``patience_seconds``."""
        before, since = -1, time.monotonic()
        while (now := count()) < events * self._load.queues:
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > self._load.patience_seconds:
                return
            await asyncio.sleep(CHECK_SECONDS)

    @property
    def _handled(self) -> int:
        return sum(worker.handled.distinct for worker in self._workers)

    async def _report_progress(self) -> None:
        while True:
            self._on_progress(RunProgress("measuring", self._producer.done, self._handled))
            await asyncio.sleep(PROGRESS_SECONDS)
