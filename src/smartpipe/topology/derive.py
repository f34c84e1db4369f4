"""Derives the topology that services need from their declarations. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from smartpipe.errors import ConfigError
from smartpipe.filter_policy import TYPE_ATTRIBUTE, policy_errors
from smartpipe.limits import (
    DEFAULT_TOPIC_LIMIT_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_QUEUE_NAME_LENGTH,
    MAX_RECEIVES,
    MAX_RETENTION_SECONDS,
    MAX_TOPIC_NAME_LENGTH,
)
from smartpipe.names import name_in
from smartpipe.tags import own_tags
from smartpipe.topics import Topic, name_errors
from smartpipe.topology.kinds import KINDS
from smartpipe.topology.policy import POLICY_LIMIT_BYTES, build_statement, fit_statements, read_statements
from smartpipe.topology.resources import POLICY_VERSION, TAGS, Attributes, Topology
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Contract
    from smartpipe.names import Naming
    from smartpipe.retry import RetryPolicy
    from smartpipe.topics import Queue
    from smartpipe.topology.table_and_bucket import TableAndBucket

DEAD_LETTER_RETENTION_SECONDS = MAX_RETENTION_SECONDS
AWS_SQS_KEY = "alias/aws/sqs"


class Binding(NamedTuple):
    """A queue of a service with the properties of its handlers that the topology depends on.

    Args:
        contracts: Those of the events of its handlers, and of the older versions that are upcast to them.
        attempts: The highest number of attempts of a retry policy on this queue.
        breaks: Whether SQS delivers messages more often than there are attempts: to probe a circuit breaker, or
            because another worker is still handling the same event of an idempotent handler.
        remembers_seconds: The shortest time for which an idempotent handler on this queue remembers an event by its
            id; None if there is no such handler.
        policies: The different retry policies of its handlers.
        external: The names of the types that its raw handlers take. Other systems send them.
    """

    queue: Queue
    contracts: tuple[Contract, ...]
    attempts: int
    breaks: bool = False
    remembers_seconds: float | None = None
    policies: tuple[RetryPolicy, ...] = ()
    external: tuple[str, ...] = ()


class Declares(Protocol):
    """Declarations from which a topology can be derived; a Service has them."""

    @property
    def name(self) -> str:
        """The name of the service."""

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The queues of the service."""

    @property
    def idempotent(self) -> bool:
        """Whether it has idempotent handlers, which claim events in a store."""

    @property
    def published(self) -> tuple[Contract, ...]:
        """The events that it declares to publish."""

    @property
    def sends_to(self) -> tuple[Queue, ...]:
        """The queues to which it declares to send directly."""


def derive(
    services: Iterable[Declares], naming: Naming, table_and_bucket: TableAndBucket = NO_TABLE_AND_BUCKET
) -> Topology:
    """Return every topic, queue, dead-letter queue, subscription and other resource that *services* need.

    Args:
        table_and_bucket: The table is needed if handlers are idempotent, the bucket in any case.

    Raises:
        ConfigError: Names, filters or policies that AWS would refuse, two services that claim one queue, or a
            queue whose ``max_receive_count`` is lower than the attempts of its retry policies.
    """
    topics: dict[str, Attributes] = {}
    parts: list[Topology] = []
    errors: list[str] = []
    owners: dict[str, tuple[Declares, str]] = {}
    declared: dict[str, Topic] = {}
    by_name: dict[str, Declares] = {}
    distinct = list({id(one): one for one in services}.values())  # a service that is named twice counts once
    for service in distinct:
        if by_name.setdefault(service.name, service) is not service:
            errors.append(f"two services are called {service.name!r}: give each a name of its own")
        subscribed = [contract.topic for binding in service.bindings for contract in binding.contracts]
        for topic in dict.fromkeys([*subscribed, *(contract.topic for contract in service.published)]):
            if declared.setdefault(topic.name, topic) != topic:
                errors.append(f"topic {topic.name!r} is declared twice with different settings")
            errors += [] if topic.external else _find_topic_errors(topic, naming)
            topics[naming.topic_arn(topic.name)] = _derive_topic(topic, naming)
        for binding in service.bindings:
            errors += _find_rival_claims(service, binding, owners)
            errors += _find_binding_errors(binding, naming, table_and_bucket)
            is_external = binding.queue.existing
            part = _expect_queue(binding, naming) if is_external else _derive_queue(service.name, binding, naming)
            errors += _find_part_errors(binding.queue, part)
            parts.append(part)
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))
    external = {naming.topic_arn(name) for name, topic in declared.items() if topic.external}
    return Topology(
        {
            **{kind.name: kind.derive(distinct, naming, table_and_bucket) for kind in KINDS.values()},
            "topic": topics,
            "queue": {arn: attributes for part in parts for arn, attributes in part.queues.items()},
            "subscription": {arns: attributes for part in parts for arns, attributes in part.subscriptions.items()},
        },
        frozenset(external.union(*(part.external for part in parts))),
    )


def redrive_count(binding: Binding) -> int:
    """Return the queue's maxReceiveCount: well above the attempts, because deliveries that did not fail count too."""
    deliveries_per_attempt = 12 if binding.queue.fifo else 3
    least = 100 if binding.breaks else 10
    return binding.queue.max_receive_count or min(MAX_RECEIVES, max(least, deliveries_per_attempt * binding.attempts))


def _derive_queue(service: str, binding: Binding, naming: Naming) -> Topology:
    queue = binding.queue
    queue_arn, dead_letter_arn = naming.queue_arn(queue.name), naming.queue_arn(queue.dead_letter_name)
    by_topic = {} if queue.direct else _group_types(binding.contracts)
    types = {naming.topic_arn(topic.name): names for topic, names in by_topic.items()}
    common = {**({"FifoQueue": "true"} if queue.fifo else {}), **_choose_encryption(queue), **_choose_size(by_topic)}
    tags = {**queue.tags, **own_tags(naming, service)}
    undeliverable = [naming.topic_arn(topic.name) for topic in by_topic if _accepts_undeliverable(topic, queue)]
    dead_letter = {
        **common,
        "MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_SECONDS),
        "RedriveAllowPolicy": {"redrivePermission": "byQueue", "sourceQueueArns": [queue_arn]},
        "Policy": _build_policy(dead_letter_arn, undeliverable),
        TAGS: tags,
    }
    attributes = {
        **common,
        **_choose_throughput(queue),
        "VisibilityTimeout": str(queue.visibility_timeout_seconds),
        "MessageRetentionPeriod": str(queue.retention_seconds),
        "DelaySeconds": str(queue.delay_seconds),
        "RedrivePolicy": {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": redrive_count(binding)},
        "Policy": _build_policy(queue_arn, types),
        TAGS: tags,
    }
    subscriptions = {
        (topic_arn, queue_arn): _derive_subscription(
            queue, names, dead_letter_arn if topic_arn in undeliverable else None
        )
        for topic_arn, names in types.items()
    }
    return Topology({"queue": {dead_letter_arn: dead_letter, queue_arn: attributes}, "subscription": subscriptions})


def _expect_queue(binding: Binding, naming: Naming) -> Topology:
    """Return the attributes that a queue of another team is expected to have."""
    queue = binding.queue
    queue_arn, dead_letter_arn = naming.queue_arn(queue.name), naming.queue_arn(queue.dead_letter_name)
    fifo = {"FifoQueue": "true"} if queue.fifo else {}
    redrive = {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": redrive_count(binding)}
    expected = {**fifo, "RedrivePolicy": redrive}
    topics = () if queue.direct else _group_types(binding.contracts)
    subscriptions: dict[tuple[str, str], Attributes] = {
        (naming.topic_arn(topic.name), queue_arn): {} for topic in topics
    }
    queues: dict[str, Attributes] = {dead_letter_arn: dict(fifo), queue_arn: expected}
    return Topology({"queue": queues, "subscription": subscriptions}, frozenset({queue_arn, dead_letter_arn}))


def _group_types(contracts: Sequence[Contract]) -> dict[Topic, set[str]]:
    types: dict[Topic, set[str]] = {}
    for contract in contracts:
        types.setdefault(contract.topic, set()).add(contract.type)
    return types


def _accepts_undeliverable(topic: Topic, queue: Queue) -> bool:
    """Return whether the dead-letter queue has the topic's type, account and region: SNS, "Dead-letter queues"."""
    return topic.fifo == queue.fifo and not topic.external


def _derive_subscription(queue: Queue, types: set[str], dead_letter_arn: str | None) -> Attributes:
    policy = queue.filter_policy
    scope = policy.scope if policy else "MessageAttributes"
    redrive = {} if dead_letter_arn is None else {"RedrivePolicy": {"deadLetterTargetArn": dead_letter_arn}}
    return {
        "RawMessageDelivery": "true",
        "FilterPolicyScope": scope,  # before the policy: SNS refuses a nested policy for attributes
        "FilterPolicy": policy.policy(types) if policy else {TYPE_ATTRIBUTE: sorted(types)},
        **redrive,
    }


def _build_policy(queue_arn: str, topic_arns: Iterable[str]) -> dict[str, Any]:
    """Return the queue's policy with our statement alone."""
    topics = list(topic_arns)
    text = fit_statements(None, build_statement(queue_arn, topics) if topics else None)
    return {"Version": POLICY_VERSION, "Statement": read_statements(text)}


def _choose_encryption(queue: Queue) -> Attributes:
    if queue.kms_key is None:
        return {"SqsManagedSseEnabled": "true", "KmsMasterKeyId": ""}
    return {"KmsMasterKeyId": queue.kms_key}


def _choose_throughput(queue: Queue) -> Attributes:
    if not queue.fifo:
        return {}
    by_group = queue.high_throughput
    return {
        "DeduplicationScope": "messageGroup" if by_group else "queue",
        "FifoThroughputLimit": "perMessageGroupId" if by_group else "perQueue",
    }


def _choose_size(topics: Iterable[Topic]) -> Attributes:
    """An old queue may have a limit of 256 KiB, and SNS drops a message that is longer than its queue accepts."""
    if all(topic.limit_bytes <= DEFAULT_TOPIC_LIMIT_BYTES for topic in topics):
        return {}
    return {"MaximumMessageSize": str(MAX_MESSAGE_BYTES)}


def _derive_topic(topic: Topic, naming: Naming) -> Attributes:
    if topic.external:
        return {}
    fifo = {"FifoTopic": "true", "FifoThroughputScope": "MessageGroup" if topic.high_throughput else "Topic"}
    return {
        **(fifo if topic.fifo else {}),
        "MaximumMessageSize": str(topic.limit_bytes),
        "KmsMasterKeyId": topic.kms_key or "",
        TAGS: {**topic.tags, **own_tags(naming)},
    }


def _find_rival_claims(service: Declares, binding: Binding, owners: dict[str, tuple[Declares, str]]) -> list[str]:
    claim = service, binding.queue.name
    return [
        f"queue {name!r} is claimed by two services: {_describe_claim(owners[name])} and {_describe_claim(claim)}"
        for name in (binding.queue.name, binding.queue.dead_letter_name)
        if owners.setdefault(name, claim) != claim
    ]


def _describe_claim(claim: tuple[Declares, str]) -> str:
    return f"{claim[0].name} (queue {claim[1]!r})"


def _find_topic_errors(topic: Topic, naming: Naming) -> list[str]:
    return name_errors("topic", naming.physical_name(topic.name), MAX_TOPIC_NAME_LENGTH, fifo=topic.fifo)


def _find_binding_errors(binding: Binding, naming: Naming, table_and_bucket: TableAndBucket) -> list[str]:
    queue = binding.queue
    name = naming.physical_name(queue.dead_letter_name)
    errors = name_errors("queue", name, MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo)
    if not queue.existing and redrive_count(binding) < binding.attempts:
        errors.append(
            f"queue {queue.name!r}: max_receive_count={queue.max_receive_count} would let SQS dead-letter "
            f"messages, without a reason, before the {binding.attempts} attempts of a retry policy are over; set it "
            "well above them"
        )
    if table_and_bucket.encodes_bodies and queue.filter_policy and queue.filter_policy.scope == "MessageBody":
        errors.append(
            f"queue {queue.name!r}: its filter policy matches bodies, and SMARTPIPE_CLAIM_CHECK_URL or "
            "SMARTPIPE_COMPRESSION encodes large bodies, which it would never match; filter by attributes"
        )
    if queue.filter_policy and (queue.direct or not binding.contracts):
        errors.append(
            f"queue {queue.name!r}: filter_policy filters what SNS delivers, and this queue has no subscription: "
            "remove it; raw handlers select their messages with match=..."
        )
    if (queue.kms_key or "").endswith(AWS_SQS_KEY) and not queue.direct:
        errors.append(
            f"queue {queue.name!r}: SNS cannot deliver to a queue under {AWS_SQS_KEY}, and AWS does not let you change "
            "the policy of that key; leave kms_key out (SSE-SQS encrypts too), or use a key of your own"
        )
    return errors


def _find_part_errors(queue: Queue, part: Topology) -> list[str]:
    errors = []
    for (topic_arn, _), attributes in part.subscriptions.items():
        found = policy_errors(attributes["FilterPolicy"], attributes["FilterPolicyScope"]) if attributes else []
        errors += [f"queue {queue.name!r}, filter policy for {name_in(topic_arn)}: {one}" for one in found]
    for arn, attributes in part.queues.items():
        size = len(json.dumps(attributes.get("Policy")).encode())
        if size > POLICY_LIMIT_BYTES:
            errors.append(f"queue {name_in(arn)!r}: its policy would have {size:,} bytes; SQS accepts 8,192")
    return errors
