"""Resources with their AWS attributes, and permissions that IAM refused. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from smartpipe.tags import APPLICATION
from smartpipe.transport import DEPTH_ATTRIBUTES, Depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Attributes: TypeAlias = dict[str, Any]
Key: TypeAlias = str | tuple[str, ...]
"""A resource's ARN; for a subscription the ARNs of its topic and of its queue (or the address of another endpoint)."""

TAGS = "Tags"
"""The tags are among the attributes, although AWS has separate calls for them."""


@dataclass(frozen=True)
class Topology:
    """Resources with their AWS attributes: those that services declare, or those that are deployed.

    Attributes have AWS's names. Those that AWS accepts as JSON text are plain values here, except the ``Policy`` of a
    deployed queue. It stays text, so that smartpipe can keep the statements of others byte for byte.

    Args:
        resources: By the name of their kind, as in ``kinds.KINDS``, and then by key. A dead-letter queue comes before
            the queue that redrives to it.
        external: ARNs of topics and queues that another team owns: smartpipe reads them and never changes them.
    """

    resources: Mapping[str, dict[Any, Attributes]]
    external: frozenset[str] = frozenset()

    def of(self, kind: str) -> dict[Any, Attributes]:
        """Return the resources of one kind by their keys."""
        return self.resources.get(kind, {})

    @property
    def topics(self) -> dict[str, Attributes]:
        """By ARN."""
        return self.of("topic")

    @property
    def queues(self) -> dict[str, Attributes]:
        """By ARN."""
        return self.of("queue")

    @property
    def subscriptions(self) -> dict[tuple[str, str], Attributes]:
        """By the ARNs of topic and queue."""
        return self.of("subscription")

    def replace(self, **kinds: dict[Any, Attributes]) -> Topology:
        """Return a copy in which the resources of these kinds are replaced, as in ``replace(queue={...})``."""
        return Topology({**self.resources, **kinds}, self.external)


def arns_of(key: Key) -> tuple[str, ...]:
    """Return the ARNs that a key consists of."""
    return (key,) if isinstance(key, str) else key


def dead_letter_of(attributes: Attributes | None) -> str | None:
    """Return the ARN of the dead-letter queue of a queue or subscription."""
    found: str | None = ((attributes or {}).get("RedrivePolicy") or {}).get("deadLetterTargetArn")
    return found


def owner_of(attributes: Attributes | None) -> str | None:
    """Return the application that the tags of a resource name."""
    found: str | None = (attributes or {}).get(TAGS, {}).get(APPLICATION)
    return found


# The values that AWS uses for attributes that are not set.
TOPIC_DEFAULTS = {"MaximumMessageSize": "262144", "KmsMasterKeyId": "", "FifoThroughputScope": "Topic"}
QUEUE_DEFAULTS = {
    "DelaySeconds": "0",
    "KmsMasterKeyId": "",
    "SqsManagedSseEnabled": "true",
    "DeduplicationScope": "queue",
    "FifoThroughputLimit": "perQueue",
}
SUBSCRIPTION_DEFAULTS = {"FilterPolicyScope": "MessageAttributes", "RawMessageDelivery": "false"}

IGNORED_IF_ABSENT = frozenset({"RedriveAllowPolicy"})
"""A plan ignores that a queue of ours does not have it: some brokers do not store it, and no message is lost
without it."""


def omit_defaults(attributes: Attributes, defaults: Mapping[str, str]) -> Attributes:
    """Return the attributes that a create call has to name; brokers may not know an attribute that has its default."""
    return {name: value for name, value in attributes.items() if defaults.get(name) != value}


def depth_of(attributes: Mapping[str, Any]) -> Depth:
    """Return the approximate numbers of messages in a queue with these attributes; a missing one counts as 0."""
    return Depth(*(int(attributes.get(name, 0)) for name in DEPTH_ATTRIBUTES))


def count_messages(attributes: Mapping[str, Any]) -> int:
    """Return the approximate number of messages in a queue with these attributes."""
    return sum(depth_of(attributes))


POLICY_VERSION = "2012-10-17"
"""The version of the policy language."""


class Denial(NamedTuple):
    """A call that IAM refused: the action, the ARN of its resource or ``*``, and the message of AWS."""

    action: str
    resource: str
    message: str = ""


def describe_denials(denials: Iterable[Denial]) -> list[str]:
    """Return a sentence for each refused action, with AWS's message, and the IAM policy that would allow them."""
    by_action: dict[str, dict[str, str]] = {}
    for action, resource, message in sorted(set(denials)):
        by_action.setdefault(action, {}).setdefault(resource, message)
    lines = []
    for action, found in by_action.items():
        message = next(iter(found.values()))
        lines.append(
            f"your credentials may not call {action} on {', '.join(found)}" + (f" ({message})" if message else "")
        )
    by_resources: dict[tuple[str, ...], list[str]] = {}
    for action, found in by_action.items():
        by_resources.setdefault(tuple(found), []).append(action)
    statements = [
        {"Effect": "Allow", "Action": actions, "Resource": list(found)} for found, actions in by_resources.items()
    ]
    policy = json.dumps({"Version": POLICY_VERSION, "Statement": statements})
    hint = "`smartpipe topology export --format iam` prints all permissions that you need"
    return [*lines, f"{hint}; for the refused calls, ask for this policy: {policy}"]
