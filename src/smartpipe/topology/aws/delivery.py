"""The calls of AWS that read, create, update and delete topics, queues and subscriptions.

Each change can be repeated, and two processes can make it concurrently. A resource that exists already, because another
process was faster or an earlier run was killed, is updated instead.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from smartpipe.errors import TransportError
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.names import account_in, is_arn, name_in, queue_arn_at, region_in
from smartpipe.topology.aws.calls import Reading, call_for, from_tag_list, to_tag_list
from smartpipe.topology.kinds import MESSAGES, SOURCES, SUBSCRIBERS
from smartpipe.topology.policy import find_our_statement, merge_statements, source_topics
from smartpipe.topology.resources import (
    QUEUE_DEFAULTS,
    SUBSCRIPTION_DEFAULTS,
    TAGS,
    TOPIC_DEFAULTS,
    Attributes,
    count_messages,
    omit_defaults,
)
from smartpipe.transports.aws.errors import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smartpipe.topology.changes import Change
    from smartpipe.topology.resources import Topology
    from smartpipe.transports.aws.session import AwsSession

MAX_SOURCES = 1_000
"""The largest page of ListDeadLetterSourceQueues."""
_JSON_ATTRIBUTES = frozenset({"FilterPolicy", "RedriveAllowPolicy", "RedrivePolicy"})
_FIXED = frozenset({"FifoQueue", "FifoTopic"})
"""Attributes that cannot be changed after the creation."""
_NAME_TAKEN = frozenset({"QueueNameExists", "QueueAlreadyExists"})
_REFUSED = frozenset({"InvalidParameter", "InvalidParameterValue"})


async def read_topic(reading: Reading, arn: str, desired: Topology) -> Attributes | None:
    """Return the attributes of a topic; an empty dict for an external one that IAM refuses to show."""
    sns = await reading.session.client("sns", region=region_in(arn))
    is_external = arn in desired.external
    get = partial(sns.get_topic_attributes, TopicArn=arn)
    found = await reading.call(get, "sns:GetTopicAttributes", arn, invalid_is_missing=is_external)
    if found is None:
        note = "cannot be read, because its owner does not allow it"
        return {} if is_external and reading.turn_denials_into_note(arn, note) else None
    attributes: Attributes = dict(found["Attributes"])
    if reading.with_tags and not is_external:
        attributes[TAGS] = await _read_topic_tags(reading, arn)
    return attributes


async def _read_topic_tags(reading: Reading, arn: str) -> dict[str, str]:
    sns = await reading.session.client("sns", region=region_in(arn))
    found = await reading.call(partial(sns.list_tags_for_resource, ResourceArn=arn), "sns:ListTagsForResource", arn)
    return from_tag_list((found or {}).get("Tags", []))


async def create_topic(session: AwsSession, change: Change) -> None:
    """Create a topic."""
    sns = await session.client("sns")
    [arn] = change.arns
    attributes = _to_texts(omit_defaults(_without_tags(change.attributes), TOPIC_DEFAULTS))
    tags = to_tag_list(change.attributes[TAGS])
    call = sns.create_topic(Name=name_in(arn), Attributes=attributes, Tags=tags)
    try:
        await call_for(change, call, "sns:CreateTopic")
    except TransportError as error:
        if not _exists_with_other_attributes(error):
            raise
        await update_topic(session, change)
    # An existing topic keeps its old tags, and some brokers ignore tags at the creation.
    if await _read_topic_tags(Reading(session), arn) != change.attributes[TAGS]:
        await call_for(change, sns.tag_resource(ResourceArn=arn, Tags=tags), "sns:TagResource")


async def update_topic(session: AwsSession, change: Change) -> None:
    """Set the attributes and tags that differ, with one call for each attribute."""
    sns = await session.client("sns")
    [arn] = change.arns
    for name, value in _to_texts(_changeable(_without_tags(change.attributes))).items():
        call = sns.set_topic_attributes(TopicArn=arn, AttributeName=name, AttributeValue=value)
        await call_for(change, call, "sns:SetTopicAttributes")
    if TAGS in change.attributes:
        call = sns.tag_resource(ResourceArn=arn, Tags=to_tag_list(change.attributes[TAGS]))
        await call_for(change, call, "sns:TagResource")


async def delete_topic(session: AwsSession, change: Change) -> None:
    """Delete a topic, unless others have subscribed since the plan was made.

    SNS may still list the subscriptions that were deleted a moment ago, so the endpoints in ``before`` do not count.
    """
    sns = await session.client("sns")
    [arn] = change.arns
    reading = Reading(session)
    endpoints = await _list_subscriptions(reading, arn)
    reading.raise_if_denied()
    if others := set(endpoints).difference(change.before[SUBSCRIBERS]):
        names = ", ".join(sorted(map(name_in, others)))
        detail = f"topic {change.name} has new subscribers ({names}) and was not deleted"
        raise TransportError("TopicInUse", detail, retryable=False)
    await call_for(change, sns.delete_topic(TopicArn=arn), "sns:DeleteTopic")


async def read_queue(reading: Reading, arn: str, _desired: Topology) -> Attributes | None:
    """Return the attributes of a queue."""
    sqs = await reading.session.client("sqs")
    url = await reading.call(partial(reading.session.addresses.queue_url, arn), "sqs:GetQueueUrl", arn)
    if url is None:
        return None
    get = partial(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=["All"])
    found = await reading.call(get, "sqs:GetQueueAttributes", arn)
    if found is None:
        return None
    attributes = _parse_json(found["Attributes"])
    if reading.with_tags:
        listed = await reading.call(partial(sqs.list_queue_tags, QueueUrl=url), "sqs:ListQueueTags", arn)
        attributes[TAGS] = dict((listed or {}).get("Tags", {}))
    return attributes


async def list_dead_letter_sources(reading: Reading, arn: str) -> list[str] | None:
    """Return the ARNs of the queues that use this one as their dead-letter queue; None if IAM refuses to list them."""
    sqs = await reading.session.client("sqs")
    url = await reading.session.addresses.queue_url(arn)
    urls: list[str] = []
    token: dict[str, Any] = {"MaxResults": MAX_SOURCES}
    while True:
        call = partial(sqs.list_dead_letter_source_queues, QueueUrl=url, **token)
        page = await reading.call(call, "sqs:ListDeadLetterSourceQueues", arn)
        if page is None:
            return None
        urls += page.get("queueUrls", [])
        if not page.get("NextToken"):
            return [queue_arn_at(url, arn) for url in urls]
        token = {"MaxResults": MAX_SOURCES, "NextToken": page["NextToken"]}


async def create_queue(session: AwsSession, change: Change) -> None:
    """Create a queue."""
    sqs = await session.client("sqs")
    [arn] = change.arns
    attributes = _to_texts(omit_defaults(_to_queue_attributes(change.attributes), QUEUE_DEFAULTS))
    session.addresses.forget_queue(arn)
    call = sqs.create_queue(QueueName=name_in(arn), Attributes=attributes, tags=change.attributes[TAGS])
    try:
        await call_for(change, call, "sqs:CreateQueue")
    except TransportError as error:
        if error.code not in _NAME_TAKEN:
            raise
        await update_queue(session, change)


async def update_queue(session: AwsSession, change: Change) -> None:
    """Set the attributes and tags that differ."""
    sqs = await session.client("sqs")
    url = await session.addresses.queue_url(change.arns[0])
    attributes = _to_texts(_changeable(_to_queue_attributes(change.attributes)))
    if "Policy" in attributes:
        # Others may have changed the policy since the plan was made, so read it again.
        get = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
        present = (await call_for(change, get, "sqs:GetQueueAttributes")).get("Attributes", {}).get("Policy")
        attributes["Policy"] = merge_statements(present, find_our_statement(attributes["Policy"]))
    if attributes:
        call = sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes)
        await call_for(change, call, "sqs:SetQueueAttributes")
    if TAGS in change.attributes:
        await call_for(change, sqs.tag_queue(QueueUrl=url, Tags=change.attributes[TAGS]), "sqs:TagQueue")


async def delete_queue(session: AwsSession, change: Change) -> None:
    """Delete a queue, unless it holds more messages than when the plan was made, or new queues redrive to it."""
    sqs = await session.client("sqs")
    [arn] = change.arns
    url = await session.addresses.queue_url(arn)
    if MESSAGES in change.before:
        get = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        count = count_messages((await call_for(change, get, "sqs:GetQueueAttributes"))["Attributes"])
        if count > change.before[MESSAGES]:
            detail = f"queue {change.name} now holds about {count:,} messages and was not deleted: make a new plan"
            raise TransportError("QueueNotEmpty", detail, retryable=False)
    if SOURCES in change.before:
        await _refuse_new_sources(session, change)
    await call_for(change, sqs.delete_queue(QueueUrl=url), "sqs:DeleteQueue")
    session.addresses.forget_queue(arn)


async def _refuse_new_sources(session: AwsSession, change: Change) -> None:
    """Raise an error if queues use this one as their dead-letter queue that did not when the plan was made.

    SQS may still list the source queues that were deleted a moment ago, so those in ``before`` do not count.
    """
    try:
        sources = await list_dead_letter_sources(Reading(session), change.arns[0])
    except TransportError as error:
        if error.retryable or error.code in MISSING:
            raise
        return  # a broker without this call
    if others := set(sources or ()).difference(change.before[SOURCES]):
        names = ", ".join(sorted(map(name_in, others)))
        detail = f"queue {change.name} is now the dead-letter queue of {names} and was not deleted"
        raise TransportError("QueueInUse", detail, retryable=False)


async def find_subscriptions(
    reading: Reading, desired: Topology, actual: Topology
) -> dict[tuple[str, str], Attributes]:
    """Return the subscriptions of all topics in *actual*.

    With tags, also those of topics that the policies of our queues allow: their subscriptions may be unwanted by now.
    Subscriptions that *desired* does not name have only their ARN.
    """
    allowed = [
        topic
        for arn in (desired.queues if reading.with_tags else ())
        for topic in source_topics(find_our_statement(actual.queues.get(arn, {}).get("Policy")) or {})
        if is_arn(topic) and not topic.endswith("*")
    ]
    subscribed = [topic for topic, _ in desired.subscriptions if topic in actual.topics]
    listed = await reading.each([*subscribed, *actual.topics, *allowed], partial(_list_subscriptions, reading))
    found: dict[tuple[str, str], Attributes] = {}

    async def read_one(topic: str, endpoint: str, arn: str) -> None:
        if (topic, endpoint) not in desired.subscriptions or endpoint in desired.external:
            found[topic, endpoint] = {"SubscriptionArn": arn}
        elif (attributes := await _read_subscription_attributes(reading, topic, arn)) is not None:
            found[topic, endpoint] = attributes

    await asyncio.gather(*(read_one(topic, *entry) for topic, by in listed.items() for entry in by.items()))
    return found


async def _read_subscription_attributes(reading: Reading, topic_arn: str, arn: str) -> Attributes | None:
    sns = await reading.session.client("sns", region=region_in(topic_arn))
    get = partial(sns.get_subscription_attributes, SubscriptionArn=arn)
    found = await reading.call(get, "sns:GetSubscriptionAttributes", "*")
    return None if found is None else _parse_json(found["Attributes"])


async def _list_subscriptions(reading: Reading, topic_arn: str) -> dict[str, str]:
    """Return the ARNs of the topic's confirmed subscriptions by endpoint.

    Of a topic in another account, SNS lists only the subscriptions that this account owns.
    """
    sns = await reading.session.client("sns", region=region_in(topic_arn))
    is_ours = account_in(topic_arn) == (await reading.session.addresses.naming()).account_id
    arns: dict[str, str] = {}
    token: dict[str, Any] = {}
    while True:
        if is_ours:
            call = partial(sns.list_subscriptions_by_topic, TopicArn=topic_arn, **token)
            page = await reading.call(call, "sns:ListSubscriptionsByTopic", topic_arn)
        else:
            page = await reading.call(partial(sns.list_subscriptions, **token), "sns:ListSubscriptions", "*")
        for entry in (page or {}).get("Subscriptions", []):
            if entry["TopicArn"] == topic_arn and entry["SubscriptionArn"].startswith("arn:"):
                arns[entry["Endpoint"]] = entry["SubscriptionArn"]
        if not (page or {}).get("NextToken"):
            return arns
        token = {"NextToken": page["NextToken"]}


async def _find_subscription(session: AwsSession, change: Change) -> tuple[str, Attributes] | None:
    """Return the ARN and the attributes of the subscription that *change* names."""
    topic_arn, endpoint = change.arns
    reading = Reading(session)
    arn = (await _list_subscriptions(reading, topic_arn)).get(endpoint)
    attributes = await _read_subscription_attributes(reading, topic_arn, arn) if arn else None
    reading.raise_if_denied()
    return (arn, attributes) if arn and attributes is not None else None


async def create_subscription(session: AwsSession, change: Change) -> None:
    """Subscribe the queue, and compare: SNS may have returned an existing subscription with other attributes."""
    topic_arn, queue_arn = change.arns
    sns = await session.client("sns", region=region_in(topic_arn))
    attributes = _to_texts(omit_defaults(change.attributes, SUBSCRIPTION_DEFAULTS))
    call = sns.subscribe(
        TopicArn=topic_arn, Protocol="sqs", Endpoint=queue_arn, Attributes=attributes, ReturnSubscriptionArn=True
    )
    try:
        await call_for(change, call, "sns:Subscribe")
    except TransportError as error:
        if not _exists_with_other_attributes(error):
            raise
    await update_subscription(session, change)


async def update_subscription(session: AwsSession, change: Change) -> None:
    """Set the attributes that differ, with one call for each."""
    found = await _find_subscription(session, change)
    if found is None:
        raise TransportError("NotFound", f"SNS does not list subscription {change.name} yet", retryable=True)
    arn, present = found
    sns = await session.client("sns", region=region_in(change.arns[0]))
    for name, value in _order_subscription_updates(change.attributes, present):
        text = _to_texts({name: value})[name]
        call = sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName=name, AttributeValue=text)
        await call_for(change, call, "sns:SetSubscriptionAttributes")


async def delete_subscription(session: AwsSession, change: Change) -> None:
    """Unsubscribe the queue."""
    found = await _find_subscription(session, change)
    if found is not None:
        sns = await session.client("sns", region=region_in(change.arns[0]))
        await call_for(change, sns.unsubscribe(SubscriptionArn=found[0]), "sns:Unsubscribe")


def _order_subscription_updates(wanted: Attributes, present: Attributes) -> Iterator[tuple[str, Any]]:
    """Yield the attributes to set, in an order that SNS accepts and in which the queue misses no wanted event.

    For the scope of attributes, SNS refuses a nested filter policy, whichever of policy and scope is set first. So
    while the scope changes, the policy is that of the event types alone, which is valid in both scopes.
    """
    differing = {
        name: value for name, value in wanted.items() if present.get(name, SUBSCRIPTION_DEFAULTS.get(name)) != value
    }
    if "FilterPolicyScope" in differing:
        policy = wanted.get("FilterPolicy") or present.get("FilterPolicy") or {}
        types = {TYPE_ATTRIBUTE: policy[TYPE_ATTRIBUTE]} if TYPE_ATTRIBUTE in policy else {}
        yield "FilterPolicy", types
        yield "FilterPolicyScope", differing.pop("FilterPolicyScope")
        differing.pop("FilterPolicy", None)
        if policy != types:
            yield "FilterPolicy", policy
    yield from differing.items()


def _exists_with_other_attributes(error: TransportError) -> bool:
    """Return whether SNS reported: Topic, or Subscription, "already exists with different attributes" or tags."""
    return error.code in _REFUSED and "already exists" in error.detail


def _to_queue_attributes(attributes: Attributes) -> Attributes:
    """Return the attributes for a call of SQS, which encrypts with a KMS key or with its own keys, not with both."""
    sse = {"SqsManagedSseEnabled": "false"} if attributes.get("KmsMasterKeyId") else {}
    return {**_without_tags(attributes), **sse}


def _without_tags(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name != TAGS}


def _changeable(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name not in _FIXED}


def _to_texts(attributes: Attributes) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in attributes.items()}


def _parse_json(attributes: Mapping[str, Any]) -> Attributes:
    """Return AWS's attributes with JSON as plain values; a policy stays text, so that it is kept byte for byte."""
    found = {
        name: json.loads(value) if name in _JSON_ATTRIBUTES and value else value for name, value in attributes.items()
    }
    count = (found.get("RedrivePolicy") or {}).get("maxReceiveCount")
    if count is not None:  # AWS's console writes the number as text
        found["RedrivePolicy"]["maxReceiveCount"] = int(count)
    return found
