"""Reads the topology that is there: no more calls than it takes, so many at once and no more."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from smartpipe.batching.resend import retry
from smartpipe.errors import TransportError
from smartpipe.names import account_in, is_arn, name_in, queue_arn_at, region_in, service_in
from smartpipe.tags import APPLICATION, PREFIX
from smartpipe.topology.aws.storage import read_bucket, read_table
from smartpipe.topology.destroy import SOURCES
from smartpipe.topology.policy import our_statement, source_topics
from smartpipe.topology.resources import TAGS, Attributes, Denial, Topology, request
from smartpipe.topology.table_and_bucket import LIFECYCLE
from smartpipe.transports.aws.errors import MISSING, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from smartpipe.transports.aws.transport import AwsTransport

log = logging.getLogger("smartpipe.topology")

T = TypeVar("T")

MAX_CALLS = 8
"""Calls at once; ListSubscriptionsByTopic is throttled at 30 a second and account."""

MAX_SOURCES = 1_000
"""The largest page of ListDeadLetterSourceQueues."""

RETRY_SECONDS = 10.0
_JSON_ATTRIBUTES = frozenset({"FilterPolicy", "RedriveAllowPolicy", "RedrivePolicy"})


class Denied(TransportError):
    """IAM refused some calls; ``denials`` has each."""

    def __init__(self, denials: Iterable[Denial]) -> None:
        self.denials = tuple(denials)
        super().__init__("AccessDenied", "\n".join(request(self.denials)), retryable=False)


class TopologyReader:
    """Asks SNS and SQS what there is of one topology, or of one subscription; of use once.

    ``notes`` tells afterwards what could not be looked at, ``denials`` what IAM refused; ``knows_orphans`` is
    False if AWS could not be asked for resources that no TARGET declares, and ``orphans`` has their ARNs.
    """

    def __init__(self, transport: AwsTransport) -> None:
        self._transport = transport
        self._room = asyncio.Semaphore(MAX_CALLS)
        self.denials: list[Denial] = []
        self.notes: list[str] = []
        self.knows_orphans = True
        self.orphans: list[str] = []

    async def read(self, desired: Topology, *, tags: bool = True) -> Topology:
        """Return what is there of *desired*, who else subscribes to its topics and, with *tags*, whose all that is.

        With *tags*, also what carries the application's tags and stands in *desired* nowhere, and what
        subscribes our queues to topics that stand there no longer.

        Raises:
            TransportError: AWS could not be asked; ``AccessDenied`` names every right that was missing.
        """
        found = await self.look(desired, tags=tags)
        self._refuse_if_denied()
        return found

    async def look(self, desired: Topology, *, tags: bool = True) -> Topology:
        """Do the same, but leave out what may not be looked at."""
        orphans = self.orphans = await self._orphans(desired) if tags else []
        topic_arns = [*desired.topics, *(arn for arn in orphans if service_in(arn) == "sns")]
        queue_arns = [*desired.queues, *(arn for arn in orphans if service_in(arn) == "sqs")]
        topics, queues = await asyncio.gather(
            self._each(topic_arns, partial(self._topic, tags=tags, external=desired.external)),
            self._each(queue_arns, partial(self._queue, tags=tags)),
        )
        for arn in orphans:
            self._forgive(arn, "carries the application's tags, is declared by no TARGET, and may not be looked at")
        subscriptions = await self._subscriptions(desired, topics, queues, remembered=tags)
        tables = await self._each(desired.tables, self._table) if tags else {}
        buckets = await self._each(desired.buckets, partial(self._bucket, wanted=desired)) if tags else {}
        return Topology(topics, queues, subscriptions, tables=tables, buckets=buckets)

    async def subscription(self, arns: tuple[str, str]) -> tuple[str, Attributes] | None:
        """Return the ARN and the attributes of one subscription."""
        found = (await self._listed(arns[0]) or {}).get(arns[1])
        attributes = await self._subscription(arns[0], found) if found else None
        self._refuse_if_denied()
        return (found, attributes) if found and attributes is not None else None

    def _refuse_if_denied(self) -> None:
        if self.denials:
            raise Denied(self.denials)

    async def _each(self, arns: Iterable[str], read: Callable[[str], Awaitable[T | None]]) -> dict[str, T]:
        async def one(arn: str) -> tuple[str, T | None]:
            return arn, await read(arn)

        found = await asyncio.gather(*map(one, dict.fromkeys(arns)))
        return {arn: value for arn, value in found if value is not None}

    async def _topic(self, arn: str, *, tags: bool, external: frozenset[str]) -> Attributes | None:
        sns = await self._transport.client("sns", region=region_in(arn))
        answer = await self._call(
            partial(sns.get_topic_attributes, TopicArn=arn), "sns:GetTopicAttributes", arn, external
        )
        if answer is None:
            return (
                {} if arn in external and self._forgive(arn, "is not to be looked at: so its owner wants it") else None
            )
        attributes: Attributes = dict(answer["Attributes"])
        if tags and arn not in external:
            attributes[TAGS] = await self.topic_tags(arn)
        return attributes

    async def topic_tags(self, arn: str) -> dict[str, str]:
        """Return the tags of a topic that is there."""
        sns = await self._transport.client("sns", region=region_in(arn))
        read = partial(sns.list_tags_for_resource, ResourceArn=arn)
        listed = await self._call(read, "sns:ListTagsForResource", arn)
        return {one["Key"]: one["Value"] for one in (listed or {}).get("Tags", [])}

    def _forgive(self, arn: str, instead: str) -> bool:
        """Make a note of what was refused about *arn*, in place of a fault; return whether anything was."""
        mine = [denial for denial in self.denials if denial.resource == arn]
        self.denials = [denial for denial in self.denials if denial.resource != arn]
        if mine:
            self.notes.append(f"{arn} {instead} ({mine[0].action})")
        return bool(mine)

    async def _queue(self, arn: str, *, tags: bool) -> Attributes | None:
        sqs = await self._transport.client("sqs")
        find = partial(self._transport.addresses.queue_url, arn)
        url = await self._call(find, "sqs:GetQueueUrl", arn)
        if url is None:
            return None
        read = partial(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=["All"])
        answer = await self._call(read, "sqs:GetQueueAttributes", arn)
        if answer is None:
            return None
        attributes = parse_policy(answer["Attributes"])
        if tags:
            listed = await self._call(partial(sqs.list_queue_tags, QueueUrl=url), "sqs:ListQueueTags", arn)
            attributes[TAGS] = dict((listed or {}).get("Tags", {}))
        return attributes

    async def _table(self, arn: str) -> Attributes | None:
        return await read_table(await self._transport.client("dynamodb"), self._call, arn)

    async def _bucket(self, arn: str, wanted: Topology) -> Attributes | None:
        prefix = wanted.buckets[arn][LIFECYCLE]["Prefix"]
        owner = (await self._transport.addresses.naming()).account_id
        return await read_bucket(await self._transport.client("s3"), self._call, arn, prefix, owner)

    async def with_sources(self, actual: Topology, external: frozenset[str]) -> Topology:
        """Return *actual* with the queues that use each of its queues, but the *external*, as their dead-letter queue.

        The list is None for a queue where IAM refuses to say. A broker without the call is taken to have no others.
        """
        own = [arn for arn in actual.queues if arn not in external]
        found = await self._each(own, self._sources)
        queues = {**actual.queues, **{arn: {**actual.queues[arn], SOURCES: found.get(arn)} for arn in own}}
        for arn in own:
            self._forgive(arn, "may be the dead-letter queue of other queues, and is kept")
        return actual._replace(queues=queues)

    async def _sources(self, arn: str) -> list[str] | None:
        try:
            urls = await self.dead_letter_sources(arn)
        except TransportError as error:
            if error.retryable:
                raise
            log.debug("%s has no ListDeadLetterSourceQueues: %s", arn, error)
            return []
        return None if urls is None else [queue_arn_at(url, arn) for url in urls]

    async def dead_letter_sources(self, arn: str) -> list[str] | None:
        """Return the URLs of the queues that use this one as their dead-letter queue; None if it may not be asked."""
        sqs = await self._transport.client("sqs")
        url = await self._transport.addresses.queue_url(arn)
        urls: list[str] = []
        token: dict[str, Any] = {"MaxResults": MAX_SOURCES}
        while True:
            call = partial(sqs.list_dead_letter_source_queues, QueueUrl=url, **token)
            page = await self._call(call, "sqs:ListDeadLetterSourceQueues", arn)
            if page is None:
                return None
            urls += page.get("queueUrls", [])
            if not page.get("NextToken"):
                return urls
            token = {"MaxResults": MAX_SOURCES, "NextToken": page["NextToken"]}

    async def subscribers(self, topic_arn: str) -> list[str]:
        """Return the endpoints that are subscribed to a topic."""
        found = await self._listed(topic_arn)
        self._refuse_if_denied()
        return list(found or ())

    async def table(self, arn: str) -> Attributes | None:
        """Return what is there of one table."""
        found = await self._table(arn)
        self._refuse_if_denied()
        return found

    async def _subscriptions(
        self,
        desired: Topology,
        topics: Mapping[str, Attributes],
        queues: Mapping[str, Attributes],
        *,
        remembered: bool,
    ) -> dict[tuple[str, str], Attributes]:
        """Return the subscriptions of all these topics and, *remembered*, of those that our queues let in before."""
        let_in = [
            topic
            for arn in (desired.queues if remembered else ())
            for topic in source_topics(our_statement(queues.get(arn, {}).get("Policy")) or {})
            if is_arn(topic) and not topic.endswith("*")
        ]
        subscribed = [topic for topic, _ in desired.subscriptions if topic in topics]
        listed = await self._each([*subscribed, *topics, *let_in], self._listed)
        found: dict[tuple[str, str], Attributes] = {}

        async def one(topic: str, endpoint: str, arn: str) -> None:
            if (topic, endpoint) not in desired.subscriptions or endpoint in desired.external:
                found[topic, endpoint] = {"SubscriptionArn": arn}
            elif (attributes := await self._subscription(topic, arn)) is not None:
                found[topic, endpoint] = attributes

        await asyncio.gather(*(one(topic, *entry) for topic, by in listed.items() for entry in by.items()))
        return found

    async def _subscription(self, topic_arn: str, arn: str) -> Attributes | None:
        sns = await self._transport.client("sns", region=region_in(topic_arn))
        read = partial(sns.get_subscription_attributes, SubscriptionArn=arn)
        answer = await self._call(read, "sns:GetSubscriptionAttributes", "*")
        return None if answer is None else parse_policy(answer["Attributes"])

    async def _listed(self, topic_arn: str) -> dict[str, str] | None:
        """Return the ARNs of the topic's confirmed subscriptions by endpoint; ours alone, of another account's."""
        sns = await self._transport.client("sns", region=region_in(topic_arn))
        ours = account_in(topic_arn) == (await self._transport.addresses.naming()).account_id
        arns: dict[str, str] = {}
        token: dict[str, Any] = {}
        while True:
            if ours:
                call = partial(sns.list_subscriptions_by_topic, TopicArn=topic_arn, **token)
                page = await self._call(call, "sns:ListSubscriptionsByTopic", topic_arn)
            else:
                page = await self._call(partial(sns.list_subscriptions, **token), "sns:ListSubscriptions", "*")
            for entry in (page or {}).get("Subscriptions", []):
                if entry["TopicArn"] == topic_arn and entry["SubscriptionArn"].startswith("arn:"):
                    arns[entry["Endpoint"]] = entry["SubscriptionArn"]
            if not (page or {}).get("NextToken"):
                return arns
            token = {"NextToken": page["NextToken"]}

    async def _orphans(self, desired: Topology) -> list[str]:
        """Return the ARNs that carry the application's tags and stand in *desired* nowhere.

        Asked of the Resource Groups Tagging API, which knows in a call or two what would take SQS and SNS
        one call for each queue and topic of the account. Where it cannot be asked, that is a note, not a fault.
        """
        naming = await self._transport.addresses.naming()
        client = await self._transport.client("resourcegroupstaggingapi")
        wanted = {APPLICATION: naming.application, PREFIX: naming.prefix}
        filters = [{"Key": key, "Values": [value]} for key, value in wanted.items()]
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            call = client.get_resources(TagFilters=filters, ResourceTypeFilters=["sqs", "sns"], **token)
            try:
                page = await call
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing else relies on it
                fault = classify(error, action="tag:GetResources", target="*")
                self.notes.append(f"whether something is left that no TARGET declares is not known: {fault.detail}")
                self.knows_orphans = False
                return []
            found += [one["ResourceARN"] for one in page.get("ResourceTagMappingList", [])]
            if not page.get("PaginationToken"):
                home = naming.region, naming.account_id
                mine = [arn for arn in found if (region_in(arn), account_in(arn)) == home]
                return [arn for arn in mine if arn not in desired.queues and arn not in desired.topics]
            token = {"PaginationToken": page["PaginationToken"]}

    async def _call(
        self, call: Callable[[], Awaitable[Any]], action: str, resource: str, external: Iterable[str] = ()
    ) -> Any:
        """Return the answer, or None when the resource does not exist or may not be looked at, which is remembered."""
        try:
            async with self._room:
                return await retrying(call, action, name_in(resource))
        except TransportError as error:
            if error.code == "AccessDenied":
                self.denials.append(Denial(action, resource, error.detail))
                return None
            if error.code in MISSING or (resource in external and error.code == "InvalidParameter"):
                return None
            raise


async def retrying(call: Callable[[], Awaitable[Any]], action: str, target: str) -> Any:
    """Call, and while AWS throttles or fails call again, for ten seconds.

    Raises:
        TransportError: What the last try ended with.
    """

    async def classified() -> Any:
        try:
            return await call()
        except Exception as error:
            raise classify(error, action=action, target=target) from error

    return await retry(classified, deadline_seconds=RETRY_SECONDS)


def parse_policy(attributes: Mapping[str, Any]) -> Attributes:
    """Return AWS's attributes with their JSON as values; a policy stays text, to be kept to the byte."""
    found = {
        name: json.loads(value) if name in _JSON_ATTRIBUTES and value else value for name, value in attributes.items()
    }
    count = (found.get("RedrivePolicy") or {}).get("maxReceiveCount")
    if count is not None:  # the console writes the number as text
        found["RedrivePolicy"]["maxReceiveCount"] = int(count)
    return found
