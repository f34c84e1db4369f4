"""The changes that turn the deployed topology into the declared one. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.tags import SERVICE
from smartpipe.topology.changes import Change
from smartpipe.topology.kinds import KINDS, Stage, kinds_in_plan_order
from smartpipe.topology.policy import build_statement, find_our_statement, source_topics
from smartpipe.topology.resources import IGNORED_IF_ABSENT, TAGS, Attributes, arns_of, dead_letter_of, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.topology.kinds import ResourceKind
    from smartpipe.topology.resources import Key, Topology


def plan(desired: Topology, actual: Topology) -> list[Change]:
    """Return a change for each resource, in an order that leaves no gap in delivery.

    Queues and their policies come before subscriptions. A subscription that no handler needs any more is deleted after
    new ones exist. Only then does its queue's policy exclude its topic. The plan compares only attributes that
    *desired* names. Other attributes, tags, and policy statements that smartpipe did not write, stay as they are.
    """
    unwanted = list(_find_unwanted_subscriptions(desired, actual))
    leaving = _topics_by_queue(unwanted, desired)
    changes: list[Change] = []
    narrowed: list[Change] = []
    for kind in kinds_in_plan_order():
        for key, wanted in desired.of(kind.name).items():
            present = actual.of(kind.name).get(key)
            topics = leaving.get(key, [])
            change = _compare(kind, key, _admit(key, wanted, topics), present, desired)
            changes.append(change)
            if topics:
                tags = {TAGS: wanted[TAGS]} if TAGS in wanted else {}
                narrowed.append(_compare(kind, key, wanted, {**(present or {}), **change.attributes, **tags}, desired))
    changes += [
        Change("delete", "subscription", arns, {}, {}, "no handler needs its events any more") for arns in unwanted
    ]
    changes += [change for change in narrowed if change.pending]
    return [*changes, *_find_undeclared(desired, actual, set(unwanted))]


def group_into_stages(changes: Iterable[Change]) -> list[list[Change]]:
    """Group *changes*, in the order of a plan, into stages; the changes of a stage do not depend on each other.

    An update after a deletion narrows a queue's policy, which must wait until the subscription is gone.
    """
    stages: dict[Stage, list[Change]] = {}
    is_deleting = False
    for change in changes:
        is_deletion = change.action == "delete"
        stage = KINDS[change.kind].choose_stage(change.action, change.before if is_deletion else change.attributes)
        if is_deleting and not is_deletion:
            stage = Stage.NARROW_POLICIES
        is_deleting = is_deleting or is_deletion
        stages.setdefault(stage, []).append(change)
    return [stages[stage] for stage in sorted(stages)]


def _find_unwanted_subscriptions(desired: Topology, actual: Topology) -> Iterator[tuple[str, str]]:
    """Yield subscriptions of our queues that no service declares, if smartpipe made them.

    It did if its statement in the queue's policy names the topic.
    """
    for topic, endpoint in actual.subscriptions:
        is_our_queue = endpoint in desired.queues and endpoint not in desired.external
        if (topic, endpoint) in desired.subscriptions or not is_our_queue:
            continue
        ours = find_our_statement((actual.queues.get(endpoint) or {}).get("Policy"))
        if ours and any(_matches(topic, pattern) for pattern in source_topics(ours)):
            yield topic, endpoint


def _matches(arn: str, pattern: str) -> bool:
    return arn.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else arn == pattern


def _topics_by_queue(subscriptions: Iterable[tuple[str, str]], desired: Topology) -> dict[Any, list[str]]:
    """Return the topics of these subscriptions by the ARN of the queue, and by that of its dead-letter queue."""
    found: dict[Any, list[str]] = {}
    for topic, queue in subscriptions:
        for arn in filter(None, (queue, dead_letter_of(desired.queues[queue]))):
            found.setdefault(arn, []).append(topic)
    return found


def _admit(arn: str, wanted: Attributes, topics: list[str]) -> Attributes:
    """Return the attributes of a queue with a policy that also admits these *topics*, until they are unsubscribed."""
    if not topics:
        return wanted
    ours = next(iter(wanted["Policy"]["Statement"]), None)
    staying = source_topics(ours) if ours else []
    if any(pattern.endswith("*") for pattern in staying):
        return wanted  # the statement names a pattern of topics; no event is lost if it is narrowed early
    return {**wanted, "Policy": {**wanted["Policy"], "Statement": [build_statement(arn, {*staying, *topics})]}}


def _compare(kind: ResourceKind, key: Key, wanted: Attributes, present: Attributes | None, desired: Topology) -> Change:
    reason = kind.find_external_reason(key, wanted, present, desired)
    if reason:
        return Change("external", kind.name, arns_of(key), {}, {}, reason)
    wanted = kind.merge(wanted, present)
    if present is None:
        return Change("create", kind.name, arns_of(key), wanted, {})
    after: Attributes = {}
    before: Attributes = {}
    for name, value in wanted.items():
        found = present.get(name, kind.defaults.get(name))
        if name == TAGS:
            tags = found or {}
            differing = {key: text for key, text in value.items() if tags.get(key) != text}
            if differing:
                after[name], before[name] = differing, {key: tags.get(key) for key in differing}
        elif found is None and name in IGNORED_IF_ABSENT and owner_of(present) is not None:
            continue
        elif not _is_same(found, value):
            after[name], before[name] = value, found
    if not after:
        return Change("unchanged", kind.name, arns_of(key), {}, {})
    return Change("update", kind.name, arns_of(key), after, before)


def _is_same(found: Any, wanted: Any) -> bool:
    """Compare by value. AWS may return the lists of a filter policy in another order."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_is_same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return sorted(map(json.dumps, found)) == sorted(map(json.dumps, wanted))
    return bool(found == wanted)


def _find_undeclared(desired: Topology, actual: Topology, unwanted: set[tuple[str, str]]) -> Iterator[Change]:
    """Yield the deployed resources that no service declares and that the plan leaves alone."""
    for kind in kinds_in_plan_order():
        for arn, attributes in actual.of(kind.name).items():
            if kind.finds_orphans and arn not in desired.of(kind.name):
                service = attributes.get(TAGS, {}).get(SERVICE)
                reason = "no TARGET declares it" + (f"; its tags name service {service}" if service else "")
                yield Change("orphaned", kind.name, (arn,), {}, {}, reason)
    for arns in actual.subscriptions:
        topic, _ = arns
        if arns not in desired.subscriptions and arns not in unwanted and topic in desired.topics:
            yield Change("external", "subscription", arns, {}, {}, "not declared by these TARGETs")
