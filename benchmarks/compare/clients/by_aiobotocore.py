"""The bare loop that all others are held against: 8 tasks, ten messages to a call, JSON, batch delete, uvloop.

No validation, no retry, no heartbeat, no routing: what one writes in an afternoon.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from meter import ATTRIBUTES, BATCH, TASKS, TOGETHER, Job, Meter, cloudevent, slices


async def consume(sqs: Any, job: Job) -> Meter:
    """Drain the queue."""
    meter = Meter(job)

    async def loop() -> None:
        while not meter.all_handled:
            answer = await sqs.receive_message(QueueUrl=job.queue_url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=1)
            messages = answer.get("Messages", [])
            for message in messages:
                meter.handled(json.loads(message["Body"])["data"]["number"])
            if messages:
                entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
                await sqs.delete_message_batch(QueueUrl=job.queue_url, Entries=entries)

    await asyncio.gather(*(loop() for _ in range(TASKS)))
    meter.stop()
    return meter


async def publish(sns: Any, job: Job) -> Meter:
    """PublishBatch, ten events to a call, 8 calls at once."""
    meter = Meter(job)
    await publish_range(sns, job.topic_arn, range(job.warm))
    meter.start()
    await publish_range(sns, job.topic_arn, range(job.warm, job.total))
    meter.stop()
    return meter


async def publish_range(sns: Any, topic_arn: str, numbers: range) -> None:
    batches = iter(slices(len(numbers), BATCH))

    async def loop() -> None:
        for batch in batches:
            entries: list[Any] = [
                {"Id": str(i), "Message": cloudevent(numbers[n]), "MessageAttributes": ATTRIBUTES}
                for i, n in enumerate(batch)
            ]
            await sns.publish_batch(TopicArn=topic_arn, PublishBatchRequestEntries=entries)

    await asyncio.gather(*(loop() for _ in range(TASKS)))


async def publish_single(sns: Any, job: Job) -> Meter:
    """A Publish each, 100 at once."""
    meter = Meter(job)
    for together in slices(job.total, TOGETHER):
        if together.start == job.warm:
            meter.start()
        one = partial(sns.publish, TopicArn=job.topic_arn, MessageAttributes=ATTRIBUTES)
        await asyncio.gather(*(one(Message=cloudevent(number)) for number in together))
    meter.stop()
    return meter


WORK = {"consume": consume, "publish": publish, "publish-single": publish_single}


async def main(job: Job) -> Meter:
    name = "sqs" if job.what == "consume" else "sns"
    config = AioConfig(max_pool_connections=TOGETHER)
    async with get_session().create_client(name, config=config) as client:
        return await WORK[job.what](client, job)


if __name__ == "__main__":
    uvloop.run(main(Job.given())).report("aiobotocore", "uvloop")
