"""One run in this process, on topics and queues in memory: what smartpipe itself costs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from smartpipe.bench.fanout import services_of
from smartpipe.bench.handling import Handling
from smartpipe.bench.producing import Producer
from smartpipe.bench.run import Reports, Standing
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.bench.load import Load
    from smartpipe.bench.messages import Published

LOOK_SECONDS = 0.01
WATCH_SECONDS = 0.1


class InMemory:
    """Publishes and handles on one event loop.

    Without a rate everything is published first and handled afterwards, as CPU time on one loop cannot be told
    apart otherwise.
    """

    def __init__(self, load: Load, watch: Callable[[Standing], None]) -> None:
        self._load = load
        self._watch = watch
        self._transport = MemoryTransport()
        self._transport.apply(derive(services_of(load), NAMING))
        self._producer = Producer(load, 0, self._transport)
        self._workers: list[Handling] = []

    async def run(self) -> Reports:
        """Warm up, measure, and report."""
        watching = asyncio.create_task(self._keep_watching())
        try:
            self._start()
            await self._producer.warm_up()
            await self._until(lambda: sum(one.ledger.warm for one in self._workers), self._load.warmup)
            published = await (self._in_turn() if self._load.rate_per_second is None else self._at_once())
            handled = [await worker.report() for worker in self._workers]
            return Reports([published], handled)
        finally:
            watching.cancel()
            for worker in self._workers:
                worker.stop()
            await asyncio.gather(*(worker.running for worker in self._workers), return_exceptions=True)
            await self._producer.aclose()

    async def _in_turn(self) -> Published:
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(worker.running for worker in self._workers))
        published = await self._producer.produce(time.monotonic())
        self._start()
        for worker in self._workers:
            worker.measure()
        await self._until_handled()
        return published

    async def _at_once(self) -> Published:
        for worker in self._workers:
            worker.measure()
        published = await self._producer.produce(time.monotonic())
        await self._until_handled()
        return published

    def _start(self) -> None:
        self._workers = [Handling(self._load, queue, self._transport) for queue in range(1, self._load.queues + 1)]

    async def _until_handled(self) -> None:
        await self._until(lambda: self._handled, self._load.events)

    async def _until(self, count: Callable[[], int], events: int) -> None:
        """Wait until each queue has so many, or nothing happens any more."""
        before, since = -1, time.monotonic()
        while (now := count()) < events * self._load.queues:
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > self._load.patience_seconds:
                return
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def _handled(self) -> int:
        return sum(worker.ledger.distinct for worker in self._workers)

    async def _keep_watching(self) -> None:
        while True:
            self._watch(Standing("measuring", self._producer.done, self._handled))
            await asyncio.sleep(WATCH_SECONDS)
