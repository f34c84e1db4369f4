"""From what services declare to the topology they need. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from smartpipe.errors import ConfigError
from smartpipe.topology.model import (
    DEFAULT_TOPIC_LIMIT_BYTES,
    MAX_QUEUE_NAME_LENGTH,
    MAX_TOPIC_NAME_LENGTH,
    TYPE_ATTRIBUTE,
    Attributes,
    Topic,
    Topology,
    name_problems,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.events import Contract
    from smartpipe.topology.model import Queue
    from smartpipe.topology.naming import Naming

DEAD_LETTER_RETENTION_SECONDS = 1_209_600
POLICY_SID = "SmartpipeAllowSns"


class Binding(NamedTuple):
    """What one queue of a service is for, as far as the topology needs to know.

    Args:
        attempts: The most attempts of any retry policy on this queue.
        breaks: Whether a circuit breaker probes it while its handler's dependencies are down.
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


def derive(services: Iterable[Declares], naming: Naming) -> Topology:
    """Return every topic, queue, dead-letter queue and subscription that *services* need.

    Raises:
        ConfigError: Names that AWS would refuse, two services that claim one queue, a queue whose
            ``max_receive_count`` ends before its retry policies do.
    """
    topology = Topology({}, {}, {})
    problems: list[str] = []
    owners: dict[str, str] = {}
    topics: dict[str, Topic] = {}
    for service in services:
        for binding in service.bindings:
            for name in (binding.queue.name, binding.queue.dead_letter_name):
                claim = f"{service.name} (queue {binding.queue.name!r})"
                if owners.setdefault(name, claim) != claim:
                    problems.append(f"queue {name!r} is claimed by two services: {owners[name]} and {claim}")
            problems += [
                f"topic {topic.name!r} is declared twice with different settings"
                for topic in (contract.topic for contract in binding.contracts)
                if topics.setdefault(topic.name, topic) != topic
            ]
            problems += _binding_problems(binding, naming)
            _add(topology, binding, naming)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return topology


def redrive_count(binding: Binding) -> int:
    """Return the queue's maxReceiveCount: well above the attempts, for deliveries that were no failures."""
    deliveries_per_attempt = 12 if binding.queue.fifo else 3
    least = 100 if binding.breaks else 10
    return binding.queue.max_receive_count or min(1_000, max(least, deliveries_per_attempt * binding.attempts))


def statement(queue_arn: str, topic_arns: Iterable[str], account_id: str) -> dict[str, Any]:
    """Return the queue policy statement that lets these topics of this account, and no others, send here.

    Source: AWS, "Subscribing an Amazon SQS queue to an Amazon SNS topic", step 2; one statement
    with a list, because a policy has at most 20 statements.
    """
    return {
        "Sid": POLICY_SID,
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": sorted(topic_arns)},
            "StringEquals": {"aws:SourceAccount": account_id},
        },
    }


def _add(topology: Topology, binding: Binding, naming: Naming) -> None:
    queue = binding.queue
    queue_arn, dead_letter_arn = naming.queue_arn(queue.name), naming.queue_arn(queue.dead_letter_name)
    types: dict[str, set[str]] = {}
    for contract in binding.contracts:
        topic_arn = naming.topic_arn(contract.topic.name)
        topology.topics[topic_arn] = _topic_attributes(contract.topic)
        types.setdefault(topic_arn, set()).add(contract.type)
    fifo = {"FifoQueue": "true"} if queue.fifo else {}
    topology.queues[dead_letter_arn] = {**fifo, "MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_SECONDS)}
    topology.queues[queue_arn] = {
        **fifo,
        "VisibilityTimeout": str(queue.visibility_timeout_seconds),
        "MessageRetentionPeriod": str(queue.retention_seconds),
        "DelaySeconds": str(queue.delay_seconds),
        "RedrivePolicy": {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": redrive_count(binding)},
        "Policy": {"Version": "2012-10-17", "Statement": [statement(queue_arn, types, naming.account_id)]},
    }
    for topic_arn, names in types.items():
        topology.subscriptions[topic_arn, queue_arn] = {
            "RawMessageDelivery": "true",
            "FilterPolicy": {TYPE_ATTRIBUTE: sorted(names)},
        }


def _topic_attributes(topic: Topic) -> Attributes:
    # GetTopicAttributes leaves the limit out unless it was set, so the default is not asked for.
    limit = {} if topic.limit_bytes == DEFAULT_TOPIC_LIMIT_BYTES else {"MaximumMessageSize": str(topic.limit_bytes)}
    return {"FifoTopic": "true", **limit} if topic.fifo else limit


def _binding_problems(binding: Binding, naming: Naming) -> list[str]:
    queue = binding.queue
    problems = name_problems("queue", naming.physical(queue.dead_letter_name), MAX_QUEUE_NAME_LENGTH, fifo=queue.fifo)
    for topic in dict.fromkeys(contract.topic for contract in binding.contracts):
        problems += name_problems("topic", naming.physical(topic.name), MAX_TOPIC_NAME_LENGTH, fifo=topic.fifo)
    if redrive_count(binding) < binding.attempts:
        problems.append(
            f"queue {queue.name!r}: max_receive_count={queue.max_receive_count} would dead-letter messages without a "
            f"reason before a retry policy's {binding.attempts} attempts are over; raise it well above them"
        )
    return problems
