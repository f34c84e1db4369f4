"""What to change so that what is there becomes what is wanted. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES
from smartpipe.tags import APPLICATION, SERVICE
from smartpipe.topology.changes import Change, Kind
from smartpipe.topology.policy import fit_statements, merge_statements, our_statement, source_topics, statement
from smartpipe.topology.resources import (
    QUEUE_DEFAULTS,
    SAID_ONCE,
    SUBSCRIPTION_DEFAULTS,
    TAGS,
    TOPIC_DEFAULTS,
    Attributes,
    dead_letter_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from smartpipe.topology.resources import Topology


def plan(desired: Topology, actual: Topology) -> list[Change]:
    """Return what becomes of each resource, in an order that opens no hole in delivery.

    Queues and their policies come before subscriptions; a subscription that nobody wants any more goes
    after new ones are there, and only then does its queue's policy shut its topic out. Only what
    *desired* names is looked at; other attributes, tags, and policy statements that smartpipe did not
    write, stay as they are.
    """
    stale = list(_stale(desired, actual))
    changes: list[Change] = []
    narrowed: list[Change] = []
    for arn, wanted in desired.queues.items():
        leaving = [topic for topic, queue in stale if arn in (queue, dead_letter_of(desired.queues[queue]))]
        present = actual.queues.get(arn)
        change = _queue_change(arn, wanted, present, desired, leaving)
        changes.append(change)
        if leaving:
            afterwards = {**(present or {}), **change.attributes, TAGS: wanted[TAGS]}
            narrowed.append(_queue_change(arn, wanted, afterwards, desired, []))
    changes += [_topic_change(arn, wanted, actual.topics.get(arn), desired) for arn, wanted in desired.topics.items()]
    changes += _companion_changes("table", desired.tables, actual.tables)
    changes += _companion_changes("bucket", desired.buckets, actual.buckets)
    changes += [
        _subscription_change(arns, wanted, actual.subscriptions.get(arns), desired)
        for arns, wanted in desired.subscriptions.items()
    ]
    changes += [
        Change("delete", "subscription", arns, {}, {}, "no handler wants its events any more") for arns in stale
    ]
    shut_out = [change for change in narrowed if change.pending]
    return [*changes, *shut_out, *_others(desired, actual, set(stale))]


def _stale(desired: Topology, actual: Topology) -> Iterator[tuple[str, str]]:
    """Yield the subscriptions that smartpipe made and nobody wants: our statement in the queue names their topic."""
    for topic, endpoint in actual.subscriptions:
        if (topic, endpoint) in desired.subscriptions or endpoint not in desired.queues or endpoint in desired.external:
            continue
        ours = our_statement((actual.queues.get(endpoint) or {}).get("Policy"))
        if ours and any(_like(topic, pattern) for pattern in source_topics(ours)):
            yield topic, endpoint


def _like(arn: str, pattern: str) -> bool:
    return arn.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else arn == pattern


def _queue_change(
    arn: str, wanted: Attributes, present: Attributes | None, desired: Topology, leaving: list[str]
) -> Change:
    if arn in desired.external:
        return Change("external", "queue", (arn,), {}, {}, "existing=True: looked at, never changed")
    if int((present or {}).get("MaximumMessageSize", DEFAULT_TOPIC_LIMIT_BYTES)) < DEFAULT_TOPIC_LIMIT_BYTES:
        # Without a word, SNS drops what is longer than its queue takes.
        wanted = {"MaximumMessageSize": str(DEFAULT_TOPIC_LIMIT_BYTES), **wanted}
    if "Policy" in wanted:
        wanted = {**wanted, "Policy": _policy(wanted["Policy"], (present or {}).get("Policy"), arn, leaving)}
        if not wanted["Policy"] and not (present or {}).get("Policy"):
            del wanted["Policy"]
    return _change("queue", (arn,), wanted, present, QUEUE_DEFAULTS)


def _policy(wanted: Attributes, text: str | None, arn: str, leaving: list[str]) -> str:
    """Return the policy's text with our statement in it, which lets those in too that are about to leave."""
    ours = next(iter(wanted["Statement"]), None)
    if not leaving:
        return fit_statements(text, ours)
    staying = source_topics(ours) if ours else []
    if any(pattern.endswith("*") for pattern in staying):
        return merge_statements(
            text, ours
        )  # a pattern was let in; it does no harm that it lets fewer in a moment earlier
    return fit_statements(text, statement(arn, {*staying, *leaving}))


def _topic_change(arn: str, wanted: Attributes, present: Attributes | None, desired: Topology) -> Change:
    if arn in desired.external:
        return Change("external", "topic", (arn,), {}, {}, "declared by its ARN: looked at, never changed")
    owner = owner_of(present)
    if owner not in (None, owner_of(wanted)):
        return Change("external", "topic", (arn,), {}, {}, f"application {owner} manages it")
    return _change("topic", (arn,), wanted, present, TOPIC_DEFAULTS)


def _companion_changes(
    kind: Kind, wanted: Mapping[str, Attributes], present: Mapping[str, Attributes]
) -> Iterator[Change]:
    for arn, attributes in wanted.items():
        owner = owner_of(present.get(arn))
        if owner not in (None, owner_of(attributes)):
            yield Change("external", kind, (arn,), {}, {}, f"application {owner} manages it")
        else:
            yield _change(kind, (arn,), attributes, present.get(arn), {})


def _subscription_change(
    arns: tuple[str, str], wanted: Attributes, present: Attributes | None, desired: Topology
) -> Change:
    if arns[1] in desired.external:
        reason = "the queue is its owner's" if present is not None else "missing: the queue's owner has to subscribe it"
        return Change("external", "subscription", arns, {}, {}, reason)
    return _change("subscription", arns, wanted, present, SUBSCRIPTION_DEFAULTS)


def owner_of(present: Attributes | None) -> str | None:
    """Return the application whose tags a resource carries."""
    found: str | None = (present or {}).get(TAGS, {}).get(APPLICATION)
    return found


def _change(
    kind: Kind, arns: tuple[str, ...], wanted: Attributes, present: Attributes | None, defaults: dict[str, str]
) -> Change:
    if present is None:
        return Change("create", kind, arns, wanted, {})
    after: Attributes = {}
    before: Attributes = {}
    for name, value in wanted.items():
        found = present.get(name, defaults.get(name))
        if name == TAGS:
            tags = found or {}
            differing = {key: text for key, text in value.items() if tags.get(key) != text}
            if differing:
                after[name], before[name] = differing, {key: tags.get(key) for key in differing}
        elif found is None and name in SAID_ONCE and owner_of(present) is not None:
            continue
        elif not _same(found, value):
            after[name], before[name] = value, found
    if not after:
        return Change("unchanged", kind, arns, {}, {})
    return Change("update", kind, arns, after, before)


def _same(found: Any, wanted: Any) -> bool:
    """Compare by value; AWS keeps lists of a filter policy in any order that it was given."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return sorted(map(json.dumps, found)) == sorted(map(json.dumps, wanted))
    return bool(found == wanted)


def _others(desired: Topology, actual: Topology, stale: set[tuple[str, str]]) -> Iterator[Change]:
    """Yield what is there and nobody asked for."""
    for kind, found, wanted in (
        ("queue", actual.queues, desired.queues),
        ("topic", actual.topics, desired.topics),
    ):
        for arn, attributes in found.items():
            if arn not in wanted:
                service = attributes.get(TAGS, {}).get(SERVICE)
                reason = "no TARGET declares it" + (f"; it was service {service}'s" if service else "")
                yield Change("orphaned", kind, (arn,), {}, {}, reason)  # type: ignore[arg-type]
    for arns in actual.subscriptions:
        topic, _ = arns
        if arns not in desired.subscriptions and arns not in stale and topic in desired.topics:
            yield Change("external", "subscription", arns, {}, {}, "not of these TARGETs")


def stages(changes: Iterable[Change]) -> list[list[Change]]:
    """Group *changes*, which are in an order that opens no hole, into stages whose members do not need one another.

    A dead-letter queue is there before its queue, both before a subscription, all new subscriptions before an old
    one goes; only then does a policy shut a topic out. Of what is destroyed queues go before their dead-letter queues.
    """
    numbered: dict[int, list[Change]] = {}
    highest = 0
    for change in changes:
        number = _number(change)
        if change.kind == "queue" and change.action != "delete" and highest >= _DELETES:
            number = _DELETES + 1
        highest = max(highest, number)
        numbered.setdefault(number, []).append(change)
    return [numbered[number] for number in sorted(numbered)]


_DELETES = 3


def _number(change: Change) -> int:
    if change.action == "delete":
        queue = 3 if "RedrivePolicy" in change.before else 4
        return _DELETES + {"subscription": 0, "queue": queue}.get(change.kind, 2)
    if change.kind == "queue":
        return 1 if "RedrivePolicy" in change.attributes else 0
    return 2 if change.kind == "subscription" else 1
