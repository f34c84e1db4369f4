"""tomodachi: a service with its JSON envelope; ten messages per receive call, deleted one by one; uvloop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import tomodachi
import uvloop
from meter import CONCURRENT, Job, Meter, event, split_range
from tomodachi.envelope import JsonBase
from tomodachi.launcher import ServiceLauncher
from tomodachi.transport.aws_sns_sqs import AWSSNSSQSTransport

JOB = Job.from_arguments()
METER = Meter(JOB)
ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
TOPIC = JOB.topic_arn.rpartition(":")[2]


def report() -> None:
    METER.stop()
    METER.report("tomodachi", "aiobotocore", "uvloop")


class Service(tomodachi.Service):
    name = "shop"
    message_envelope = JsonBase
    options = tomodachi.Options(
        aws_sns_sqs=tomodachi.Options.AWSSNSSQS(
            region_name=os.environ["AWS_REGION"], aws_access_key_id="local", aws_secret_access_key="local"
        ),
        aws_endpoint_urls=tomodachi.Options.AWSEndpointURLs(sns=ENDPOINT, sqs=ENDPOINT),
    )

    if JOB.mode == "consume":

        @tomodachi.aws_sns_sqs(TOPIC, queue_name=JOB.queue_name)
        async def handle(self, data: Any) -> None:
            METER.count_handled(data["number"])

    else:

        async def _started_service(self) -> None:
            for numbers in split_range(JOB.total, CONCURRENT):
                if numbers.start == JOB.warm:
                    METER.start()
                calls = (tomodachi.aws_sns_sqs_publish(self, event(number), topic=TOPIC) for number in numbers)
                await asyncio.gather(*calls)
            report()


def count_deletes() -> None:
    """Count each response to a delete."""
    delete = AWSSNSSQSTransport.delete_message

    async def delete_message(*arguments: Any, **named: Any) -> None:
        await delete(*arguments, **named)
        METER.count_settled()
        if METER.done:
            report()

    AWSSNSSQSTransport.delete_message = delete_message


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    script = Path(__file__).resolve()
    os.chdir(script.parent)  # tomodachi looks for services there
    ServiceLauncher.run_until_complete({script.name})
else:  # the launcher imports this file again, and runs the service of that module
    count_deletes()
