"""From what services declare to the topology they need. Pure."""

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
    MAX_TOPIC_NAME_LENGTH,
)
from smartpipe.names import name_in
from smartpipe.tags import own_tags
from smartpipe.topics import Topic, name_errors
from smartpipe.topology.companions import NO_COMPANIONS
from smartpipe.topology.policy import POLICY_LIMIT_BYTES, fit_statements, statement, statements
from smartpipe.topology.resources import TAGS, Attributes, Topology
from smartpipe.topology.rights import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from smartpipe.events import Contract
    from smartpipe.names import Naming
    from smartpipe.topics import Queue
    from smartpipe.topology.companions import TableAndBucket

DEAD_LETTER_RETENTION_SECONDS = 1_209_600
AWS_SQS_KEY = "alias/aws/sqs"


class Binding(NamedTuple):
    """What one queue of a service is for, as far as the topology needs to know.

    Args:
        attempts: The most attempts of any retry policy on this queue.
        breaks: Whether messages are delivered besides the attempts: by the probes of a circuit breaker, or
            because an idempotent handler's effect is under way elsewhere.
    """

    queue: Queue
    contracts: tuple[Contract, ...]
    attempts: int
    breaks: bool = False


class Declares(Protocol):
    """Anything whose queues a topology can be derived from; a Service is."""

    @property
    def name(self) -> str:
        """Who declares it."""

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Its queues, with what each wants."""

    @property
    def idempotent(self) -> bool:
        """Whether it has idempotent handlers, which claim in a store."""

    @property
    def published(self) -> tuple[Contract, ...]:
        """What it says that it publishes."""

    @property
    def sends_to(self) -> tuple[Queue, ...]:
        """The queues that it says it sends to directly."""


def derive(services: Iterable[Declares], naming: Naming, companions: TableAndBucket = NO_COMPANIONS) -> Topology:
    """Return every topic, queue, dead-letter queue and subscription that *services* need.

    Args:
        companions: The table of claims is wanted where handlers are idempotent, the bucket always.

    Raises:
        ConfigError: Names, filters or policies that AWS would refuse, two services that claim one queue, a
            queue whose ``max_receive_count`` ends before its retry policies do.
    """
    topics: dict[str, Attributes] = {}
    parts: list[Topology] = []
    problems: list[str] = []
    owners: dict[str, tuple[Declares, str]] = {}
    declared: dict[str, Topic] = {}
    by_name: dict[str, Declares] = {}
    named = {id(one): one for one in services}.values()  # named twice, it is still one
    for service in named:
        if by_name.setdefault(service.name, service) is not service:
            problems.append(f"two services are called {service.name!r}: give each a name of its own")
        wanted = [contract.topic for binding in service.bindings for contract in binding.contracts]
        for topic in dict.fromkeys([*wanted, *(contract.topic for contract in service.published)]):
            if declared.setdefault(topic.name, topic) != topic:
                problems.append(f"topic {topic.name!r} is declared twice with different settings")
            problems += [] if topic.external else _topic_problems(topic, naming)
            topics[naming.topic_arn(topic.name)] = _topic_attributes(topic, naming)
        for binding in service.bindings:
            problems += _claims(service, binding, owners) + _binding_problems(binding, naming, companions)
            part = _existing(binding, naming) if binding.queue.existing else _queue(service.name, binding, naming)
            problems += _part_problems(binding.queue, part)
            parts.append(part)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    given = {naming.topic_arn(name) for name, topic in declared.items() if topic.external}
    return Topology(
        topics,
        {arn: attributes for part in parts for arn, attributes in part.queues.items()},
        {arns: attributes for part in parts for arns, attributes in part.subscriptions.items()},
        frozenset(given.union(*(part.given for part in parts))),
        companions.tables(naming) if any(service.idempotent for service in named) else {},
        companions.buckets(naming),
    )


def redrive_count(binding: Binding) -> int:
    """Return the queue's maxReceiveCount: well above the attempts, for deliveries that were no failures."""
    deliveries_per_attempt = 12 if binding.queue.fifo else 3
    least = 100 if binding.breaks else 10
    return binding.queue.max_receive_count or min(MAX_RECEIVES, max(least, deliveries_per_attempt * binding.attempts))


def _queue(service: str, binding: Binding, naming: Naming) -> Topology:
    queue = binding.queue
    queue_arn, dead_letter_arn = naming.queue_arn(queue.name), naming.queue_arn(queue.dead_letter_name)
    by_topic = {} if queue.direct else _by_topic(binding.contracts)
    types = {naming.topic_arn(topic.name): names for topic, names in by_topic.items()}
    common = {**({"FifoQueue": "true"} if queue.fifo else {}), **_encryption(queue), **_size(by_topic)}
    tags = {**queue.tags, **own_tags(naming, service)}
    undeliverable = [naming.topic_arn(topic.name) for topic in by_topic if _takes_undeliverable(topic, queue)]
    dead_letter = {
        **common,
        "MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_SECONDS),
        "RedriveAllowPolicy": {"redrivePermission": "byQueue", "sourceQueueArns": [queue_arn]},
        "Policy": _policy(dead_letter_arn, undeliverable),
        TAGS: tags,
    }
    attributes = {
        **common,
        **_throughput(queue),
        "VisibilityTimeout": str(queue.visibility_timeout_seconds),
        "MessageRetentionPeriod": str(queue.retention_seconds),
        "DelaySeconds": str(queue.delay_seconds),
        "RedrivePolicy": {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": redrive_count(binding)},
        "Policy": _policy(queue_arn, types),
        TAGS: tags,
    }
    subscriptions = {
        (topic_arn, queue_arn): _subscription(queue, names, dead_letter_arn if topic_arn in undeliverable else None)
        for topic_arn, names in types.items()
    }
    return Topology({}, {dead_letter_arn: dead_letter, queue_arn: attributes}, subscriptions)


def _existing(binding: Binding, naming: Naming) -> Topology:
    """Return what is expected of a queue that somebody else owns."""
    queue = binding.queue
    queue_arn, dead_letter_arn = naming.queue_arn(queue.name), naming.queue_arn(queue.dead_letter_name)
    fifo = {"FifoQueue": "true"} if queue.fifo else {}
    redrive = {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": redrive_count(binding)}
    expected = {**fifo, "RedrivePolicy": redrive}
    topics = () if queue.direct else _by_topic(binding.contracts)
    subscriptions: dict[tuple[str, str], Attributes] = {
        (naming.topic_arn(topic.name), queue_arn): {} for topic in topics
    }
    queues: dict[str, Attributes] = {dead_letter_arn: dict(fifo), queue_arn: expected}
    return Topology({}, queues, subscriptions, frozenset({queue_arn, dead_letter_arn}))


def _by_topic(contracts: Sequence[Contract]) -> dict[Topic, set[str]]:
    types: dict[Topic, set[str]] = {}
    for contract in contracts:
        types.setdefault(contract.topic, set()).add(contract.type)
    return types


def _takes_undeliverable(topic: Topic, queue: Queue) -> bool:
    """Its dead-letter queue has to be of the topic's kind, account and region: SNS, "Dead-letter queues"."""
    return topic.fifo == queue.fifo and not topic.external


def _subscription(queue: Queue, types: set[str], dead_letter_arn: str | None) -> Attributes:
    policy = queue.filter_policy
    scope = policy.scope if policy else "MessageAttributes"
    redrive = {} if dead_letter_arn is None else {"RedrivePolicy": {"deadLetterTargetArn": dead_letter_arn}}
    return {
        "RawMessageDelivery": "true",
        "FilterPolicyScope": scope,  # before the policy: SNS refuses a nested one for attributes
        "FilterPolicy": policy.policy(types) if policy else {TYPE_ATTRIBUTE: sorted(types)},
        **redrive,
    }


def _policy(queue_arn: str, topic_arns: Iterable[str]) -> dict[str, Any]:
    """Return our part of the queue's policy."""
    topics = list(topic_arns)
    text = fit_statements(None, statement(queue_arn, topics) if topics else None)
    return {"Version": VERSION, "Statement": statements(text)}


def _encryption(queue: Queue) -> Attributes:
    if queue.kms_key is None:
        return {"SqsManagedSseEnabled": "true", "KmsMasterKeyId": ""}
    return {"KmsMasterKeyId": queue.kms_key}


def _throughput(queue: Queue) -> Attributes:
    if not queue.fifo:
        return {}
    by_group = queue.high_throughput
    return {
        "DeduplicationScope": "messageGroup" if by_group else "queue",
        "FifoThroughputLimit": "perMessageGroupId" if by_group else "perQueue",
    }


def _size(topics: Iterable[Topic]) -> Attributes:
    """An old queue may have been made with 256 KiB, and SNS drops what is longer than its queue takes."""
    if all(topic.limit_bytes <= DEFAULT_TOPIC_LIMIT_BYTES for topic in topics):
        return {}
    return {"MaximumMessageSize": str(MAX_MESSAGE_BYTES)}


def _topic_attributes(topic: Topic, naming: Naming) -> Attributes:
    if topic.external:
        return {}
    fifo = {"FifoTopic": "true", "FifoThroughputScope": "MessageGroup" if topic.high_throughput else "Topic"}
    return {
        **(fifo if topic.fifo else {}),
        "MaximumMessageSize": str(topic.limit_bytes),
        "KmsMasterKeyId": topic.kms_key or "",
        TAGS: {**topic.tags, **own_tags(naming)},
    }


def _claims(service: Declares, binding: Binding, owners: dict[str, tuple[Declares, str]]) -> list[str]:
    claim = service, binding.queue.name
    return [
        f"queue {name!r} is claimed by two services: {_claimant(owners[name])} and {_claimant(claim)}"
        for name in (binding.queue.name, binding.queue.dead_letter_name)
        if owners.setdefault(name, claim) != claim
    ]


def _claimant(claim: tuple[Declares, str]) -> str:
    return f"{claim[0].name} (queue {claim[1]!r})"


def _topic_problems(topic: Topic, naming: Naming) -> list[str]:
    return name_errors("topic", naming.physical_name(topic.name), MAX_TOPIC_NAME_LENGTH, fifo=topic.fifo)


def _binding_problems(binding: Binding, naming: Naming, companions: TableAndBucket) -> list[str]:
    queue = binding.queue
    name = naming.physical_name(queue.dead_letter_name)
    problems = name_errors("queue", name, MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo)
    if not queue.existing and redrive_count(binding) < binding.attempts:
        problems.append(
            f"queue {queue.name!r}: max_receive_count={queue.max_receive_count} would dead-letter messages without a "
            f"reason before a retry policy's {binding.attempts} attempts are over; raise it well above them"
        )
    if companions.packs and queue.filter_policy and queue.filter_policy.scope == "MessageBody":
        problems.append(
            f"queue {queue.name!r}: its filter policy looks into bodies, and with SMARTPIPE_CLAIM_CHECK_URL or "
            "SMARTPIPE_COMPRESSION large ones are packed, which it would never match: filter by attributes"
        )
    if (queue.kms_key or "").endswith(AWS_SQS_KEY) and not queue.direct:
        problems.append(
            f"queue {queue.name!r}: SNS cannot deliver to a queue under {AWS_SQS_KEY}, whose policy nobody can change; "
            "leave kms_key out (SSE-SQS encrypts too), or use a key of your own"
        )
    return problems


def _part_problems(queue: Queue, part: Topology) -> list[str]:
    problems = []
    for (topic_arn, _), attributes in part.subscriptions.items():
        found = policy_errors(attributes["FilterPolicy"], attributes["FilterPolicyScope"]) if attributes else []
        problems += [f"queue {queue.name!r}, filter policy for {name_in(topic_arn)}: {one}" for one in found]
    for arn, attributes in part.queues.items():
        size = len(json.dumps(attributes.get("Policy")).encode())
        if size > POLICY_LIMIT_BYTES:
            problems.append(f"queue {name_in(arn)!r}: its policy would have {size:,} bytes; SQS takes 8,192")
    return problems
