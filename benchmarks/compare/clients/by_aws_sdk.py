"""AWS's asyncio SDK made with Smithy, a preview: the same loop as that of aiobotocore, on aiohttp and uvloop."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from typing import Any

import uvloop
from aws_sdk_sns.client import AsyncSNSClient
from aws_sdk_sns.config import AsyncSNSConfig
from aws_sdk_sns.models import MessageAttributeValue, PublishBatchInput, PublishBatchRequestEntry, PublishInput
from aws_sdk_sqs.client import AsyncSQSClient
from aws_sdk_sqs.config import AsyncSQSConfig
from aws_sdk_sqs.models import DeleteMessageBatchInput, DeleteMessageBatchRequestEntry, ReceiveMessageInput
from meter import BATCH, CONCURRENT, EVENT_TYPE, TASKS, Job, Meter, cloudevent, split_range


async def consume(sqs: Any, job: Job) -> Meter:
    """Receive, handle and delete all messages."""
    meter = Meter(job)
    request = ReceiveMessageInput(queue_url=job.queue_url, max_number_of_messages=BATCH, wait_time_seconds=1)

    async def loop() -> None:
        while not meter.all_handled:
            messages = (await sqs.receive_message(request)).messages or []
            for message in messages:
                meter.count_handled(json.loads(message.body)["data"]["number"])
            if messages:
                entries = [
                    DeleteMessageBatchRequestEntry(id=str(i), receipt_handle=m.receipt_handle)
                    for i, m in enumerate(messages)
                ]
                await sqs.delete_message_batch(DeleteMessageBatchInput(queue_url=job.queue_url, entries=entries))

    await asyncio.gather(*(loop() for _ in range(int(os.environ.get("TASKS", TASKS)))))
    meter.stop()
    return meter


def build_attributes() -> dict[str, MessageAttributeValue]:
    return {"type": MessageAttributeValue(data_type="String", string_value=EVENT_TYPE)}


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
            entries = [
                PublishBatchRequestEntry(
                    id=str(i), message=cloudevent(numbers[n]), message_attributes=build_attributes()
                )
                for i, n in enumerate(batch)
            ]
            await sns.publish_batch(PublishBatchInput(topic_arn=topic_arn, publish_batch_request_entries=entries))

    await asyncio.gather(*(loop() for _ in range(TASKS)))


async def publish_single(sns: Any, job: Job) -> Meter:
    """Publish each event with its own call, 100 calls concurrently."""
    meter = Meter(job)
    build = partial(PublishInput, topic_arn=job.topic_arn)
    for chunk in split_range(job.total, CONCURRENT):
        if chunk.start == job.warm:
            meter.start()
        calls = (
            sns.publish(build(message=cloudevent(number), message_attributes=build_attributes())) for number in chunk
        )
        await asyncio.gather(*calls)
    meter.stop()
    return meter


WORK = {"consume": consume, "publish": publish, "publish-single": publish_single}


async def main(job: Job) -> Meter:
    options = {"endpoint_uri": os.environ["AWS_ENDPOINT_URL"], "region": os.environ["AWS_REGION"]}
    if job.mode == "consume":
        client = AsyncSQSClient(await AsyncSQSConfig.resolve(**options))
    else:
        client = AsyncSNSClient(await AsyncSNSConfig.resolve(**options))
    return await WORK[job.mode](client, job)


if __name__ == "__main__":
    package = "aws-sdk-sqs" if Job.from_arguments().mode == "consume" else "aws-sdk-sns"
    uvloop.run(main(Job.from_arguments())).report(package, "uvloop")
