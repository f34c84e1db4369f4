"""Topics, queues and subscriptions as AWS has them: what is wanted, or what is there. Pure."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Attributes: TypeAlias = dict[str, Any]

TAGS = "Tags"
"""Stands among the attributes, though AWS has calls of its own for them."""


class Topology(NamedTuple):
    """Topics, queues and subscriptions with their AWS attributes: what is wanted, or what is there.

    Attributes have AWS's names; those that AWS takes as JSON text are plain values here, but for a queue's
    ``Policy`` that is there, which stays text: statements of others are kept to the byte.

    Args:
        topics: By ARN.
        queues: By ARN; a dead-letter queue stands before the queue that redrives to it.
        subscriptions: By topic ARN and queue ARN (or other endpoint, of what is there).
        external: ARNs of topics and queues that are somebody else's: looked at, never changed.
        tables: DynamoDB tables of claims, by ARN.
        buckets: S3 buckets of payloads, by ARN.
    """

    topics: dict[str, Attributes]
    queues: dict[str, Attributes]
    subscriptions: dict[tuple[str, str], Attributes]
    external: frozenset[str] = frozenset()
    tables: Mapping[str, Attributes] = MappingProxyType({})
    buckets: Mapping[str, Attributes] = MappingProxyType({})


def dead_letter_of(attributes: Attributes | None) -> str | None:
    """Return the ARN of a queue's, or a subscription's, dead-letter queue."""
    found: str | None = ((attributes or {}).get("RedrivePolicy") or {}).get("deadLetterTargetArn")
    return found


# What AWS means by an attribute that is not there.
TOPIC_DEFAULTS = {"MaximumMessageSize": "262144", "KmsMasterKeyId": "", "FifoThroughputScope": "Topic"}
QUEUE_DEFAULTS = {
    "DelaySeconds": "0",
    "KmsMasterKeyId": "",
    "SqsManagedSseEnabled": "true",
    "DeduplicationScope": "queue",
    "FifoThroughputLimit": "perQueue",
}
SAID_ONCE = frozenset({"RedriveAllowPolicy"})
"""Not looked for where it is missing on a queue that is ours: brokers forget it, and without it nothing is lost."""
SUBSCRIPTION_DEFAULTS = {"FilterPolicyScope": "MessageAttributes", "RawMessageDelivery": "false"}


def without_defaults(attributes: Attributes, defaults: dict[str, str]) -> Attributes:
    """Return what has to be said at creation: brokers that lack a feature need not hear of its default."""
    return {name: value for name, value in attributes.items() if defaults.get(name) != value}


VERSION = "2012-10-17"
"""Of the policy language."""


class Denial(NamedTuple):
    """One call that IAM refused: the action, the ARN of what it was for, or ``*``, and what AWS said."""

    action: str
    resource: str
    said: str = ""


def request(denials: Iterable[Denial]) -> list[str]:
    """Return a sentence for each action that was refused, AWS's first word on it, and the policy to ask for."""
    by_action: dict[str, dict[str, str]] = {}
    for action, resource, said in sorted(set(denials)):
        by_action.setdefault(action, {}).setdefault(resource, said)
    lines = []
    for action, found in by_action.items():
        said = next(iter(found.values()))
        lines.append(f"the credentials in use may not {action} on {', '.join(found)}" + (f" ({said})" if said else ""))
    by_resources: dict[tuple[str, ...], list[str]] = {}
    for action, found in by_action.items():
        by_resources.setdefault(tuple(found), []).append(action)
    statements = [
        {"Effect": "Allow", "Action": actions, "Resource": list(found)} for found, actions in by_resources.items()
    ]
    policy = json.dumps({"Version": VERSION, "Statement": statements})
    hint = "`smartpipe topology export --format iam` prints all that it takes"
    return [*lines, f"{hint}; for what was refused, ask for this policy: {policy}"]
