"""The calls of AWS that change topics, queues and subscriptions, with their arguments and in their order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.errors import TransportError
from smartpipe.topology.aws import delivery
from smartpipe.topology.aws.calls import Denied, Reading
from smartpipe.topology.changes import Change
from smartpipe.topology.kinds import MESSAGES, SOURCES, SUBSCRIBERS
from smartpipe.topology.policy import build_statement, merge_statements
from tests.support.scripted_aws import (
    DEAD,
    FAR_TOPIC,
    LISTED,
    OTHER_TOPIC,
    QUEUE,
    SUBSCRIPTION,
    TAG_LIST,
    TOPIC,
    URL,
    aws_of,
    refusal,
)

if TYPE_CHECKING:
    from smartpipe.topology.changes import Action
    from smartpipe.topology.resources import Attributes

EXISTS = "Topic already exists with different attributes"


def change(action: Action, kind: str, *arns: str, before: Attributes | None = None, **attributes: Any) -> Change:
    return Change(action, kind, arns, attributes, before or {})


async def test_a_topic_is_created_without_the_attributes_that_have_their_defaults() -> None:
    aws = aws_of(list_tags_for_resource={"Tags": TAG_LIST})

    await delivery.create_topic(
        aws,
        change("create", "topic", TOPIC, FifoTopic="true", KmsMasterKeyId="", MaximumMessageSize="1", Tags={"a": "1"}),
    )

    assert aws.made("create_topic") == [
        {"Name": "users", "Attributes": {"FifoTopic": "true", "MaximumMessageSize": "1"}, "Tags": TAG_LIST}
    ]
    assert aws.methods == ["create_topic", "list_tags_for_resource"]


async def test_a_topic_that_exists_with_other_attributes_and_tags_gets_ours() -> None:
    aws = aws_of(create_topic=refusal("InvalidParameter", EXISTS))

    await delivery.create_topic(
        aws, change("create", "topic", TOPIC, FifoTopic="true", KmsMasterKeyId="k", Tags={"a": "1"})
    )

    assert aws.made("set_topic_attributes") == [
        {"TopicArn": TOPIC, "AttributeName": "KmsMasterKeyId", "AttributeValue": "k"}
    ]
    assert aws.made("tag_resource") == [{"ResourceArn": TOPIC, "Tags": TAG_LIST}] * 2


@pytest.mark.parametrize(
    "error", [refusal("InvalidParameter", "wrong"), refusal("InternalError", EXISTS), refusal("AccessDenied", EXISTS)]
)
async def test_a_topic_that_sns_refuses_is_an_error(error: Exception) -> None:
    aws = aws_of(create_topic=error)

    with pytest.raises(TransportError):
        await delivery.create_topic(aws, change("create", "topic", TOPIC, Tags={}))

    assert aws.methods == ["create_topic"]


async def test_an_update_of_a_topic_has_one_call_for_each_attribute_and_one_for_its_tags() -> None:
    aws = aws_of()

    await delivery.update_topic(aws, change("update", "topic", TOPIC, KmsMasterKeyId="k", DataProtection={"a": 1}))
    await delivery.update_topic(aws, change("update", "topic", TOPIC, Tags={"a": "1"}))

    assert aws.calls == [
        ("set_topic_attributes", {"TopicArn": TOPIC, "AttributeName": "KmsMasterKeyId", "AttributeValue": "k"}),
        ("set_topic_attributes", {"TopicArn": TOPIC, "AttributeName": "DataProtection", "AttributeValue": '{"a": 1}'}),
        ("tag_resource", {"ResourceArn": TOPIC, "Tags": TAG_LIST}),
    ]


@pytest.mark.parametrize(("known", "is_deleted"), [([QUEUE], True), ([QUEUE, DEAD], True), ([], False)])
async def test_a_topic_is_deleted_unless_others_have_subscribed_meanwhile(known: list[str], is_deleted: bool) -> None:
    aws = aws_of(list_subscriptions_by_topic={"Subscriptions": [LISTED]})
    one = change("delete", "topic", TOPIC, before={SUBSCRIBERS: known})

    if is_deleted:
        await delivery.delete_topic(aws, one)
        assert aws.made("delete_topic") == [{"TopicArn": TOPIC}]
        return
    with pytest.raises(TransportError) as raised:
        await delivery.delete_topic(aws, one)
    assert (raised.value.code, raised.value.retryable) == ("TopicInUse", False)
    assert raised.value.detail == "topic users has new subscribers (mailer) and was not deleted"
    assert aws.made("delete_topic") == []


async def test_a_topic_whose_subscriptions_cannot_be_listed_is_not_deleted() -> None:
    aws = aws_of(list_subscriptions_by_topic=refusal("AccessDenied"))

    with pytest.raises(Denied):
        await delivery.delete_topic(aws, change("delete", "topic", TOPIC, before={SUBSCRIBERS: []}))

    assert aws.made("delete_topic") == []


async def test_a_queue_is_created_without_the_attributes_that_have_their_defaults() -> None:
    aws = aws_of()

    await delivery.create_queue(
        aws,
        change("create", "queue", QUEUE, DelaySeconds="0", RedrivePolicy={"a": 1}, KmsMasterKeyId="", Tags={"a": "1"}),
    )

    assert aws.made("create_queue") == [
        {"QueueName": "mailer", "Attributes": {"RedrivePolicy": '{"a": 1}'}, "tags": {"a": "1"}}
    ]
    assert aws.forgotten == [QUEUE]
    assert aws.methods == ["create_queue"]


async def test_a_queue_under_a_kms_key_does_not_use_the_keys_of_sqs() -> None:
    aws = aws_of()

    await delivery.create_queue(aws, change("create", "queue", QUEUE, KmsMasterKeyId="k", Tags={}))

    assert aws.made("create_queue")[0]["Attributes"] == {"KmsMasterKeyId": "k", "SqsManagedSseEnabled": "false"}


@pytest.mark.parametrize("code", ["QueueNameExists", "QueueAlreadyExists"])
async def test_a_queue_that_exists_with_other_attributes_gets_ours_but_those_that_are_fixed(code: str) -> None:
    aws = aws_of(create_queue=refusal(code))

    await delivery.create_queue(
        aws, change("create", "queue", QUEUE, FifoQueue="true", DelaySeconds="5", Tags={"a": "1"})
    )

    assert aws.made("set_queue_attributes") == [{"QueueUrl": URL, "Attributes": {"DelaySeconds": "5"}}]
    assert aws.made("tag_queue") == [{"QueueUrl": URL, "Tags": {"a": "1"}}]
    assert aws.made("get_queue_attributes") == []


async def test_a_queue_that_sqs_refuses_is_an_error() -> None:
    aws = aws_of(create_queue=refusal("InvalidAttributeValue"))

    with pytest.raises(TransportError):
        await delivery.create_queue(aws, change("create", "queue", QUEUE, Tags={}))

    assert aws.methods == ["create_queue"]


async def test_an_update_of_tags_sets_no_attributes() -> None:
    aws = aws_of()

    await delivery.update_queue(aws, change("update", "queue", QUEUE, Tags={"a": "1"}))

    assert aws.methods == ["queue_url", "tag_queue"]


async def test_a_policy_keeps_the_statements_that_others_added_meanwhile() -> None:
    theirs = json.dumps({"Version": "2012-10-17", "Statement": [{"Sid": "theirs"}]})
    ours = build_statement(QUEUE, [TOPIC])
    aws = aws_of(get_queue_attributes={"Attributes": {"Policy": theirs}})

    await delivery.update_queue(aws, change("update", "queue", QUEUE, Policy=merge_statements(None, ours)))

    assert aws.made("get_queue_attributes") == [{"QueueUrl": URL, "AttributeNames": ["Policy"]}]
    [call] = aws.made("set_queue_attributes")
    assert call["Attributes"] == {"Policy": merge_statements(theirs, ours)}
    assert aws.made("tag_queue") == []


@pytest.mark.parametrize(("count", "is_deleted"), [(2, True), (3, True), (4, False), (1_000, False)])
async def test_a_queue_is_deleted_unless_it_has_more_messages_than_in_the_plan(count: int, is_deleted: bool) -> None:
    aws = aws_of(get_queue_attributes={"Attributes": {"ApproximateNumberOfMessages": str(count)}})
    one = change("delete", "queue", QUEUE, before={MESSAGES: 3})

    if is_deleted:
        await delivery.delete_queue(aws, one)
        assert aws.made("delete_queue") == [{"QueueUrl": URL}]
        assert aws.forgotten == [QUEUE]
        return
    with pytest.raises(TransportError) as raised:
        await delivery.delete_queue(aws, one)
    assert (raised.value.code, raised.value.retryable) == ("QueueNotEmpty", False)
    assert raised.value.detail == (
        f"queue mailer now holds about {count:,} messages and was not deleted: make a new plan"
    )
    assert (aws.made("delete_queue"), aws.forgotten) == ([], [])


async def test_without_a_number_of_messages_a_queue_is_deleted_in_any_case() -> None:
    aws = aws_of()

    await delivery.delete_queue(aws, change("delete", "queue", QUEUE))

    assert aws.methods == ["queue_url", "delete_queue"]


@pytest.mark.parametrize(("known", "is_deleted"), [([QUEUE], True), ([], False)])
async def test_a_dead_letter_queue_is_deleted_unless_other_queues_use_it_meanwhile(
    known: list[str], is_deleted: bool
) -> None:
    aws = aws_of(list_dead_letter_source_queues={"queueUrls": [URL]})
    one = change("delete", "queue", DEAD, before={SOURCES: known})

    if is_deleted:
        await delivery.delete_queue(aws, one)
        assert len(aws.made("delete_queue")) == 1
        return
    with pytest.raises(TransportError) as raised:
        await delivery.delete_queue(aws, one)
    assert (raised.value.code, raised.value.retryable) == ("QueueInUse", False)
    assert raised.value.detail == "queue mailer-dlq is now the dead-letter queue of mailer and was not deleted"
    assert aws.made("delete_queue") == []


async def test_a_broker_that_cannot_list_the_sources_has_none() -> None:
    aws = aws_of(list_dead_letter_source_queues=refusal("UnknownOperation"))

    await delivery.delete_queue(aws, change("delete", "queue", DEAD, before={SOURCES: []}))

    assert len(aws.made("delete_queue")) == 1


async def test_all_pages_of_the_sources_are_read() -> None:
    pages = [{"queueUrls": [URL], "NextToken": "n"}, {"queueUrls": [URL + "2"]}]
    aws = aws_of(list_dead_letter_source_queues=pages)

    found = await delivery.list_dead_letter_sources(Reading(aws), DEAD)

    assert found == [QUEUE, QUEUE + "2"]
    dead_url = URL + "-dlq"
    assert aws.made("list_dead_letter_source_queues") == [
        {"QueueUrl": dead_url, "MaxResults": 1_000},
        {"QueueUrl": dead_url, "MaxResults": 1_000, "NextToken": "n"},
    ]


async def test_sources_that_iam_refuses_to_list_are_not_known() -> None:
    aws = aws_of(list_dead_letter_source_queues=refusal("AccessDenied"))

    assert await delivery.list_dead_letter_sources(Reading(aws), DEAD) is None


def present(**attributes: str) -> dict[str, Any]:
    return {"Attributes": attributes}


async def test_a_new_subscription_is_compared_with_the_one_that_sns_returned() -> None:
    wanted: dict[str, Any] = {
        "RawMessageDelivery": "true",
        "FilterPolicyScope": "MessageAttributes",
        "FilterPolicy": {"type": ["a"]},
    }
    aws = aws_of(
        list_subscriptions_by_topic={"Subscriptions": [LISTED]},
        get_subscription_attributes=present(RawMessageDelivery="false", FilterPolicy='{"type": ["a"]}'),
    )

    await delivery.create_subscription(aws, change("create", "subscription", TOPIC, QUEUE, **wanted))

    assert aws.made("subscribe") == [
        {
            "TopicArn": TOPIC,
            "Protocol": "sqs",
            "Endpoint": QUEUE,
            "Attributes": {"RawMessageDelivery": "true", "FilterPolicy": '{"type": ["a"]}'},
            "ReturnSubscriptionArn": True,
        }
    ]
    assert aws.made("set_subscription_attributes") == [
        {"SubscriptionArn": SUBSCRIPTION, "AttributeName": "RawMessageDelivery", "AttributeValue": "true"}
    ]


@pytest.mark.parametrize(
    ("error", "fails"),
    [
        (refusal("InvalidParameter", "Subscription already exists with different attributes"), False),
        (refusal("InvalidParameter", "wrong"), True),
    ],
)
async def test_a_subscription_that_exists_with_other_attributes_is_updated(error: Exception, fails: bool) -> None:
    aws = aws_of(
        subscribe=error, list_subscriptions_by_topic={"Subscriptions": [LISTED]}, get_subscription_attributes=present()
    )
    one = change("create", "subscription", TOPIC, QUEUE, RawMessageDelivery="true")

    if fails:
        with pytest.raises(TransportError):
            await delivery.create_subscription(aws, one)
    else:
        await delivery.create_subscription(aws, one)

    assert len(aws.made("set_subscription_attributes")) == (0 if fails else 1)


@pytest.mark.parametrize(
    "listed", [[], [{**LISTED, "SubscriptionArn": "PendingConfirmation"}], [{**LISTED, "TopicArn": OTHER_TOPIC}]]
)
async def test_a_subscription_that_sns_does_not_list_yet_is_tried_again(listed: list[Any]) -> None:
    aws = aws_of(list_subscriptions_by_topic={"Subscriptions": listed})

    with pytest.raises(TransportError) as raised:
        await delivery.update_subscription(aws, change("update", "subscription", TOPIC, QUEUE))

    assert (raised.value.code, raised.value.retryable) == ("NotFound", True)
    assert raised.value.detail == "SNS does not list subscription users → mailer yet"


@pytest.mark.parametrize(
    ("deployed", "wanted", "updates"),
    [
        ({}, {"RawMessageDelivery": "false", "FilterPolicyScope": "MessageAttributes"}, []),
        ({"FilterPolicy": '{"type": ["a"]}'}, {"FilterPolicy": {"type": ["b"]}}, [("FilterPolicy", '{"type": ["b"]}')]),
        (
            {"FilterPolicy": '{"type": ["a"]}'},
            {"FilterPolicyScope": "MessageBody", "FilterPolicy": {"type": ["a"], "data": {"x": [1]}}},
            [
                ("FilterPolicy", '{"type": ["a"]}'),
                ("FilterPolicyScope", "MessageBody"),
                ("FilterPolicy", '{"type": ["a"], "data": {"x": [1]}}'),
            ],
        ),
        (
            {"FilterPolicy": '{"type": ["a"]}'},
            {"FilterPolicyScope": "MessageBody", "RawMessageDelivery": "true"},
            [("FilterPolicy", '{"type": ["a"]}'), ("FilterPolicyScope", "MessageBody"), ("RawMessageDelivery", "true")],
        ),
        (
            {},
            {"FilterPolicyScope": "MessageBody", "FilterPolicy": {"data": ["x"]}},
            [("FilterPolicy", "{}"), ("FilterPolicyScope", "MessageBody"), ("FilterPolicy", '{"data": ["x"]}')],
        ),
    ],
)
async def test_while_the_scope_of_a_filter_changes_it_has_the_event_types_alone(
    deployed: dict[str, str], wanted: dict[str, Any], updates: list[tuple[str, str]]
) -> None:
    aws = aws_of(
        list_subscriptions_by_topic={"Subscriptions": [LISTED]}, get_subscription_attributes=present(**deployed)
    )

    await delivery.update_subscription(aws, change("update", "subscription", TOPIC, QUEUE, **wanted))

    made = aws.made("set_subscription_attributes")
    assert [(call["AttributeName"], call["AttributeValue"]) for call in made] == updates


async def test_a_subscription_is_deleted_by_its_arn_and_a_missing_one_is_deleted_already() -> None:
    aws = aws_of(list_subscriptions_by_topic=[{"Subscriptions": [LISTED]}, {}], get_subscription_attributes=present())

    for _ in range(2):
        await delivery.delete_subscription(aws, change("delete", "subscription", TOPIC, QUEUE))

    assert aws.made("unsubscribe") == [{"SubscriptionArn": SUBSCRIPTION}]


async def test_a_topic_elsewhere_is_asked_in_its_region() -> None:
    listed = {"TopicArn": FAR_TOPIC, "Endpoint": QUEUE, "SubscriptionArn": "arn:1"}
    aws = aws_of(list_subscriptions={"Subscriptions": [listed]}, get_subscription_attributes=present())

    await delivery.create_subscription(
        aws, change("create", "subscription", FAR_TOPIC, QUEUE, RawMessageDelivery="true")
    )

    assert {region for _, region in aws.clients} == {"us-east-1"}
    assert aws.methods == [
        "subscribe",
        "list_subscriptions",
        "get_subscription_attributes",
        "set_subscription_attributes",
    ]


async def test_a_subscription_that_iam_refuses_to_read_is_not_changed() -> None:
    aws = aws_of(
        list_subscriptions_by_topic={"Subscriptions": [LISTED]}, get_subscription_attributes=refusal("AccessDenied")
    )

    with pytest.raises(Denied):
        await delivery.delete_subscription(aws, change("delete", "subscription", TOPIC, QUEUE))
