"""Filter policies as users declare them, and what SNS would refuse of them. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

TYPE_ATTRIBUTE = "type"
"""The message attribute that carries an event's type, for filter policies to match; the envelope has it too."""
MAX_KEYS = 5
MAX_COMBINATIONS = 150
MAX_POLICY_BYTES = 262_144
MAX_NUMBER = 1_000_000_000
DECIMALS = 5

Scope: TypeAlias = Literal["MessageAttributes", "MessageBody"]


@dataclass(frozen=True)
class FilterPolicy:
    """What else an event has to be, besides of a wanted type, to reach a queue: SNS leaves the others out.

    ``FilterPolicy({"tenant": ["acme"]})`` matches the attribute that a publisher gave;
    ``FilterPolicy({"data": {"country": ["ch"]}}, scope="MessageBody")`` matches the envelope, whose ``data`` is
    the event. It holds for every topic of its queue. A change takes up to 15 minutes to be in force.

    Args:
        conditions: As SNS has them: names with lists of values or of operators; nested only for the body.

    Raises:
        ConfigError: Beyond what SNS takes. Source: Amazon SNS, "Filter policy constraints": 5 keys, 150
            combinations of values, 256 KiB, numbers within a thousand million with 5 decimals.
    """

    conditions: Mapping[str, Any]
    scope: Scope = "MessageAttributes"

    def __post_init__(self) -> None:
        """Check everything, and report it together."""
        if not isinstance(self.conditions, dict) or not self.conditions:
            raise ConfigError(f"FilterPolicy({self.conditions!r}): give names with lists of values, as in {_EXAMPLE}")
        problems = list(_problems(self.conditions, self.scope))
        if TYPE_ATTRIBUTE in self.conditions:
            problems.append("'type' is smartpipe's own condition: it names the types that have handlers")
        if problems:
            raise ConfigError([f"FilterPolicy: {problem}" for problem in problems])

    def __hash__(self) -> int:
        """Hash the conditions as JSON: a dictionary has no hash of its own."""
        return hash((json.dumps(self.conditions, sort_keys=True), self.scope))

    def policy(self, types: Iterable[str]) -> dict[str, Any]:
        """Return the whole policy of a subscription that wants these event types."""
        return {TYPE_ATTRIBUTE: sorted(types), **self.conditions}


_EXAMPLE = '{"tenant": ["acme"]}'


def policy_problems(policy: Mapping[str, Any], scope: Scope) -> list[str]:
    """Say what SNS would refuse of a whole policy, event types included."""
    return list(_problems(policy, scope, types=True))


def _problems(policy: Mapping[str, Any], scope: Scope, *, types: bool = False) -> Iterator[str]:
    if scope not in get_args(Scope):
        yield f"scope={scope!r} is none of {', '.join(get_args(Scope))}"
        return
    room = MAX_KEYS if types else MAX_KEYS - 1
    if len(policy) > room:
        yield f"{len(policy)} names; SNS takes {MAX_KEYS}, one of which is the event's type"
    try:
        text = json.dumps(policy, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        yield f"it cannot be written as JSON: {error}"
        return
    if len(text.encode()) > MAX_POLICY_BYTES:
        yield f"it has {len(text.encode()):,} bytes; SNS takes {MAX_POLICY_BYTES:,}"
    yield from _nesting(policy, scope)
    combinations = math.prod(_counts(policy, 1))
    if combinations > MAX_COMBINATIONS:
        yield (
            f"{combinations} combinations of values (of nested names times their depth); SNS takes {MAX_COMBINATIONS}: "
            "use fewer values, a prefix, or a queue for some of the events"
        )
    yield from _number_problems(policy)


def _nesting(policy: Mapping[str, Any], scope: Scope) -> Iterator[str]:
    for name, rules in policy.items():
        if not isinstance(name, str) or not name:
            yield f"{name!r} is no name"
        elif name == "$or":
            yield from _alternatives(rules, scope)
        elif isinstance(rules, dict) and scope == "MessageAttributes":
            yield f'{name!r} is nested, and message attributes are flat: scope="MessageBody" matches the envelope'
        elif not isinstance(rules, (list, dict)) or not rules:
            yield f"{name!r}: {rules!r} must be a list of values, as in {_EXAMPLE}"
        elif isinstance(rules, dict):
            yield from _nesting(rules, scope)


def _alternatives(rules: Any, scope: Scope) -> Iterator[str]:
    if not isinstance(rules, list) or len(rules) < 2 or not all(isinstance(one, dict) and one for one in rules):  # noqa: PLR2004 - it is an or
        yield '"$or" takes a list of at least two policies, as in {"$or": [{"a": ["x"]}, {"b": ["y"]}]}'
        return
    for one in rules:
        yield from _nesting(one, scope)


def _counts(policy: Mapping[str, Any], depth: int) -> Iterator[int]:
    """Yield each name's number of values, times its depth. Source: SNS, "Filter policy constraints", complexity."""
    for name, rules in policy.items():
        if isinstance(rules, dict):
            yield from _counts(rules, depth + 1)
        elif name == "$or" and isinstance(rules, list):
            yield max(1, sum(math.prod(_counts(option, depth)) for option in rules if isinstance(option, dict)))
        elif isinstance(rules, list):
            yield max(1, len(rules)) * depth


def _number_problems(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _number_problems(one)
    elif isinstance(value, list):
        for one in value:
            yield from _number_problems(one)
    elif (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not (abs(value) <= MAX_NUMBER and round(value, DECIMALS) == value)
    ):
        yield f"the number {value!r}: SNS compares up to {MAX_NUMBER:,} either way, with {DECIMALS} decimals"
