"""fanferro, whose core is written in Rust: a typed handler, its plain JSON bodies, deletes in batches; uvloop."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import fanferro
import uvloop
from meter import CONCURRENT, EVENT_TYPE, Job, Meter, event, split_range
from pydantic import BaseModel

BATCH_CALL = 1_000
CONCURRENCY = int(os.environ.get("CONCURRENCY", "80"))
ASSUME = fanferro.Provisioning.existing()


class Customer(BaseModel):
    name: str
    email: str
    country: str


class Line(BaseModel):
    sku: str
    quantity: int
    cents: int


@fanferro.message_type(EVENT_TYPE)
class OrderPlaced(BaseModel):
    number: int
    order_id: str
    customer: Customer
    lines: list[Line]
    total_cents: int
    note: str


async def consume(client: Any, job: Job) -> Meter:
    meter, done = Meter(job), asyncio.Event()
    consumer = client.consumer(client.queue(job.queue_name), concurrency=CONCURRENCY, wait_time=1)

    @consumer.route(OrderPlaced)
    async def handle(placed: OrderPlaced) -> None:
        meter.count_handled(placed.number)
        if meter.all_handled:
            done.set()

    async with client:
        await consumer.start()
        await done.wait()
        await consumer.stop()
        meter.stop()
    return meter


async def publish(client: Any, job: Job) -> Meter:
    events = [OrderPlaced.model_validate(event(number)) for number in range(job.total)]
    topic, meter = client.topic(job.topic_arn.rpartition(":")[2]), Meter(job)
    async with client:
        await topic.publish_batch(events[: job.warm])
        meter.start()
        for numbers in split_range(job.total - job.warm, BATCH_CALL):
            await topic.publish_batch([events[job.warm + number] for number in numbers])
        meter.stop()
    return meter


async def publish_single(client: Any, job: Job) -> Meter:
    events = [OrderPlaced.model_validate(event(number)) for number in range(job.total)]
    topic, meter = client.topic(job.topic_arn.rpartition(":")[2]), Meter(job)
    async with client:
        for numbers in split_range(job.total, CONCURRENT):
            if numbers.start == job.warm:
                meter.start()
            await asyncio.gather(*(topic.publish(events[number]) for number in numbers))
        meter.stop()
    return meter


WORK = {"consume": consume, "publish": publish, "publish-single": publish_single}


async def main(job: Job) -> Meter:
    client = fanferro.Client(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"], account_id="000000000000", source="bench", provisioning=ASSUME
    )
    return await WORK[job.mode](client, job)


if __name__ == "__main__":
    uvloop.run(main(Job.from_arguments())).report("fanferro", "uvloop")
