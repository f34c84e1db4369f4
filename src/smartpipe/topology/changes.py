"""One line of a plan: a resource, and what is to become of it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.topology.resources import Attributes

Kind: TypeAlias = Literal["queue", "topic", "subscription", "table", "bucket"]
Action: TypeAlias = Literal["create", "update", "delete", "unchanged", "external", "orphaned"]

PENDING: frozenset[Action] = frozenset({"create", "update", "delete"})


class Change(NamedTuple):
    """One resource to create, to delete, or to bring some attributes of into line; or one that stays as it is.

    Args:
        action: ``external``: somebody else's, left alone. ``orphaned``: smartpipe's tags say that it is this
            application's, and no TARGET declares it; ``destroy --orphaned`` would delete it.
        arns: The resource's ARN; for a subscription its topic's and its queue's (or other endpoint).
        attributes: What to set: all wanted attributes of a new resource, or the differing ones.
        before: The present values of those attributes; None for what is not there.
        reason: Why it stays, or goes.
    """

    action: Action
    kind: Kind
    arns: tuple[str, ...]
    attributes: Attributes
    before: Attributes
    reason: str = ""

    @property
    def pending(self) -> bool:
        """Whether ``apply`` has something to do for it."""
        return self.action in PENDING

    @property
    def name(self) -> str:
        """What people call it: names without the rest of the ARN."""
        return " → ".join(name_in(arn) if arn.startswith("arn:") else arn for arn in self.arns)

    @property
    def differences(self) -> list[Difference]:
        """What an update changes, value by value."""
        return [one for name in self.attributes for one in _differ(name, self.before.get(name), self.attributes[name])]

    def __str__(self) -> str:
        """Name the change in one line, old values before new ones."""
        details = ", ".join(map(str, self.differences)) if self.action == "update" else self.reason
        return f"{self.action} {self.kind} {self.name}" + (f" ({details})" if details else "")

    def as_json(self) -> dict[str, Any]:
        """Return it as ``plan --json`` has it."""
        return {**self._asdict(), "name": self.name}


class Difference(NamedTuple):
    """One value that changes; ``before`` or ``after`` is None where there is none."""

    path: str
    before: object
    after: object

    def __str__(self) -> str:
        """Say it as people do: a value by value, or what joins and what leaves a list."""
        if isinstance(self.before, list) and isinstance(self.after, list):
            joins = [f"+ {_text(one)}" for one in self.after if one not in self.before]
            leaves = [f"− {_text(one)}" for one in self.before if one not in self.after]  # noqa: RUF001 - a minus sign
            return f"{self.path}: {', '.join([*joins, *leaves])}" if joins or leaves else f"{self.path}: another order"
        return f"{self.path}: {_text(self.before)} → {_text(self.after)}"


def pending_changes(changes: Iterable[Change]) -> list[Change]:
    """Return what ``apply`` has to do."""
    return [change for change in changes if change.pending]


def _differ(path: str, before: Any, after: Any) -> Iterator[Difference]:
    before, after = _parsed(before), _parsed(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                yield from _differ(f"{path}.{key}", before.get(key), after.get(key))
    else:
        yield Difference(path, before, after)


def _parsed(value: Any) -> Any:
    """Read JSON text, and let statements be found by their Sids rather than by their places."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict) and isinstance(value.get("Statement"), list):
        by_sid = {str(one.get("Sid", number)): one for number, one in enumerate(value["Statement"])}
        return {**value, "Statement": by_sid}
    return value


def _text(value: object) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) and value else json.dumps(value)
