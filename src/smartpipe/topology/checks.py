"""Errors that make a plan impossible, and warnings for its reader. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from smartpipe.limits import DEFAULT_TOPIC_LIMIT_BYTES, MAX_MESSAGE_BYTES
from smartpipe.names import name_in
from smartpipe.tags import PREFIX, SERVICE
from smartpipe.topology.derive import DEAD_LETTER_RETENTION_SECONDS
from smartpipe.topology.kinds import KINDS
from smartpipe.topology.policy import (
    MAX_STATEMENTS,
    POLICY_LIMIT_BYTES,
    build_key_statement,
    find_open_statements,
    find_our_statement,
    fit_statements,
    read_statements,
    source_topics,
)
from smartpipe.topology.resources import TAGS, dead_letter_of, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.topology.derive import Declares
    from smartpipe.topology.resources import Attributes, Topology


class Note(NamedTuple):
    """A warning with the code of its finding in ``smartpipe doctor``.

    Args:
        resource: The topic, queue or key that it is about.
    """

    code: str
    resource: str
    text: str


def find_errors(desired: Topology, actual: Topology) -> list[str]:
    """Return why the plan cannot be carried out; ``apply`` changes nothing while there is an error."""
    found: list[str] = []
    for arn, wanted in desired.queues.items():
        present = actual.queues.get(arn)
        if arn in desired.external:
            found += _find_external_queue_errors(arn, wanted, present, _dead_letter_queues(actual))
        else:
            found += _find_own_queue_errors(arn, wanted, present)
    for kind in KINDS.values():
        deployed = actual.of(kind.name)
        for arn in desired.of(kind.name):
            found += kind.find_errors(arn, deployed[arn]) if arn in deployed else ()
    for arn, wanted in desired.topics.items():
        found += _find_topic_errors(arn, wanted, actual.topics.get(arn), is_external=arn in desired.external)
    return found


def _find_topic_errors(arn: str, wanted: Attributes, present: Attributes | None, *, is_external: bool) -> Iterator[str]:
    yield from _find_prefix_errors("topic", arn, wanted, present)
    if is_external and present is None:
        yield f"topic {arn} is declared by its ARN and does not exist, or your credentials may not read it"
    if present and (present.get("FifoThroughputScope"), wanted.get("FifoThroughputScope")) == ("MessageGroup", "Topic"):
        yield f"topic {name_in(arn)}: AWS cannot turn off high throughput; keep high_throughput=True, or delete it"


def _find_prefix_errors(kind: str, arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[str]:
    """Compare the prefixes: prefix and name have no separator, so two environments can mean one topic or queue."""
    ours, theirs = (one.get(TAGS, {}).get(PREFIX) for one in (wanted, present or {}))
    if ours is not None and theirs is not None and ours != theirs:
        yield (
            f"{kind} {name_in(arn)} belongs to the environment with SMARTPIPE_PREFIX={theirs!r}, and with the prefix "
            f"{ours!r} another {kind} has the same name: end each prefix with a hyphen"
        )


def _dead_letter_queues(actual: Topology) -> set[str]:
    return {dead_letter_of(one) or "" for one in actual.queues.values()}


def _find_external_queue_errors(
    arn: str, wanted: Attributes, present: Attributes | None, dead_letter_queues: set[str]
) -> Iterator[str]:
    if present is None and "RedrivePolicy" not in wanted and arn not in dead_letter_queues:
        # The expected dead-letter queue: its queue does not exist or has another one. That is an error of its queue.
        return
    if present is None:
        yield f"queue {arn} is declared existing=True and does not exist, or your credentials may not read it"
        return
    expected, found = dead_letter_of(wanted), dead_letter_of(present)
    if expected and found != expected:
        fix = f'declare Queue(..., dead_letter="{name_in(found)}")' if found else "ask its owner to add it"
        yield f"queue {name_in(arn)}: its dead-letter queue is {found or 'missing'}, not {name_in(expected)}; {fix}"


def _find_own_queue_errors(arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[str]:
    if present is None:
        return
    yield from _find_prefix_errors("queue", arn, wanted, present)
    owner = owner_of(present)
    if owner not in (None, owner_of(wanted)):
        yield (
            f"queue {name_in(arn)} belongs to application {owner!r}: two services claim one queue; rename one, set "
            "SMARTPIPE_APPLICATION, or declare it existing=True"
        )
    service, before = wanted[TAGS].get(SERVICE) if TAGS in wanted else None, present.get(TAGS, {}).get(SERVICE)
    if service and before and service != before:
        yield (
            f"queue {name_in(arn)} belongs to service {before!r}, and service {service!r} declares it too: rename one "
            f"queue; if you only renamed the service, remove the queue's tag {SERVICE} first"
        )
    if present.get("QueueArn", arn) != arn:
        yield f"queue {name_in(arn)} has the ARN {present['QueueArn']}, not {arn}: check SMARTPIPE_ACCOUNT_ID"
    text = present.get("Policy")
    ours = next(iter(wanted["Policy"]["Statement"]), None)
    planned = fit_statements(text, ours)
    size, count = len(planned.encode()), len(read_statements(planned))
    if ours and count > MAX_STATEMENTS:
        yield f"queue {name_in(arn)}: its policy would have {count} statements; SQS accepts {MAX_STATEMENTS}"
    if ours and size > POLICY_LIMIT_BYTES:
        yield (
            f"queue {name_in(arn)}: its policy would have {size:,} bytes with the statements of others; SQS accepts "
            f"{POLICY_LIMIT_BYTES:,}. Shorten the statements of others"
        )


def find_warnings(desired: Topology, actual: Topology) -> list[str]:
    """Return the texts of ``find_notes``, for the reader of a plan."""
    return [note.text for note in find_notes(desired, actual)]


def find_notes(desired: Topology, actual: Topology) -> list[Note]:
    """Return notes about declarations and resources that AWS allows and that may be mistakes."""
    found: list[Note] = []
    for arn, wanted in desired.queues.items():
        present = actual.queues.get(arn)
        if arn not in desired.external:
            found += _find_own_queue_warnings(arn, wanted, present)
        elif present is not None:
            found += _find_external_queue_warnings(arn, wanted, present)
        target = dead_letter_of(wanted)
        if target:
            queue, dead_letter_queue = (_expect(one, desired, actual) for one in (arn, target))
            found += _find_retention_warnings(arn, queue, dead_letter_queue)
    for arn, wanted in desired.topics.items():
        present = actual.topics.get(arn)
        if present is not None and wanted and owner_of(present) is None:
            found.append(_warn_of_adoption("topic", arn, 'declare it Topic(arn="...")'))
    return [*found, *_describe_key_statements(desired)]


def find_short_memories(services: Iterable[Declares]) -> Iterator[str]:
    """Yield the texts of ``find_short_ttls``, for the reader of a plan."""
    return (note.text for note in find_short_ttls(services))


def find_short_ttls(services: Iterable[Declares]) -> Iterator[Note]:
    """Yield a note for each queue whose handlers forget an event sooner than it can be redriven.

    A message can wait in its queue, be dead-lettered at the end, and be redriven at the end of the dead-letter queue's
    retention.
    """
    for queue, seconds in {
        binding.queue: binding.remembers_seconds for service in services for binding in service.bindings
    }.items():
        needed = queue.retention_seconds + DEAD_LETTER_RETENTION_SECONDS
        if not queue.existing and seconds is not None and seconds < needed:
            yield Note(
                "SP105",
                f"queue {name_in(queue.name)}",
                f"queue {name_in(queue.name)}: its idempotent handlers remember an event for {seconds:,.0f} s, and it "
                f"can be redriven after up to {needed:,} s, which would repeat its effects; set Idempotency(ttl_seconds"
                f"={needed}), or redrive within {seconds / 86_400:,.1f} days",
            )


def _describe_key_statements(desired: Topology) -> Iterator[Note]:
    """Yield the statement that the policy of each KMS key needs, once for each key."""
    topics: dict[str, set[str]] = {}
    queues: dict[str, str] = {}  # any of the queues under the key: all are in the key's region
    for (topic, queue), wanted in desired.subscriptions.items():
        for arn in filter(None, (queue, dead_letter_of(wanted))):
            if key := desired.queues.get(arn, {}).get("KmsMasterKeyId"):
                topics.setdefault(key, set()).add(topic)
                queues[key] = arn
    for key, arns in topics.items():
        needed = json.dumps(build_key_statement(queues[key], arns))
        text = f"SNS delivers to queues under key {key} only if the key's policy has this statement: {needed}"
        yield Note("SP111", f"key {key}", text)


def _expect(arn: str, desired: Topology, actual: Topology) -> Attributes:
    """Return the attributes that a queue will have after an apply; those of an external queue do not change."""
    return actual.queues.get(arn, {}) if arn in desired.external else desired.queues[arn]


def _find_own_queue_warnings(arn: str, wanted: Attributes, present: Attributes | None) -> Iterator[Note]:
    name = name_in(arn)
    text = (present or {}).get("Policy")
    planned = fit_statements(text, next(iter(wanted["Policy"]["Statement"]), None))
    ours = find_our_statement(planned)
    if present is not None and owner_of(present) is None:
        yield _warn_of_adoption("queue", arn, "declare it Queue(..., existing=True)")
    if ours and "ArnLike" in ours["Condition"]:
        yield Note(
            "SP112",
            f"queue {name}",
            f"queue {name}: it has too many topics for a policy of {POLICY_LIMIT_BYTES:,} bytes, so the policy allows "
            f"all topics of their account that match {', '.join(source_topics(ours))}",
        )
    for sid in find_open_statements(text):
        described = f"queue {name}: its policy's statement {sid!r}, which smartpipe did not write, allows everyone"
        yield Note("SP303", f"queue {name}", described)


def _find_external_queue_warnings(arn: str, wanted: Attributes, present: Attributes) -> Iterator[Note]:
    resource = f"queue {name_in(arn)}"
    recommended = wanted.get("RedrivePolicy", {}).get("maxReceiveCount")
    count = (present.get("RedrivePolicy") or {}).get("maxReceiveCount")
    if recommended and count and count < recommended:
        yield Note(
            "SP103",
            resource,
            f"{resource}: SQS moves a message to the dead-letter queue after {count} deliveries, without a "
            f"reason; the retry policies need {recommended}",
        )
    size = int(present.get("MaximumMessageSize", MAX_MESSAGE_BYTES))
    if size < DEFAULT_TOPIC_LIMIT_BYTES:
        text = f"{resource} accepts messages of up to {size:,} bytes; SNS drops longer ones without an error"
        yield Note("SP309", resource, text)


def _find_retention_warnings(arn: str, queue: Attributes, dead_letter_queue: Attributes) -> Iterator[Note]:
    """Compare the retention periods: in standard queues, dead-letter messages keep the time at which they were sent.

    Source: Amazon SQS, "Setting up dead-letter queue retention".
    """
    source, target = (int(one.get("MessageRetentionPeriod", 0)) for one in (queue, dead_letter_queue))
    if source and target and target <= source and queue.get("FifoQueue") != "true":
        yield Note(
            "SP102",
            f"queue {name_in(arn)}",
            f"queue {name_in(arn)}: its dead-letter queue keeps messages for {target:,} s after they were first sent, "
            f"which is not longer than the {source:,} s of the queue: SQS deletes late dead-letter messages "
            "immediately",
        )


def _warn_of_adoption(kind: str, arn: str, alternative: str) -> Note:
    resource = f"{kind} {name_in(arn)}"
    text = (
        f"{resource} exists without tags of smartpipe: apply adds the tags of this application, and then "
        f"destroy would delete it; {alternative} to leave it alone"
    )
    return Note("SP306", resource, text)
