"""The resources that ``destroy`` deletes, and those that it keeps. Pure.

A resource that more than one owner may use is never deleted for one of them. Tables and buckets carry no trace of
who uses them, so they are always kept. A topic or queue is kept while there is a sign of another user: a
subscription, a redrive policy, or another deployed service of the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartpipe.names import name_in
from smartpipe.tags import APPLICATION, PREFIX, SERVICE
from smartpipe.topology.changes import Change
from smartpipe.topology.resources import TAGS, dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smartpipe.names import Naming
    from smartpipe.topology.changes import Kind
    from smartpipe.topology.resources import Attributes, Topology

_COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")


_REDRIVE = "RedrivePolicy"
MESSAGES = "Messages"
"""Stands in ``before`` of a queue that goes: how many messages it held when it was looked at."""
SOURCES = "DeadLetterSources"
"""Among a queue's attributes: the ARNs of the queues that use it as their dead-letter queue; None if SQS refused to
list them. In ``before`` of a queue that goes: those of them that go with it."""
SUBSCRIBERS = "Subscribers"
"""In ``before`` of a topic that goes: the endpoints that its subscriptions had, all of which go."""


def destruction(
    desired: Topology,
    actual: Topology,
    naming: Naming,
    *,
    orphaned: bool = False,
    even_if_not_empty: bool = False,
    orphans: Iterable[str] | None = (),
) -> list[Change]:
    """Return the deletions, subscriptions first and dead-letter queues last, and then the kept resources with reasons.

    Only topics and queues that carry smartpipe's tags for this application and prefix are deleted, and only while
    nothing shows that others use them. Tables and buckets are always kept.

    Args:
        orphaned: Also delete resources that carry the tags and that no TARGET declares.
        even_if_not_empty: Delete queues whatever they hold, and whatever has arrived since.
        orphans: ARNs that carry the tags and no TARGET declares, besides those in *actual*; None if unknown.
    """
    queues = {arn: found for arn, found in actual.queues.items() if orphaned or arn in desired.queues}
    topics = {arn: found for arn, found in actual.topics.items() if orphaned or arn in desired.topics}
    kept: dict[str, Change] = {}
    for kind, found in (("queue", queues), ("topic", topics)):
        for arn, attributes in found.items():
            reason = _reason_to_keep(arn, attributes, desired, naming)
            if reason:
                kept[arn] = _kept(kind, arn, reason)  # type: ignore[arg-type]
    doomed = {*queues, *topics} - kept.keys()
    while users := _used_by_what_stays(doomed, actual):  # to keep a queue is to keep its own dead-letter queue too
        kept |= {arn: _kept("queue", arn, reason) for arn, reason in users.items()}
        doomed -= users.keys()
    elsewhere = _other_services(desired, actual, orphans, doomed)
    for topic in topics.keys() & doomed:
        reason = _used_by_others(topic, actual, doomed) or elsewhere
        if reason:
            doomed.discard(topic)
            kept[topic] = _kept("topic", topic, reason)
    going = [
        Change("delete", "subscription", arns, {}, {}) for arns in actual.subscriptions if doomed.intersection(arns)
    ]
    going += [_topic_goes(arn, actual) for arn in topics if arn in doomed]
    going += [
        _queue_goes(arn, actual, even_if_not_empty=even_if_not_empty)
        for arn in sorted(queues, key=lambda arn: _REDRIVE not in queues[arn])
        if arn in doomed
    ]
    shared = [
        _kept("table", arn, "services and environments may share it, and claims are in it") for arn in actual.tables
    ]
    shared += [_kept("bucket", arn, "environments may share it, and messages point there") for arn in actual.buckets]
    return [*going, *(kept[arn] for arn in (*queues, *topics) if arn in kept), *shared]


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
    if arn in desired.external:
        return "another team owns it"
    if (tags.get(APPLICATION), tags.get(PREFIX)) != (naming.application, naming.prefix):
        owner = tags.get(APPLICATION)
        return f"its tags name application {owner}" if owner else "it carries no tags of smartpipe"
    service = desired.queues.get(arn, {}).get(TAGS, {}).get(SERVICE)
    if service and tags.get(SERVICE, service) != service:
        return f"its tags name service {tags[SERVICE]}"
    return ""


def _used_by_what_stays(doomed: set[str], actual: Topology) -> dict[str, str]:
    """Return why each queue is kept after all that a staying queue uses as its dead-letter queue."""
    users = {arn: set(attributes.get(SOURCES) or ()) for arn, attributes in actual.queues.items() if arn in doomed}
    for source, attributes in actual.queues.items():
        users.get(dead_letter_of(attributes) or "", set()).add(source)
    reasons = {
        arn: f"queues that stay use it as their dead-letter queue: {', '.join(sorted(map(name_in, sources - doomed)))}"
        for arn, sources in users.items()
        if sources - doomed
    }
    unknown = "which queues use it as their dead-letter queue is not known: sqs:ListDeadLetterSourceQueues was refused"
    return reasons | {arn: unknown for arn in users if actual.queues[arn].get(SOURCES, ()) is None}


def _used_by_others(topic: str, actual: Topology, doomed: set[str]) -> str:
    others = [endpoint for on, endpoint in actual.subscriptions if on == topic and endpoint not in doomed]
    return f"others subscribe to it: {', '.join(map(name_in, others))}" if others else ""


def _other_services(desired: Topology, actual: Topology, orphans: Iterable[str] | None, doomed: set[str]) -> str:
    """Return the reason to keep every topic while other services of the application, which may publish, are there."""
    if orphans is None:
        return "whether other services of the application publish to it is not known: see the note"
    left = dict.fromkeys([*actual.queues, *(arn for arn in orphans if ":sqs:" in arn)])
    others = [name_in(arn) for arn in left if arn not in desired.queues and arn not in doomed]
    if not others:
        return ""
    return f"other services of the application may publish to it, and are still there: queue {others[-1]}"


def _queue_goes(arn: str, actual: Topology, *, even_if_not_empty: bool) -> Change:
    attributes = actual.queues[arn]
    before: Attributes = {_REDRIVE: attributes[_REDRIVE]} if _REDRIVE in attributes else {}
    if not even_if_not_empty:
        before[MESSAGES] = messages_in(attributes)
    sources = [source for source, one in actual.queues.items() if dead_letter_of(one) == arn]
    return Change("delete", "queue", (arn,), {}, {**before, SOURCES: sources} if sources else before)


def _topic_goes(arn: str, actual: Topology) -> Change:
    return Change("delete", "topic", (arn,), {}, {SUBSCRIBERS: [end for on, end in actual.subscriptions if on == arn]})


def _kept(kind: Kind, arn: str, reason: str) -> Change:
    return Change("external", kind, (arn,), {}, {}, reason)
