"""S3, EventBridge and other CloudEvents SDKs send to the queues of brokers, and raw handlers take their messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest
from pydantic import BaseModel

from smartpipe import Delivery, Service
from smartpipe.external import EventBridgeEvent, S3Notification
from smartpipe.testing import provision, working
from tests.conftest import lead_to
from tests.support.events import UserLeft
from tests.support.queues import Queues
from tests.support.topics import find_topic_arn
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker


class Payment(BaseModel):
    cents: int


def text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


@pytest.mark.parametrize("through_sns", [False, True], ids=["directly", "through SNS"])
async def test_notifications_of_s3_reach_their_handler_and_its_test_event_raises_no_alarm(
    fast_broker: EmbeddedBroker, queues: Queues, through_sns: bool
) -> None:
    service, seen = Service("uploads"), list[str]()

    @service.subscribe_raw(S3Notification)
    async def take(notification: S3Notification) -> None:
        seen.extend(f"{record.event_name} {record.key}" for record in notification.records)

    await provision(service)
    s3: Any = boto3.client("s3")
    sns: Any = boto3.client("sns")
    sqs: Any = boto3.client("sqs")
    url = queues.url("uploads")
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    bucket = f"photos-{uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    target = {"Events": ["s3:ObjectCreated:*"]}
    if through_sns:
        topic = sns.create_topic(Name=bucket)["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        configuration = {"TopicConfigurations": [{**target, "TopicArn": topic}]}
    else:
        configuration = {"QueueConfigurations": [{**target, "QueueArn": arn}]}
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
    s3.put_object(Bucket=bucket, Key="2026/photo.jpg", Body=b"x")
    queues.send("uploads", json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": bucket}))

    async with working(service):
        await until(lambda: seen and queues.depth("uploads") == (0, 0))

    assert seen == ["ObjectCreated:Put 2026/photo.jpg"]
    assert queues.depth("uploads-dlq") == (0, 0)


async def test_events_of_eventbridge_reach_their_handler(moto: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(moto.environment, monkeypatch)
    queues = Queues(boto3.client("sqs"))
    service, seen = Service("payments"), list[Any]()

    @service.subscribe_raw(EventBridgeEvent[Payment])
    async def take(event: EventBridgeEvent[Payment], delivery: Delivery) -> None:
        seen.append((event.detail.cents, event.detail_type, event.source, delivery.event_id == event.id))

    await provision(service)
    events: Any = boto3.client("events")
    sqs: Any = boto3.client("sqs")
    url = queues.url("payments")
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="payments", EventPattern=json.dumps({"source": ["com.example"]}))
    events.put_targets(Rule="payments", Targets=[{"Id": "queue", "Arn": arn}])
    entry = {"Source": "com.example", "DetailType": "Payment Received", "Detail": json.dumps({"cents": 42})}
    assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0

    async with working(service):
        await until(lambda: seen)

    assert seen == [(42, "Payment Received", "com.example", True)]


@pytest.mark.parametrize("raw", ["true", "false"])
async def test_a_cloudevent_in_binary_mode_passes_the_filter_policy_and_reaches_its_event_handler(
    broker: EmbeddedBroker, raw: str
) -> None:
    service, seen = Service("goodbye"), list[Any]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        seen.append((event.name, delivery.event_id, delivery.source, delivery.subject, delivery.extensions))

    await provision(service)
    sns: Any = boto3.client("sns")
    topic = find_topic_arn("users")
    [subscription] = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"], AttributeName="RawMessageDelivery", AttributeValue=raw
    )
    context = {"id": "7", "source": "/crm", "type": "user.left", "specversion": "1.0", "subject": "bob", "region": "eu"}
    attributes = {f"ce-{name}": text(value) for name, value in context.items()}
    sns.publish(
        TopicArn=topic,
        Message='{"name": "Bob"}',
        MessageAttributes={**attributes, "type": text("user.left"), "content-type": text("application/json")},
    )

    async with working(service):
        await until(lambda: seen)

    assert seen == [("Bob", "7", "/crm", "bob", {"region": "eu"})]
