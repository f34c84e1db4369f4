"""What ``destroy`` deletes, and what it keeps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from smartpipe.topology.changes import Change
from smartpipe.topology.naming import name_in
from smartpipe.topology.resources import TAGS
from smartpipe.topology.tags import APPLICATION, PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smartpipe.topology.naming import Naming
    from smartpipe.topology.resources import Attributes, Topology

_COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")


_REDRIVE = "RedrivePolicy"
MESSAGES = "Messages"
"""Stands in ``before`` of a queue that goes: how many messages it held when it was looked at."""


def destruction(
    desired: Topology, actual: Topology, naming: Naming, *, orphaned: bool = False, even_if_not_empty: bool = False
) -> list[Change]:
    """Return what goes, subscriptions first and dead-letter queues last, and what stays although it was declared.

    Only what carries smartpipe's tags for this application and prefix goes; a topic stays while others
    subscribe to it.

    Args:
        orphaned: Also what carries the tags and no TARGET declares.
        even_if_not_empty: Whatever the queues hold, and have got meanwhile.
    """
    queues = {arn: found for arn, found in actual.queues.items() if orphaned or arn in desired.queues}
    topics = {arn: found for arn, found in actual.topics.items() if orphaned or arn in desired.topics}
    kept: list[Change] = []
    doomed: set[str] = set()
    for kind, found in (("queue", queues), ("topic", topics), ("table", actual.tables)):
        for arn, attributes in found.items():
            reason = _reason_to_keep(arn, attributes, desired, naming)
            if reason:
                kept.append(_kept(kind, arn, reason))  # type: ignore[arg-type]
            else:
                doomed.add(arn)
    for topic in topics:
        others = [endpoint for on, endpoint in actual.subscriptions if on == topic and endpoint not in doomed]
        if topic in doomed and others:
            doomed.discard(topic)
            kept.append(_kept("topic", topic, f"others subscribe to it: {', '.join(map(name_in, others))}"))
    going = [
        Change("delete", "subscription", arns, {}, {}) for arns in actual.subscriptions if doomed.intersection(arns)
    ]
    going += [Change("delete", "topic", (arn,), {}, {}) for arn in topics if arn in doomed]
    going += [Change("delete", "table", (arn,), {}, {}) for arn in actual.tables if arn in doomed]
    kept += [_kept("bucket", arn, "environments may share it, and messages point there") for arn in actual.buckets]
    going += [
        _goes(arn, queues[arn], even_if_not_empty=even_if_not_empty)
        for arn in sorted(queues, key=lambda arn: _REDRIVE not in queues[arn])
        if arn in doomed
    ]
    return [*going, *kept]


def holding(changes: list[Change], actual: Topology) -> list[str]:
    """Name the queues among those that go which hold messages, with how many."""
    found = []
    for change in changes:
        if change.action == "delete" and change.kind == "queue":
            count = messages_in(actual.queues[change.arns[0]])
            if count:
                found.append(f"queue {change.name} holds about {count:,} message{'s' if count > 1 else ''}")
    return found


def messages_in(attributes: Mapping[str, Any]) -> int:
    """Return about how many messages a queue holds, by its attributes."""
    return sum(int(attributes.get(name, 0)) for name in _COUNTS)


def _reason_to_keep(arn: str, attributes: Attributes, desired: Topology, naming: Naming) -> str:
    tags = attributes.get(TAGS, {})
    if arn in desired.given:
        return "somebody else's"
    if (tags.get(APPLICATION), tags.get(PREFIX)) != (naming.application, naming.prefix):
        owner = tags.get(APPLICATION)
        return f"its tags name application {owner}" if owner else "it carries no tags of smartpipe"
    return ""


def _goes(arn: str, attributes: Attributes, *, even_if_not_empty: bool) -> Change:
    before: Attributes = {_REDRIVE: attributes[_REDRIVE]} if _REDRIVE in attributes else {}
    if not even_if_not_empty:
        before[MESSAGES] = messages_in(attributes)
    return Change("delete", "queue", (arn,), {}, before)


def _kept(kind: Literal["queue", "topic", "table", "bucket"], arn: str, reason: str) -> Change:
    return Change("foreign", kind, (arn,), {}, {}, reason)
