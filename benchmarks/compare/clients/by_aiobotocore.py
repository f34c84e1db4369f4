"""The bare loop that all clients are compared with: 8 tasks, ten messages per call, JSON, batch delete, uvloop.

``TASKS`` sets another number of tasks that consume.
It has no validation, no retries, no heartbeats and no routing: code for an afternoon.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from typing import Any

import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from meter import ATTRIBUTES, BATCH, CONCURRENT, TASKS, Job, Meter, cloudevent, split_range


async def consume(sqs: Any, job: Job) -> Meter:
    """Receive, handle and delete all messages."""
    meter = Meter(job)

    async def loop() -> None:
        while not meter.all_handled:
            answer = await sqs.receive_message(QueueUrl=job.queue_url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=1)
            messages = answer.get("Messages", [])
            for message in messages:
                meter.count_handled(json.loads(message["Body"])["data"]["number"])
            if messages:
                entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
                await sqs.delete_message_batch(QueueUrl=job.queue_url, Entries=entries)

    await asyncio.gather(*(loop() for _ in range(int(os.environ.get("TASKS", TASKS)))))
    meter.stop()
    return meter


async def publish(sns: Any, job: Job) -> Meter:
    """Publish with PublishBatch: ten events per call, and 8 concurrent calls."""
    meter = Meter(job)
    await publish_range(sns, job.topic_arn, range(job.warm))
    meter.start()
    await publish_range(sns, job.topic_arn, range(job.warm, job.total))
    meter.stop()
    return meter


async def publish_range(sns: Any, topic_arn: str, numbers: range) -> None:
    batches = iter(split_range(len(numbers), BATCH))

    async def loop() -> None:
        for batch in batches:
            entries: list[Any] = [
                {"Id": str(i), "Message": cloudevent(numbers[n]), "MessageAttributes": ATTRIBUTES}
                for i, n in enumerate(batch)
            ]
            await sns.publish_batch(TopicArn=topic_arn, PublishBatchRequestEntries=entries)

    await asyncio.gather(*(loop() for _ in range(TASKS)))


async def publish_single(sns: Any, job: Job) -> Meter:
    """Publish each event with its own call, 100 calls concurrently."""
    meter = Meter(job)
    for chunk in split_range(job.total, CONCURRENT):
        if chunk.start == job.warm:
            meter.start()
        one = partial(sns.publish, TopicArn=job.topic_arn, MessageAttributes=ATTRIBUTES)
        await asyncio.gather(*(one(Message=cloudevent(number)) for number in chunk))
    meter.stop()
    return meter


WORK = {"consume": consume, "publish": publish, "publish-single": publish_single}


async def main(job: Job) -> Meter:
    name = "sqs" if job.mode == "consume" else "sns"
    config = AioConfig(max_pool_connections=CONCURRENT)
    async with get_session().create_client(name, config=config) as client:
        return await WORK[job.mode](client, job)


if __name__ == "__main__":
    uvloop.run(main(Job.from_arguments())).report("aiobotocore", "uvloop")
