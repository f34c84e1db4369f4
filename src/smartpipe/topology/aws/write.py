"""Single changes of queues, topics and subscriptions, each of which can be made again, and by two at once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from smartpipe.errors import TransportError
from smartpipe.filter_policy import TYPE_ATTRIBUTE
from smartpipe.names import name_in, queue_arn_at, region_in
from smartpipe.topology.aws.read import Denied, TopologyReader
from smartpipe.topology.aws.storage import create_bucket, update_bucket
from smartpipe.topology.destroy import MESSAGES, SOURCES, SUBSCRIBERS, messages_in
from smartpipe.topology.policy import merge_statements, our_statement
from smartpipe.topology.resources import (
    QUEUE_DEFAULTS,
    SUBSCRIPTION_DEFAULTS,
    TAGS,
    TOPIC_DEFAULTS,
    Attributes,
    Denial,
    without_defaults,
)
from smartpipe.topology.table_and_bucket import claims_table, time_to_live
from smartpipe.transports.aws.errors import MISSING, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smartpipe.topology.changes import Change
    from smartpipe.transports.aws.transport import AwsTransport

_FIXED = frozenset({"FifoQueue", "FifoTopic"})
_NAME_TAKEN = frozenset({"QueueNameExists", "QueueAlreadyExists"})
_REFUSED = frozenset({"InvalidParameter", "InvalidParameterValue"})


class TopologyWriter:
    """Makes one change at a time.

    What is there already, because another process was quicker or an earlier run was killed, is brought
    into line instead; what is gone already is gone.
    """

    def __init__(self, transport: AwsTransport) -> None:
        self._transport = transport

    async def make(self, change: Change) -> None:
        """Make *change*.

        Raises:
            TransportError: AWS could not, or would not.
        """
        act: Callable[[Change], Awaitable[None]] = getattr(self, f"_{change.action}_{change.kind}")
        try:
            await act(change)
        except TransportError as error:
            if change.action != "delete" or error.code not in MISSING:
                raise

    async def _create_queue(self, change: Change) -> None:
        sqs = await self._transport.client("sqs")
        [arn] = change.arns
        attributes = _texts(without_defaults(_said(change.attributes), QUEUE_DEFAULTS))
        self._transport.addresses.forget_queue(arn)
        call = sqs.create_queue(QueueName=name_in(arn), Attributes=attributes, tags=change.attributes[TAGS])
        try:
            await _called(call, change)
        except TransportError as error:
            if error.code not in _NAME_TAKEN:
                raise
            await self._update_queue(change)

    async def _update_queue(self, change: Change) -> None:
        sqs = await self._transport.client("sqs")
        url = await self._transport.addresses.queue_url(change.arns[0])
        attributes = _texts(_changeable(_said(change.attributes)))
        if "Policy" in attributes:
            attributes["Policy"] = merge_statements(
                await self._policy(url, change), our_statement(attributes["Policy"])
            )
        if attributes:
            await _called(sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes), change)
        if TAGS in change.attributes:
            await _called(sqs.tag_queue(QueueUrl=url, Tags=change.attributes[TAGS]), change, "sqs:TagQueue")

    async def _policy(self, url: str, change: Change) -> str | None:
        """Read the policy once more: others may have written theirs since it was planned."""
        sqs = await self._transport.client("sqs")
        call = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
        found: str | None = (await _called(call, change, "sqs:GetQueueAttributes")).get("Attributes", {}).get("Policy")
        return found

    async def _delete_queue(self, change: Change) -> None:
        """Delete it, unless messages have come since it was looked at: ``before`` says how many there may be."""
        sqs = await self._transport.client("sqs")
        url = await self._transport.addresses.queue_url(change.arns[0])
        if MESSAGES in change.before:
            call = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
            count = messages_in((await _called(call, change, "sqs:GetQueueAttributes"))["Attributes"])
            if count > change.before[MESSAGES]:
                detail = f"queue {change.name} holds about {count:,} messages by now, and is not deleted: look again"
                raise TransportError("QueueNotEmpty", detail, retryable=False)
        if SOURCES in change.before:
            await self._refuse_new_sources(change)
        await _called(sqs.delete_queue(QueueUrl=url), change)
        self._transport.addresses.forget_queue(change.arns[0])

    async def _refuse_new_sources(self, change: Change) -> None:
        """Refuse if other queues use this one as their dead-letter queue by now.

        SQS may still list the sources that were deleted a moment ago, so those that ``before`` names do not count.
        """
        try:
            urls = await TopologyReader(self._transport).dead_letter_sources(change.arns[0])
        except TransportError as error:
            if error.retryable or error.code in MISSING:
                raise
            return  # a broker that does not have this call
        found = [queue_arn_at(url, change.arns[0]) for url in urls or ()]
        if others := set(found).difference(change.before[SOURCES]):
            names = ", ".join(sorted(map(name_in, others)))
            detail = f"queue {change.name} is the dead-letter queue of {names} by now, and is not deleted"
            raise TransportError("QueueInUse", detail, retryable=False)

    async def _create_topic(self, change: Change) -> None:
        sns = await self._transport.client("sns")
        attributes = _texts(without_defaults(_untagged(change.attributes), TOPIC_DEFAULTS))
        tags = _pairs(change.attributes[TAGS])
        call = sns.create_topic(Name=name_in(change.arns[0]), Attributes=attributes, Tags=tags)
        try:
            await _called(call, change)
        except TransportError as error:
            if not _is_there_otherwise(error):
                raise
            await self._update_topic(change)
        if (
            await TopologyReader(self._transport).topic_tags(change.arns[0]) != change.attributes[TAGS]
        ):  # an old one, or a broker's gap
            await _called(sns.tag_resource(ResourceArn=change.arns[0], Tags=tags), change, "sns:TagResource")

    async def _update_topic(self, change: Change) -> None:
        sns = await self._transport.client("sns")
        [arn] = change.arns
        for name, value in _texts(_changeable(_untagged(change.attributes))).items():
            await _called(sns.set_topic_attributes(TopicArn=arn, AttributeName=name, AttributeValue=value), change)
        if TAGS in change.attributes:
            tags = _pairs(change.attributes[TAGS])
            await _called(sns.tag_resource(ResourceArn=arn, Tags=tags), change, "sns:TagResource")

    async def _delete_topic(self, change: Change) -> None:
        """Delete it, unless others have subscribed since it was looked at: ``before`` names the earlier endpoints.

        SNS may still list the subscriptions that were deleted a moment ago, so those do not count.
        """
        sns = await self._transport.client("sns")
        endpoints = await TopologyReader(self._transport).subscribers(change.arns[0])
        if others := set(endpoints).difference(change.before[SUBSCRIBERS]):
            names = ", ".join(sorted(map(name_in, others)))
            detail = f"topic {change.name} has new subscribers ({names}), and is not deleted"
            raise TransportError("TopicInUse", detail, retryable=False)
        await _called(sns.delete_topic(TopicArn=change.arns[0]), change)

    async def _create_table(self, change: Change) -> None:
        dynamodb = await self._transport.client("dynamodb")
        [arn] = change.arns
        tags = _pairs(change.attributes[TAGS])
        try:
            await _called(dynamodb.create_table(**claims_table(name_in(arn)), Tags=tags), change)
        except TransportError as error:
            if error.code != "ResourceInUseException":  # it is there, made by another or by the try before
                raise
        await self._update_table(change)

    async def _update_table(self, change: Change) -> None:
        dynamodb = await self._transport.client("dynamodb")
        [arn] = change.arns
        found = await TopologyReader(self._transport).table(arn)
        if found is None or found["TableStatus"] not in {"ACTIVE", "UPDATING"}:
            raise TransportError("TableNotActive", f"table {change.name} is not active yet", retryable=True)
        if found["TimeToLive"] != change.attributes.get("TimeToLive", found["TimeToLive"]):
            call = dynamodb.update_time_to_live(**time_to_live(name_in(arn)))
            await _called(call, change, "dynamodb:UpdateTimeToLive")
        if TAGS in change.attributes and change.attributes[TAGS].items() - found[TAGS].items():
            call = dynamodb.tag_resource(ResourceArn=arn, Tags=_pairs(change.attributes[TAGS]))
            await _called(call, change, "dynamodb:TagResource")

    async def _create_bucket(self, change: Change) -> None:
        s3, naming = await self._transport.client("s3"), await self._transport.addresses.naming()
        await create_bucket(s3, _called, change, self._transport.region, naming.account_id)

    async def _update_bucket(self, change: Change) -> None:
        s3, naming = await self._transport.client("s3"), await self._transport.addresses.naming()
        await update_bucket(s3, _called, change, naming.account_id)

    async def _create_subscription(self, change: Change) -> None:
        """Subscribe, and look whether it took: an old subscription may have been returned, unchanged."""
        topic_arn, queue_arn = change.arns
        sns = await self._transport.client("sns", region=region_in(topic_arn))
        attributes = _texts(without_defaults(change.attributes, SUBSCRIPTION_DEFAULTS))
        call = sns.subscribe(
            TopicArn=topic_arn, Protocol="sqs", Endpoint=queue_arn, Attributes=attributes, ReturnSubscriptionArn=True
        )
        try:
            await _called(call, change)
        except TransportError as error:
            if not _is_there_otherwise(error):
                raise
        await self._update_subscription(change)

    async def _update_subscription(self, change: Change) -> None:
        topic_arn, queue_arn = change.arns
        found = await TopologyReader(self._transport).subscription((topic_arn, queue_arn))
        if found is None:
            raise TransportError("NotFound", f"subscription {change.name} is not to be seen yet", retryable=True)
        arn, present = found
        sns = await self._transport.client("sns", region=region_in(topic_arn))
        for name, value in _in_turn(change.attributes, present):
            text = _texts({name: value})[name]
            call = sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName=name, AttributeValue=text)
            await _called(call, change, "sns:SetSubscriptionAttributes")

    async def _delete_subscription(self, change: Change) -> None:
        topic_arn, queue_arn = change.arns
        found = await TopologyReader(self._transport).subscription((topic_arn, queue_arn))
        if found is not None:
            sns = await self._transport.client("sns", region=region_in(topic_arn))
            await _called(sns.unsubscribe(SubscriptionArn=found[0]), change)


def action_of(change: Change) -> str:
    """Return the IAM action of a change."""
    if change.kind == "subscription":
        verbs = {"create": "Subscribe", "delete": "Unsubscribe", "update": "SetSubscriptionAttributes"}
        return f"sns:{verbs[change.action]}"
    if change.kind == "table":
        verbs = {"create": "CreateTable", "update": "UpdateTimeToLive"}
        return f"dynamodb:{verbs[change.action]}"
    if change.kind == "bucket":
        verbs = {"create": "CreateBucket", "update": "PutLifecycleConfiguration"}
        return f"s3:{verbs[change.action]}"
    noun = change.kind.capitalize()
    verb = {"create": f"Create{noun}", "delete": f"Delete{noun}", "update": f"Set{noun}Attributes"}[change.action]
    return f"{'sqs' if change.kind == 'queue' else 'sns'}:{verb}"


def _in_turn(wanted: Attributes, present: Attributes) -> Iterator[tuple[str, Any]]:
    """Yield what to set of a subscription, one after the other.

    SNS refuses a nested filter policy for attributes, whichever of policy and scope comes first; so between two scopes
    the policy is that of the types alone, which holds in both, and no wanted event is left out meanwhile.
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


async def _called(call: Awaitable[Any], change: Change, action: str | None = None) -> Any:
    try:
        return await call
    except Exception as error:
        action = action or action_of(change)
        fault = classify(error, action=action, target=f"{change.kind} {change.name}")
        if fault.code != "AccessDenied":
            raise fault from error
        refused = _REFUSED_ACTION.search(fault.detail)  # of the several that one call may take
        action = refused[1] if refused else action
        resource = "*" if action.partition(":")[2] in _OF_NO_RESOURCE else change.arns[0]
        raise Denied([Denial(action, resource, fault.detail)]) from error


_REFUSED_ACTION = re.compile(r"not authorized to perform: (\w+:\w+)")
# Service Authorization Reference, Amazon SNS: no resource types.
_OF_NO_RESOURCE = frozenset({"GetSubscriptionAttributes", "SetSubscriptionAttributes", "Unsubscribe"})


def _is_there_otherwise(error: TransportError) -> bool:
    """SNS: Topic, or Subscription, "already exists with different attributes" or tags."""
    return error.code in _REFUSED and "already exists" in error.detail


def _said(attributes: Attributes) -> Attributes:
    """Return what SQS's calls for attributes take: it encrypts in one way or the other, never in both."""
    sse = {"SqsManagedSseEnabled": "false"} if attributes.get("KmsMasterKeyId") else {}
    return {**_untagged(attributes), **sse}


def _untagged(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name != TAGS}


def _changeable(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if name not in _FIXED}


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _texts(attributes: Attributes) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in attributes.items()}
