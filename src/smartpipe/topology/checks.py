"""What stands in the way of a plan, and what its reader should know. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_MESSAGE_BYTES
from smartpipe.names import name_in
from smartpipe.tags import PREFIX, SERVICE
from smartpipe.topology.plan import owner_of
from smartpipe.topology.policy import (
    MAX_STATEMENTS,
    POLICY_LIMIT_BYTES,
    fit_statements,
    key_statement,
    open_to_anybody,
    our_statement,
    source_topics,
    statements,
)
from smartpipe.topology.resources import TAGS, dead_letter_of
from smartpipe.topology.table_and_bucket import another_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.topology.resources import Attributes, Topology


def find_errors(desired: Topology, actual: Topology) -> list[str]:
    """Say why the plan cannot be carried out: nothing is changed while any of these holds."""
    found: list[str] = []
    for arn, wanted in desired.queues.items():
        present = actual.queues.get(arn)
        if arn in desired.external:
            found += _faults_of_existing(arn, wanted, present, _redriven(actual))
        else:
            found += _faults_of_own(arn, wanted, present)
    found += [
        fault
        for arn in desired.tables
        if arn in actual.tables and (fault := another_kind(name_in(arn), actual.tables[arn]["KeySchema"]))
    ]
    for arn, wanted in desired.topics.items():
        present = actual.topics.get(arn)
        found += _faults_of_prefix("topic", arn, wanted, present)
        if arn in desired.external and present is None:
            found.append(f"topic {arn} is declared by its ARN and does not exist, or may not be seen from here")
        if present and (present.get("FifoThroughputScope"), wanted.get("FifoThroughputScope")) == (
            "MessageGroup",
            "Topic",
        ):
            found.append(
                f"topic {name_in(arn)}: AWS never takes high throughput back; keep high_throughput=True, or delete it"
            )
    return found


def _faults_of_prefix(kind: str, arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[str]:
    """Prefix and name are put together without a separator, so two environments can mean one topic or queue."""
    ours, theirs = (one.get(TAGS, {}).get(PREFIX) for one in (wanted, present or {}))
    if ours is not None and theirs is not None and ours != theirs:
        yield (
            f"{kind} {name_in(arn)} belongs to the environment with SMARTPIPE_PREFIX={theirs!r}, and {ours!r} makes "
            "the same name of another one: end each prefix with a hyphen"
        )


def _redriven(actual: Topology) -> set[str]:
    """Return the dead-letter queues of what is there."""
    return {dead_letter_of(one) or "" for one in actual.queues.values()}


def _faults_of_existing(arn: str, wanted: Attributes, present: Attributes | None, redriven: set[str]) -> Iterator[str]:
    if present is None and "RedrivePolicy" not in wanted and arn not in redriven:
        return  # the dead-letter queue that it would have if it were there, or had not another
    if present is None:
        yield f"queue {arn} is declared existing=True and does not exist, or may not be seen from here"
        return
    expected, found = dead_letter_of(wanted), dead_letter_of(present)
    if expected and found != expected:
        mend = f'declare Queue(..., dead_letter="{name_in(found)}")' if found else "its owner has to give it one"
        yield f"queue {name_in(arn)}: its dead-letter queue is {found or 'missing'}, not {name_in(expected)}; {mend}"


def _faults_of_own(arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[str]:
    if present is None:
        return
    yield from _faults_of_prefix("queue", arn, wanted, present)
    owner = owner_of(present)
    if owner not in (None, owner_of(wanted)):
        yield (
            f"queue {name_in(arn)} belongs to application {owner!r}: two services claim one queue; rename one, set "
            "SMARTPIPE_APPLICATION, or declare it existing=True"
        )
    service, before = wanted[TAGS].get(SERVICE) if TAGS in wanted else None, present.get(TAGS, {}).get(SERVICE)
    if service and before and service != before:
        yield (
            f"queue {name_in(arn)} is of service {before!r}, and {service!r} claims it: rename one; if a service "
            f"only has a new name, remove the queue's tag {SERVICE} first"
        )
    if present.get("QueueArn", arn) != arn:
        yield f"queue {name_in(arn)} is {present['QueueArn']}, not {arn}: is SMARTPIPE_ACCOUNT_ID right?"
    text = present.get("Policy")
    ours = next(iter(wanted["Policy"]["Statement"]), None)
    planned = fit_statements(text, ours)
    size, count = len(planned.encode()), len(statements(planned))
    if ours and count > MAX_STATEMENTS:
        yield f"queue {name_in(arn)}: its policy would have {count} statements, and SQS takes {MAX_STATEMENTS}"
    if ours and size > POLICY_LIMIT_BYTES:
        yield (
            f"queue {name_in(arn)}: its policy would have {size:,} bytes with the statements of others, and SQS takes "
            f"{POLICY_LIMIT_BYTES:,}; shorten theirs"
        )


def find_warnings(desired: Topology, actual: Topology) -> list[str]:
    """Say what is allowed, and may be not what was meant."""
    found: list[str] = []
    for arn, wanted in desired.queues.items():
        present = actual.queues.get(arn)
        if arn not in desired.external:
            found += _notes_of_own(arn, wanted, present)
        elif present is not None:
            found += _notes_of_existing(arn, wanted, present)
        target = dead_letter_of(wanted)
        if target:
            found += _retention(arn, _known(desired, actual, arn), _known(desired, actual, target))
    for arn, wanted in desired.topics.items():
        present = actual.topics.get(arn)
        if present is not None and wanted and owner_of(present) is None:
            found.append(_adopted("topic", arn, 'declare it Topic(arn="...")'))
    return [*found, *_keys(desired)]


def _keys(desired: Topology) -> Iterator[str]:
    """Yield the statement that each KMS key needs, once."""
    topics: dict[str, set[str]] = {}
    queues: dict[str, str] = {}  # any of those under the key: all are in the key's region
    for (topic, queue), wanted in desired.subscriptions.items():
        for arn in filter(None, (queue, dead_letter_of(wanted))):
            if key := desired.queues.get(arn, {}).get("KmsMasterKeyId"):
                topics.setdefault(key, set()).add(topic)
                queues[key] = arn
    for key, arns in topics.items():
        needed = json.dumps(key_statement(queues[key], arns))
        yield f"SNS delivers to queues under key {key} only if the key's policy has this statement: {needed}"


def _known(desired: Topology, actual: Topology, arn: str) -> Attributes:
    """Return what a queue will be; of one that is somebody else's, what it is."""
    return actual.queues.get(arn, {}) if arn in desired.external else desired.queues[arn]


def _notes_of_own(arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[str]:
    name = name_in(arn)
    text = (present or {}).get("Policy")
    planned = fit_statements(text, next(iter(wanted["Policy"]["Statement"]), None))
    ours = our_statement(planned)
    if present is not None and owner_of(present) is None:
        yield _adopted("queue", arn, "declare it Queue(..., existing=True)")
    if ours and "ArnLike" in ours["Condition"]:
        yield (
            f"queue {name}: too many topics for a policy of {POLICY_LIMIT_BYTES:,} bytes, so it lets in all of "
            f"{', '.join(source_topics(ours))} of their own account"
        )
    for sid in open_to_anybody(text):
        yield f"queue {name}: its policy's statement {sid!r}, which is not smartpipe's, lets anybody in"


def _notes_of_existing(arn: str, wanted: Attributes, present: Attributes) -> Iterator[str]:
    recommended = wanted.get("RedrivePolicy", {}).get("maxReceiveCount")
    count = (present.get("RedrivePolicy") or {}).get("maxReceiveCount")
    if recommended and count and count < recommended:
        yield (
            f"queue {name_in(arn)}: SQS dead-letters after {count} deliveries, without a reason; its retry policies "
            f"want {recommended}"
        )
    size = int(present.get("MaximumMessageSize", MAX_MESSAGE_BYTES))
    if size < DEFAULT_TOPIC_LIMIT_BYTES:
        yield f"queue {name_in(arn)} takes messages of {size:,} bytes; SNS drops what is longer without a word"


def _retention(arn: str, queue: Attributes, dead_letter: Attributes) -> Iterator[str]:
    """Dead letters of standard queues are as old as they were: SQS, "Setting up dead-letter queue retention"."""
    source, target = (int(one.get("MessageRetentionPeriod", 0)) for one in (queue, dead_letter))
    if source and target and target <= source and queue.get("FifoQueue") != "true":
        yield (
            f"queue {name_in(arn)}: its dead-letter queue keeps messages for {target:,} s from when they were first "
            f"sent, which is no longer than the queue's own {source:,} s: late dead letters vanish at once"
        )


def _adopted(kind: str, arn: str, otherwise: str) -> str:
    return (
        f"{kind} {name_in(arn)} is there and carries no tags of smartpipe: apply makes it this application's, which "
        f"destroy would delete; {otherwise} to leave it alone"
    )
