"""The resources that ``destroy`` deletes, and those that it keeps. Pure.

A resource that more than one owner may use is never deleted for one of them. AWS does not know who uses a table or a
bucket, so both are always kept. A topic or queue is kept while there is a sign of another user: a subscription, a
redrive policy, or another deployed service of the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpipe.names import name_in
from smartpipe.tags import APPLICATION, PREFIX, SERVICE
from smartpipe.topology.changes import Change
from smartpipe.topology.kinds import KINDS, MESSAGES, QUEUE, SOURCES, kinds_in_plan_order
from smartpipe.topology.resources import TAGS, count_messages, dead_letter_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smartpipe.names import Naming
    from smartpipe.topology.kinds import ResourceKind
    from smartpipe.topology.resources import Attributes, Topology


def plan_destroy(
    desired: Topology,
    actual: Topology,
    naming: Naming,
    *,
    orphaned: bool = False,
    even_if_not_empty: bool = False,
    orphans: Iterable[str] | None = (),
) -> list[Change]:
    """Return the deletions, subscriptions first and dead-letter queues last, and then the kept resources with reasons.

    Only resources that carry smartpipe's tags for this application and prefix are deleted, and only while nothing
    shows that others use them.

    Args:
        orphaned: Also delete resources that carry the tags and that no TARGET declares.
        even_if_not_empty: Delete queues no matter how many messages they hold or have received since.
        orphans: ARNs of resources that carry the tags and that no TARGET declares, in addition to those in *actual*;
            None if unknown.
    """
    kinds = {
        arn: kind
        for kind in kinds_in_plan_order()
        for arn in actual.of(kind.name)
        if isinstance(arn, str) and (orphaned or kind.kept_because or arn in desired.of(kind.name))
    }
    reasons = {
        arn: kind.kept_because or _find_reason_to_keep(arn, kind, desired, actual, naming)
        for arn, kind in kinds.items()
    }
    kept = {arn: reason for arn, reason in reasons.items() if reason}
    to_delete = kinds.keys() - kept.keys()
    while users := _find_used_dead_letter_queues(to_delete, actual):
        # A queue that is kept after all keeps its own dead-letter queue too, so ask again.
        kept |= users
        to_delete -= users.keys()
    other_services = _find_other_services(desired, actual, orphans, to_delete)
    for topic in [arn for arn in actual.topics if arn in to_delete]:
        reason = _find_other_subscribers(topic, actual, to_delete) or other_services
        if reason:
            to_delete.discard(topic)
            kept[topic] = reason
    deletions = [
        Change("delete", "subscription", arns, {}, {}) for arns in actual.subscriptions if to_delete.intersection(arns)
    ]
    deletions += [
        Change(
            "delete", kind.name, (arn,), {}, _describe_before(kind, arn, actual, even_if_not_empty=even_if_not_empty)
        )
        for arn, kind in kinds.items()
        if arn in to_delete
    ]
    deletions.sort(key=lambda change: KINDS[change.kind].choose_stage("delete", change.before))
    return [
        *deletions,
        *(Change("external", kind.name, (arn,), {}, {}, kept[arn]) for arn, kind in kinds.items() if arn in kept),
    ]


def describe_full_queues(changes: list[Change], actual: Topology) -> list[str]:
    """Return a sentence for each queue that will be deleted and that holds messages, with their number."""
    found = []
    for change in changes:
        if change.action == "delete" and change.kind == QUEUE.name:
            count = count_messages(actual.queues[change.arns[0]])
            if count:
                found.append(f"queue {change.name} holds about {count:,} message{'s' if count > 1 else ''}")
    return found


def _find_reason_to_keep(arn: str, kind: ResourceKind, desired: Topology, actual: Topology, naming: Naming) -> str:
    tags = actual.of(kind.name)[arn].get(TAGS, {})
    if arn in desired.external:
        return "another team owns it"
    if (tags.get(APPLICATION), tags.get(PREFIX)) != (naming.application, naming.prefix):
        owner = tags.get(APPLICATION)
        return f"its tags name application {owner}" if owner else "it has no tags of smartpipe"
    service = desired.of(kind.name).get(arn, {}).get(TAGS, {}).get(SERVICE)
    if service and tags.get(SERVICE, service) != service:
        return f"its tags name service {tags[SERVICE]}"
    return ""


def _find_used_dead_letter_queues(to_delete: set[str], actual: Topology) -> dict[str, str]:
    """Return the reason to keep each queue that a queue which is kept uses as its dead-letter queue."""
    users = {arn: set(attributes.get(SOURCES) or ()) for arn, attributes in actual.queues.items() if arn in to_delete}
    for source, attributes in actual.queues.items():
        users.get(dead_letter_of(attributes) or "", set()).add(source)
    kept = {arn: ", ".join(sorted(map(name_in, sources - to_delete))) for arn, sources in users.items()}
    reasons = {
        arn: f"queues that are kept use it as their dead-letter queue: {names}" for arn, names in kept.items() if names
    }
    unknown = "IAM refused sqs:ListDeadLetterSourceQueues, so other queues may use it as their dead-letter queue"
    return reasons | {arn: unknown for arn in users if actual.queues[arn].get(SOURCES, ()) is None}


def _find_other_subscribers(topic: str, actual: Topology, to_delete: set[str]) -> str:
    others = [endpoint for on, endpoint in actual.subscriptions if on == topic and endpoint not in to_delete]
    return f"it has other subscribers: {', '.join(map(name_in, others))}" if others else ""


def _find_other_services(
    desired: Topology, actual: Topology, orphans: Iterable[str] | None, to_delete: set[str]
) -> str:
    """Return the reason to keep every topic while the application has other services, which may publish."""
    if orphans is None:
        return "other services of the application may publish to it, and AWS did not list them: see the note"
    left = dict.fromkeys([*actual.queues, *(arn for arn in orphans if QUEUE.matches(arn))])
    others = [name_in(arn) for arn in left if arn not in desired.queues and arn not in to_delete]
    if not others:
        return ""
    return f"other services of the application may publish to it, and they still exist: queue {others[-1]}"


def _describe_before(kind: ResourceKind, arn: str, actual: Topology, *, even_if_not_empty: bool) -> Attributes:
    """Return the attributes for ``Change.before``; a queue without a number of messages is deleted in any case."""
    found = kind.describe_before_delete(arn, actual)
    return {name: value for name, value in found.items() if not (even_if_not_empty and name == MESSAGES)}
