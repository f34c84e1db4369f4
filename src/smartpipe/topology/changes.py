"""One line of a plan: a resource, and the change that it needs. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smartpipe.names import name_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smartpipe.topology.resources import Attributes

Action: TypeAlias = Literal["create", "update", "delete", "unchanged", "external", "orphaned"]

PENDING: frozenset[Action] = frozenset({"create", "update", "delete"})


class Change(NamedTuple):
    """One resource to create, update or delete; or one that stays as it is.

    Args:
        action: ``external``: smartpipe leaves the resource alone. ``orphaned``: its tags name this application, and no
            TARGET declares it; ``destroy --orphaned`` would delete it.
        kind: The name of its kind, as in ``kinds.KINDS``.
        arns: The resource's ARN; for a subscription the ARNs of its topic and of its queue (or other endpoint).
        attributes: All wanted attributes of a new resource, or the differing ones of a deployed resource.
        before: The deployed values of those attributes; None for an attribute that is not set.
        reason: Why the resource stays, or why it is deleted.
    """

    action: Action
    kind: str
    arns: tuple[str, ...]
    attributes: Attributes
    before: Attributes
    reason: str = ""

    @property
    def pending(self) -> bool:
        """Whether ``apply`` has to change the resource."""
        return self.action in PENDING

    @property
    def name(self) -> str:
        """The names at the ends of the ARNs."""
        return " → ".join(name_in(arn) if arn.startswith("arn:") else arn for arn in self.arns)

    @property
    def differences(self) -> list[Difference]:
        """The values that an update changes."""
        return [
            one
            for name in self.attributes
            for one in _find_differences(name, self.before.get(name), self.attributes[name])
        ]

    def __str__(self) -> str:
        """Describe the change in one line, with old values before new ones."""
        details = ", ".join(map(str, self.differences)) if self.action == "update" else self.reason
        return f"{self.action} {self.kind} {self.name}" + (f" ({details})" if details else "")

    def as_json(self) -> dict[str, Any]:
        """Return it as ``plan --json`` prints it."""
        return {**self._asdict(), "name": self.name}


class Difference(NamedTuple):
    """One value that changes; ``before`` or ``after`` is None if there is no such value."""

    path: str
    before: object
    after: object

    def __str__(self) -> str:
        """Describe the old and the new value, or the elements that are added to and removed from a list."""
        if isinstance(self.before, list) and isinstance(self.after, list):
            added = [f"+ {_format_value(one)}" for one in self.after if one not in self.before]
            removed = [f"− {_format_value(one)}" for one in self.before if one not in self.after]  # noqa: RUF001 - a minus sign
            return (
                f"{self.path}: {', '.join([*added, *removed])}" if added or removed else f"{self.path}: another order"
            )
        return f"{self.path}: {_format_value(self.before)} → {_format_value(self.after)}"


def pending_changes(changes: Iterable[Change]) -> list[Change]:
    """Return the changes that ``apply`` has to make."""
    return [change for change in changes if change.pending]


def _find_differences(path: str, before: Any, after: Any) -> Iterator[Difference]:
    before, after = _parse(before), _parse(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                yield from _find_differences(f"{path}.{key}", before.get(key), after.get(key))
    else:
        yield Difference(path, before, after)


def _parse(value: Any) -> Any:
    """Parse JSON text, and key the statements of a policy by their Sids, so that their order does not matter."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict) and isinstance(value.get("Statement"), list):
        by_sid = {str(one.get("Sid", number)): one for number, one in enumerate(value["Statement"])}
        return {**value, "Statement": by_sid}
    return value


def _format_value(value: object) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) and value else json.dumps(value)
