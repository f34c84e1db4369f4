"""The deployed topics, subscriptions and queues as a tree, with the number of messages in each queue. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import name_in
from smartpipe.topology.resources import dead_letter_of, depth_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.topology.resources import Attributes, Topology


class QueueState(NamedTuple):
    """A queue with the approximate numbers of its messages, as SQS counts them.

    Args:
        exists: False for a declared queue that is not deployed.
        oldest_age_seconds: The age of its oldest message; None if it is unknown.
    """

    name: str
    arn: str
    exists: bool
    visible: int = 0
    in_flight: int = 0
    delayed: int = 0
    oldest_age_seconds: float | None = None
    dead_letters: QueueState | None = None


class Branch(NamedTuple):
    """A subscription and its queue; without a ``filter``, the queue gets all messages of the topic."""

    exists: bool
    filter: Mapping[str, Any] | None
    raw: bool
    queue: QueueState


class TopicState(NamedTuple):
    """A topic and the queues that are subscribed to it.

    With an empty name, the queues that get messages only directly. ``elsewhere`` is the number of subscriptions that
    do not belong to the services shown.
    """

    name: str
    arn: str
    exists: bool
    branches: tuple[Branch, ...]
    elsewhere: int = 0


def build_tree(desired: Topology, actual: Topology, ages: Mapping[str, float]) -> list[TopicState]:
    """Return the deployed state of the topology *desired*.

    Args:
        ages: The age in seconds of each queue's oldest message, by the physical name of the queue.
    """
    subscribed = {queue for _, queue in desired.subscriptions}
    mains = [arn for arn, wanted in desired.queues.items() if wanted.get("RedrivePolicy")]
    states = {arn: _queue(arn, actual, ages) for arn in mains}
    topics = [
        TopicState(
            name_in(topic),
            topic,
            topic in actual.topics,
            tuple(_branch(arns, actual, states[arns[1]]) for arns in desired.subscriptions if arns[0] == topic),
            sum(arns[0] == topic and arns not in desired.subscriptions for arns in actual.subscriptions),
        )
        for topic in desired.topics
    ]
    direct = tuple(
        Branch(exists=True, filter=None, raw=True, queue=states[arn]) for arn in mains if arn not in subscribed
    )
    return [*topics, TopicState("", "", exists=True, branches=direct)] if direct else topics


def _branch(arns: tuple[str, str], actual: Topology, queue: QueueState) -> Branch:
    found = actual.subscriptions.get(arns)
    if found is None:
        return Branch(exists=False, filter=None, raw=False, queue=queue)
    return Branch(True, found.get("FilterPolicy") or None, found.get("RawMessageDelivery") == "true", queue)


def _queue(arn: str, actual: Topology, ages: Mapping[str, float]) -> QueueState:
    attributes = actual.queues.get(arn)
    target = dead_letter_of(attributes)
    dead_letters = state_of(target, actual.queues.get(target), ages) if target else None
    return state_of(arn, attributes, ages)._replace(dead_letters=dead_letters)


def state_of(arn: str, attributes: Attributes | None, ages: Mapping[str, float]) -> QueueState:
    """Return the state of a queue with these *attributes*; None if it does not exist."""
    name = name_in(arn)
    if attributes is None:
        return QueueState(name, arn, exists=False)
    return QueueState(name, arn, True, *depth_of(attributes), ages.get(name))
