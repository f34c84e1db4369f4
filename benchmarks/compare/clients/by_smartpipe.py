"""smartpipe as users run it: a Worker with a service, typed events, routing, leases, heartbeats and batched deletes.

``SMARTPIPE_TRANSPORT`` selects the transport. With ``memory``, only the cost of smartpipe itself remains. With
``SYNC``, the handler is a sync function.
"""

from __future__ import annotations

import asyncio
import os
from threading import Lock
from typing import TYPE_CHECKING

import uvloop
from meter import CONCURRENT, Job, Meter, event, split_range
from pydantic import BaseModel

from smartpipe import Event, Publisher, Service, Topic, Worker
from smartpipe.cli.logs import configure
from smartpipe.settings import WorkerSettings
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from smartpipe.transports.open import open_transport
from smartpipe.worker.tuning import tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpipe.transport import Transport

IDLE_SECONDS = 30
IDLE_SETTLE_SECONDS = 2


class Customer(BaseModel):
    name: str
    email: str
    country: str


class Line(BaseModel):
    sku: str
    quantity: int
    cents: int


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    number: int
    order_id: str
    customer: Customer
    lines: list[Line]
    total_cents: int
    note: str


def create_worker(service: Service, transport: Transport, *, wait_seconds: int) -> Worker:
    """Create a worker as ``smartpipe worker`` does. ``SMARTPIPE_CONCURRENCY`` is in the environment."""
    return Worker(service, transport, WorkerSettings.load(wait_seconds=wait_seconds, host="127.0.0.1", port=0))


def subscribe_async(service: Service, meter: Meter, stop: Callable[[], None]) -> None:
    @service.subscribe(OrderPlaced)
    async def handle(placed: OrderPlaced) -> None:
        meter.count_handled(placed.number)
        if meter.all_handled:
            stop()


def subscribe_sync(service: Service, meter: Meter, stop: Callable[[], None]) -> None:
    """Count the events in threads, as most teams would."""
    loop, lock = asyncio.get_running_loop(), Lock()

    @service.subscribe(OrderPlaced)
    def handle(placed: OrderPlaced) -> None:
        with lock:
            meter.count_handled(placed.number)
            if meter.all_handled:
                loop.call_soon_threadsafe(stop)


async def consume(transport: Transport, job: Job) -> Meter:
    tune_garbage_collector()  # as `smartpipe worker` does
    meter = Meter(job)
    service = Service("shop")
    subscribe = subscribe_sync if "SYNC" in os.environ else subscribe_async
    subscribe(service, meter, lambda: worker.stop("all messages are handled"))
    if isinstance(transport, MemoryTransport):
        transport.apply(derive([service], NAMING))
        async with Publisher("bench", transport=transport) as publisher:
            await publisher.publish_many([OrderPlaced.model_validate(event(number)) for number in range(job.total)])
    worker = create_worker(service, transport, wait_seconds=1)
    code = await worker.run()
    meter.stop()
    if code:
        msg = "the worker did not drain cleanly: a delete got no response"
        raise RuntimeError(msg)
    return meter


async def publish(transport: Transport, job: Job) -> Meter:
    events = [OrderPlaced.model_validate(event(number)) for number in range(job.total)]
    meter = Meter(job)
    async with Publisher("bench", transport=transport) as publisher:
        await publisher.publish_many(events[: job.warm])
        meter.start()
        await publisher.publish_many(events[job.warm :])
        meter.stop()
    return meter


async def publish_single(transport: Transport, job: Job) -> Meter:
    events = [OrderPlaced.model_validate(event(number)) for number in range(job.total)]
    meter = Meter(job)
    async with Publisher("bench", transport=transport) as publisher:
        for numbers in split_range(job.total, CONCURRENT):
            if numbers.start == job.warm:
                meter.start()
            await asyncio.gather(*(publisher.publish(events[number]) for number in numbers))
        meter.stop()
    return meter


async def idle(transport: Transport, job: Job) -> Meter:
    """Poll an empty queue with 20-second polls."""
    service = Service("shop")

    @service.subscribe(OrderPlaced)
    async def handle(placed: OrderPlaced) -> None: ...

    meter = Meter(job)
    running = asyncio.create_task(create_worker(service, transport, wait_seconds=20).run())
    await asyncio.sleep(IDLE_SETTLE_SECONDS)
    meter.start()
    await asyncio.sleep(IDLE_SECONDS)
    meter.stop()
    if running.done():
        running.result()
    return meter


WORK = {"consume": consume, "publish": publish, "publish-single": publish_single, "idle": idle}


async def main(job: Job) -> Meter:
    configure("info", "json")
    memory = os.environ.get("SMARTPIPE_TRANSPORT") == "memory"
    transport: Transport = MemoryTransport() if memory else open_transport()
    return await WORK[job.mode](transport, job)


if __name__ == "__main__":
    uvloop.run(main(Job.from_arguments())).report("aiobotocore", "uvloop")
