"""What to change so that what is there becomes what is wanted. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smartpipe.topology.derive import POLICY_SID
from smartpipe.topology.naming import name_in

if TYPE_CHECKING:
    from smartpipe.topology.model import Attributes, Topology

Kind: TypeAlias = Literal["queue", "topic", "subscription"]


class Change(NamedTuple):
    """One resource to create, or to bring some attributes of into line.

    Args:
        arns: The resource's ARN; for a subscription its topic's and its queue's.
        attributes: What to set: all wanted attributes of a new resource, or the differing ones.
        before: The present values of those attributes; empty for a new resource.
    """

    action: Literal["create", "update"]
    kind: Kind
    arns: tuple[str, ...]
    attributes: Attributes
    before: Attributes

    def __str__(self) -> str:
        """Name the change in one line, old values before new ones."""
        name = " → ".join(map(name_in, self.arns))
        if self.action == "create":
            return f"create {self.kind} {name}"
        details = ", ".join(
            f"{key}: {_text(self.before.get(key))} → {_text(new)}" for key, new in self.attributes.items()
        )
        return f"update {self.kind} {name} ({details})"


def plan(desired: Topology, actual: Topology) -> list[Change]:
    """Return the changes in an order that opens no hole: queues and their policies before subscriptions.

    Only what *desired* names is looked at; other attributes, and policy statements that smartpipe
    did not write, stay as they are.
    """
    queues = {arn: _with_foreign_statements(wanted, actual.queues.get(arn)) for arn, wanted in desired.queues.items()}
    changes = [_change("queue", (arn,), wanted, actual.queues.get(arn)) for arn, wanted in queues.items()]
    changes += [_change("topic", (arn,), wanted, actual.topics.get(arn)) for arn, wanted in desired.topics.items()]
    changes += [
        _change("subscription", arns, wanted, actual.subscriptions.get(arns))
        for arns, wanted in desired.subscriptions.items()
    ]
    return [change for change in changes if change is not None]


def _change(kind: Kind, arns: tuple[str, ...], wanted: Attributes, present: Attributes | None) -> Change | None:
    if present is None:
        return Change("create", kind, arns, wanted, {})
    differing = {key: value for key, value in wanted.items() if present.get(key) != value}
    if not differing:
        return None
    return Change("update", kind, arns, differing, {key: present.get(key) for key in differing})


def _with_foreign_statements(wanted: Attributes, present: Attributes | None) -> Attributes:
    policy = (present or {}).get("Policy")
    if "Policy" not in wanted or not isinstance(policy, dict):
        return wanted
    statements: Any = policy.get("Statement", [])
    if isinstance(statements, dict):  # IAM lets a single statement stand without its list
        statements = [statements]
    ours = wanted["Policy"]["Statement"]
    if not any(s.get("Sid") == POLICY_SID for s in statements):
        merged = [*statements, *ours]
    else:  # in place, so that an unchanged policy compares equal
        merged = [s if s.get("Sid") != POLICY_SID else ours[0] for s in statements]
    return {**wanted, "Policy": {**policy, "Statement": merged}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
