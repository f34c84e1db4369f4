"""tomodachi: a service with its JSON envelope; ten messages to a receive, deleted one by one; uvloop."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import tomodachi
import uvloop
from meter import TOGETHER, Job, Meter, event, slices
from tomodachi.envelope import JsonBase
from tomodachi.launcher import ServiceLauncher
from tomodachi.transport.aws_sns_sqs import AWSSNSSQSTransport

JOB = Job.given()
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

    if JOB.what == "consume":

        @tomodachi.aws_sns_sqs(TOPIC, queue_name=JOB.queue_name)
        async def handle(self, data: Any) -> None:
            METER.handled(data["number"])

    else:

        async def _started_service(self) -> None:
            for together in slices(JOB.total, TOGETHER):
                if together.start == JOB.warm:
                    METER.start()
                calls = (tomodachi.aws_sns_sqs_publish(self, event(number), topic=TOPIC) for number in together)
                await asyncio.gather(*calls)
            report()


def counting() -> None:
    """Note each answered delete."""
    delete = AWSSNSSQSTransport.delete_message

    async def delete_message(*arguments: Any, **named: Any) -> None:
        await delete(*arguments, **named)
        METER.settled()
        if METER.done:
            report()

    AWSSNSSQSTransport.delete_message = delete_message


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    here = Path(__file__).resolve()
    os.chdir(here.parent)  # where it looks for services
    ServiceLauncher.run_until_complete({here.name})
else:  # the launcher imports this file a second time, and that module is the one that works
    counting()
