"""boto3 in 4 threads: ten messages per call, JSON, batch delete. It publishes with PublishBatch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from threading import Lock
from typing import Any

import boto3
from meter import ATTRIBUTES, BATCH, Job, Meter, cloudevent, split_range

THREADS = 4


def consume(sqs: Any, job: Job, meter: Meter) -> None:
    lock = Lock()

    def loop(_: int) -> None:
        while not meter.all_handled:
            answer = sqs.receive_message(QueueUrl=job.queue_url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=1)
            messages = answer.get("Messages", [])
            for message in messages:
                number = json.loads(message["Body"])["data"]["number"]
                with lock:
                    meter.count_handled(number)
            if messages:
                entries = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
                deleted = sqs.delete_message_batch(QueueUrl=job.queue_url, Entries=entries)
                with lock:
                    meter.count_settled(len(deleted.get("Successful", [])))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(loop, range(THREADS)))


def publish(sns: Any, topic_arn: str, numbers: range) -> None:
    def batch(sns: Any, batch: range) -> None:
        entries: list[Any] = [
            {"Id": str(i), "Message": cloudevent(numbers[n]), "MessageAttributes": ATTRIBUTES}
            for i, n in enumerate(batch)
        ]
        sns.publish_batch(TopicArn=topic_arn, PublishBatchRequestEntries=entries)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(batch, repeat(sns), split_range(len(numbers), BATCH)))


def main(job: Job) -> None:
    meter = Meter(job)
    client: Any = boto3.client("sqs" if job.mode == "consume" else "sns")
    if job.mode == "consume":
        consume(client, job, meter)
    else:
        publish(client, job.topic_arn, range(job.warm))
        meter.start()
        publish(client, job.topic_arn, range(job.warm, job.total))
    meter.stop()
    if job.mode != "consume" or meter.done:
        meter.report("boto3")


if __name__ == "__main__":
    main(Job.from_arguments())
