"""A subscription without raw delivery: SNS puts the attributes of a message into the body of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import Delivery, Service
from smartpipe.envelope import encode, wrap
from smartpipe.message import Attribute
from smartpipe.testing import provision, working
from tests.support.events import ADA, UserSignedUp
from tests.support.topics import find_topic_arn
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe import EmbeddedBroker

# Without a binary attribute: ministack leaves it out of notifications, and moto fails to deliver it raw.
SENT = {
    "type": {"DataType": "String", "StringValue": "member.signed_up"},
    "weight": {"DataType": "Number", "StringValue": "7.5"},
    "labels": {"DataType": "String.Array", "StringValue": '["a","b"]'},
}
RECEIVED = {
    "type": Attribute("String", "member.signed_up"),
    "weight": Attribute("Number", "7.5"),
    "labels": Attribute("String.Array", '["a","b"]'),
}


@pytest.mark.parametrize("raw", ["true", "false"])
async def test_a_handler_sees_the_same_attributes_with_raw_delivery_and_without(
    broker: EmbeddedBroker, raw: str
) -> None:
    seen: list[Delivery] = []
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def record(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery)

    await provision(service)
    sns, topic = boto3.client("sns"), find_topic_arn("users")
    [subscription] = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    sns.set_subscription_attributes(
        SubscriptionArn=subscription["SubscriptionArn"], AttributeName="RawMessageDelivery", AttributeValue=raw
    )
    attributes: Any = SENT
    sns.publish(TopicArn=topic, Message=encode(wrap(ADA, source="test")), MessageAttributes=attributes)
    async with working(service):
        await until(lambda: seen)

    assert seen[0].event == ADA
    assert seen[0].attributes == RECEIVED
    assert ("TopicArn" in seen[0].message.body) == (raw == "false")
