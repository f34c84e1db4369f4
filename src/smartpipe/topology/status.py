"""Topics, their subscriptions, queues and dead-letter queues as a tree, with what is in them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.names import name_in
from smartpipe.topology.resources import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.topology.resources import Attributes, Topology


class QueueState(NamedTuple):
    """A queue and what is in it, as far as SQS knows: its counts are approximate.

    Args:
        oldest_age_seconds: How long its oldest message has waited; None where nobody knows.
        exists: False for one that is declared and not there.
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
    """A subscription and its queue; without a ``filter``, all of the topic's messages."""

    exists: bool
    filter: Mapping[str, Any] | None
    raw: bool
    queue: QueueState


class TopicState(NamedTuple):
    """A topic, or with an empty name what is only sent to directly, and the queues it feeds.

    ``elsewhere`` counts subscriptions that are not of the services shown.
    """

    name: str
    arn: str
    exists: bool
    branches: tuple[Branch, ...]
    elsewhere: int = 0


def tree(desired: Topology, actual: Topology, ages: Mapping[str, float]) -> list[TopicState]:
    """Return what *desired* names, as it is; *ages* are of the queues' oldest messages, by physical name."""
    fed = {queue for _, queue in desired.subscriptions}
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
    direct = tuple(Branch(exists=True, filter=None, raw=True, queue=states[arn]) for arn in mains if arn not in fed)
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
    """Return a queue as its *attributes* describe it; None: it is not there."""
    name = name_in(arn)
    if attributes is None:
        return QueueState(name, arn, exists=False)
    visible, in_flight, delayed = (
        int(attributes.get(f"ApproximateNumberOfMessages{one}", 0)) for one in ("", "NotVisible", "Delayed")
    )
    return QueueState(name, arn, True, visible, in_flight, delayed, ages.get(name))
