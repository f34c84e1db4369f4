"""A plan, an apply, a manual change, and a plan that shows this change."""

import asyncio
import os

import boto3

from smartpipe import EmbeddedBroker, Event, Queue, Service, Topic
from smartpipe.testing import planned, provision


class UserSignedUp(Event, topic=Topic("users"), type="user.signed_up", version="1.0"):
    name: str


service = Service("mailer", queue=Queue("mailer", visibility_timeout_seconds=60, tags={"team": "growth"}))


@service.subscribe(UserSignedUp)
async def welcome(event: UserSignedUp) -> None: ...


async def main() -> None:
    print("plan:", *await planned(service), sep="\n  ")
    await provision(service)
    print("after apply:", await planned(service) or "nothing to change")

    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName="mailer")["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "5"})
    print("after a manual change:", *await planned(service), sep="\n  ")


if __name__ == "__main__":
    with EmbeddedBroker() as broker:
        os.environ.update(broker.environment)
        asyncio.run(main())
