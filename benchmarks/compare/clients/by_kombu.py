"""kombu's SQS transport, which Celery uses: ten messages per receive call, acknowledged one by one."""

from __future__ import annotations

import os
from typing import Any

from kombu import Connection, Consumer, Queue
from meter import BATCH, Job, Meter


def main(job: Job) -> None:
    meter = Meter(job)
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    options = {
        "is_secure": False,
        "region": os.environ["AWS_REGION"],
        "wait_time_seconds": 1,
        "predefined_queues": {
            job.queue_name: {"url": job.queue_url, "access_key_id": "local", "secret_access_key": "local"}
        },
    }

    def handle(body: Any, message: Any) -> None:
        meter.count_handled(body["number"])
        message.ack()  # returns after the response to the delete
        meter.count_settled()

    with Connection(f"sqs://local:local@{endpoint}//", transport_options=options) as connection:
        consumer = Consumer(connection, [Queue(job.queue_name)], callbacks=[handle], prefetch_count=BATCH)
        with consumer:
            while not meter.done:
                connection.drain_events(timeout=5)
            meter.stop()
            meter.report("kombu", "boto3")


if __name__ == "__main__":
    main(Job.from_arguments())
