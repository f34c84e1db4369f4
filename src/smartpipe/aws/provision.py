"""Reads the topology that is there, and carries out a plan. Runs apart from workers, with other rights."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from smartpipe.aws.faults import MISSING, classify
from smartpipe.errors import TopologyError, TransportError
from smartpipe.topology.derive import Declares, derive
from smartpipe.topology.model import Attributes, Topology
from smartpipe.topology.naming import name_in
from smartpipe.topology.plan import Change, plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterable

    from types_aiobotocore_sns import SNSClient
    from types_aiobotocore_sqs import SQSClient

    from smartpipe.aws.transport import AwsTransport

T = TypeVar("T")

MAX_CALLS = 8
"""Calls at once; ListSubscriptionsByTopic is throttled at 30 a second and account."""

RETRY_SECONDS = 10.0
_JSON_ATTRIBUTES = frozenset({"FilterPolicy", "Policy", "RedrivePolicy"})


class Provisioner:
    """Compares and changes the topics, queues and subscriptions of one account, region and prefix."""

    def __init__(self, transport: AwsTransport) -> None:
        self._transport = transport
        self._room = asyncio.Semaphore(MAX_CALLS)

    async def plan(self, services: Iterable[Declares]) -> list[Change]:
        """Return what ``apply`` has to change for *services*; empty when all is in place.

        Raises:
            ConfigError: The services' declarations contradict each other or AWS.
            TransportError: AWS could not be asked.
        """
        desired = derive(services, await self._transport.addresses.naming())
        return plan(desired, await self._read(desired))

    async def apply(self, changes: Iterable[Change], on_change: Callable[[Change], None] = lambda _: None) -> None:
        """Carry out *changes* one after the other; interrupted, a new plan shows what is left.

        Raises:
            TransportError: AWS refused one.
        """
        for change in changes:
            act: Callable[[Change], Awaitable[None]] = getattr(self, f"_{change.action}_{change.kind}")
            target = " → ".join(map(name_in, change.arns))
            await _retrying(partial(act, change), f"{change.action} {change.kind}", target)  # each can be made twice
            on_change(change)

    async def _read(self, desired: Topology) -> Topology:
        """Read the part of AWS that *desired* speaks of."""
        endpoints = {queue for _, queue in desired.subscriptions}
        topics, queues, subscriptions = await asyncio.gather(
            self._each(desired.topics, self._topic),
            self._each(desired.queues, self._queue),
            self._each(
                dict.fromkeys(topic for topic, _ in desired.subscriptions),
                lambda topic: self._subscriptions(topic, endpoints),
            ),
        )
        wanted = desired.subscriptions
        found = {(t, q): attributes for t, by_queue in subscriptions.items() for q, attributes in by_queue.items()}
        return Topology(topics, queues, {arns: found[arns] for arns in wanted if arns in found})

    async def _each(self, arns: Iterable[str], read: Callable[[str], Awaitable[T | None]]) -> dict[str, T]:
        async def one(arn: str) -> tuple[str, T | None]:
            async with self._room:
                return arn, await read(arn)

        return {arn: found for arn, found in await asyncio.gather(*map(one, arns)) if found is not None}

    async def _topic(self, arn: str) -> Attributes | None:
        sns: SNSClient = await self._transport.client("sns")
        read = partial(sns.get_topic_attributes, TopicArn=arn)
        answer = await self._call(read, "sns:GetTopicAttributes", name_in(arn))
        return None if answer is None else dict(answer["Attributes"])

    async def _queue(self, arn: str) -> Attributes | None:
        sqs: SQSClient = await self._transport.client("sqs")
        find = partial(sqs.get_queue_url, QueueName=name_in(arn))
        url = await self._call(find, "sqs:GetQueueUrl", name_in(arn))
        if url is None:
            return None
        read = partial(sqs.get_queue_attributes, QueueUrl=url["QueueUrl"], AttributeNames=["All"])
        answer = await self._call(read, "sqs:GetQueueAttributes", name_in(arn))
        return None if answer is None else _parsed(answer["Attributes"])

    async def _subscriptions(self, topic_arn: str, endpoints: Container[str]) -> dict[str, Attributes] | None:
        """Return the attributes of the topic's subscriptions of these queues, by queue ARN."""
        sns: SNSClient = await self._transport.client("sns")
        arns: dict[str, str] = {}
        token: dict[str, Any] = {}
        while True:
            page = await self._call(
                partial(sns.list_subscriptions_by_topic, TopicArn=topic_arn, **token),
                "sns:ListSubscriptionsByTopic",
                name_in(topic_arn),
            )
            for entry in (page or {}).get("Subscriptions", []):
                if entry["Endpoint"] in endpoints and entry["SubscriptionArn"].startswith("arn:"):
                    arns[entry["Endpoint"]] = entry["SubscriptionArn"]
            if not (page or {}).get("NextToken"):
                break
            token = {"NextToken": page["NextToken"]}
        found: dict[str, Attributes] = {}
        for endpoint, arn in arns.items():
            read = partial(sns.get_subscription_attributes, SubscriptionArn=arn)
            answer = await self._call(read, "sns:GetSubscriptionAttributes", name_in(topic_arn))
            if answer is not None:
                found[endpoint] = _parsed(answer["Attributes"])
        return found

    async def _create_queue(self, change: Change) -> None:
        sqs: SQSClient = await self._transport.client("sqs")
        await sqs.create_queue(QueueName=name_in(change.arns[0]), Attributes=_texts(change.attributes))  # type: ignore[arg-type]

    async def _update_queue(self, change: Change) -> None:
        sqs: SQSClient = await self._transport.client("sqs")
        url = await sqs.get_queue_url(QueueName=name_in(change.arns[0]))
        await sqs.set_queue_attributes(QueueUrl=url["QueueUrl"], Attributes=_texts(change.attributes))  # type: ignore[arg-type]

    async def _create_topic(self, change: Change) -> None:
        sns: SNSClient = await self._transport.client("sns")
        await sns.create_topic(Name=name_in(change.arns[0]), Attributes=_texts(change.attributes))

    async def _update_topic(self, change: Change) -> None:
        sns: SNSClient = await self._transport.client("sns")
        for name, value in _texts(change.attributes).items():
            await sns.set_topic_attributes(TopicArn=change.arns[0], AttributeName=name, AttributeValue=value)

    async def _create_subscription(self, change: Change) -> None:
        sns: SNSClient = await self._transport.client("sns")
        topic_arn, queue_arn = change.arns
        await sns.subscribe(
            TopicArn=topic_arn, Protocol="sqs", Endpoint=queue_arn, Attributes=_texts(change.attributes)
        )

    async def _update_subscription(self, change: Change) -> None:
        sns: SNSClient = await self._transport.client("sns")
        topic_arn, queue_arn = change.arns
        arn = (await self._subscriptions(topic_arn, {queue_arn}) or {})[queue_arn]["SubscriptionArn"]
        for name, value in _texts(change.attributes).items():
            await sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName=name, AttributeValue=value)

    @staticmethod
    async def _call(call: Callable[[], Awaitable[Any]], action: str, target: str) -> Any:
        """Return the answer, or None when the resource does not exist; throttled, ask again for a while."""
        try:
            return await _retrying(call, action, target)
        except TransportError as error:
            if error.code in MISSING:
                return None
            raise


async def _retrying(call: Callable[[], Awaitable[Any]], action: str, target: str) -> Any:
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, TransportError) and error.retryable),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=stop_after_delay(RETRY_SECONDS),
        reraise=True,
    ):
        with attempt:
            try:
                return await call()
            except Exception as error:
                raise classify(error, action=action, target=target) from error
    return None


async def verify(service: Declares, transport: AwsTransport) -> list[str]:
    """Check that everything *service* needs exists; return what differs from its declaration.

    Raises:
        TopologyError: What is missing, each with its name.
        TransportError: AWS could not be asked, or the rights to ask are missing.
    """
    changes = await Provisioner(transport).plan([service])
    missing = [
        f"missing: {change.kind} {' → '.join(map(name_in, change.arns))}"
        for change in changes
        if change.action == "create"
    ]
    if missing:
        raise TopologyError([*missing, "create what is missing with `smartpipe topology apply`"])
    return [str(change) for change in changes]


def _parsed(attributes: Any) -> Attributes:
    parsed = {
        name: json.loads(value) if name in _JSON_ATTRIBUTES and value else value for name, value in attributes.items()
    }
    if parsed.get("RedrivePolicy"):  # the console writes the number as text
        parsed["RedrivePolicy"]["maxReceiveCount"] = int(parsed["RedrivePolicy"]["maxReceiveCount"])
    return parsed


def _texts(attributes: Attributes) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in attributes.items()}
