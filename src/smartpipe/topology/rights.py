"""Missing rights, as the statement to ask for. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

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
