"""Missing rights, as the statement to ask for. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Denial(NamedTuple):
    """One call that IAM refused: the action, and the ARN of what it was for, or ``*``."""

    action: str
    resource: str


def request(denials: Iterable[Denial]) -> list[str]:
    """Return a sentence for each action that was refused, and the policy that would allow them all."""
    by_action: dict[str, list[str]] = {}
    for action, resource in sorted(set(denials)):
        by_action.setdefault(action, []).append(resource)
    lines = [f"the credentials in use may not {action} on {', '.join(found)}" for action, found in by_action.items()]
    by_resources: dict[tuple[str, ...], list[str]] = {}
    for action, found in by_action.items():
        by_resources.setdefault(tuple(found), []).append(action)
    statements = [
        {"Effect": "Allow", "Action": actions, "Resource": list(found)} for found, actions in by_resources.items()
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return [*lines, f"ask for this policy: {policy}"]
