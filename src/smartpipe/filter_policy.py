"""Filter policies of queues, and checks of the rules of SNS. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from smartpipe.errors import ConfigError
from smartpipe.filter_operators import (
    MAX_WILDCARD_POINTS,
    OR,
    RESERVED,
    count_wildcard_points,
    expand,
    find_rule_errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

TYPE_ATTRIBUTE = "type"
"""The message attribute with an event's type, for filter policies to match. The envelope has the type too."""
MAX_KEYS = 5
MAX_COMBINATIONS = 150
MAX_POLICY_BYTES = 262_144
MAX_NUMBER = 1_000_000_000
DECIMALS = 5

Scope: TypeAlias = Literal["MessageAttributes", "MessageBody"]


@dataclass(frozen=True)
class FilterPolicy:
    """A condition, besides the event type, for SNS to deliver an event to a queue.

    ``FilterPolicy({"tenant": ["acme"]})`` matches a message attribute that the publisher set.
    ``FilterPolicy({"data": {"country": ["ch"]}}, scope="MessageBody")`` matches the envelope, whose ``data`` is
    the event. It applies to every topic of its queue. A change takes effect within 15 minutes.

    Args:
        conditions: In the form of SNS: names with lists of values or operators, which are ``prefix``, ``suffix``,
            ``equals-ignore-case``, ``wildcard``, ``anything-but``, ``numeric``, ``cidr`` and ``exists``. They can be
            nested only with the scope ``MessageBody``.

    Raises:
        ConfigError: SNS would refuse it, or would read it in another way than it looks. Source: Amazon SNS, "Filter
            policy constraints": 5 keys, 150 combinations of values, 256 KiB, numbers within a thousand million with 5
            decimals, 3 wildcards in a pattern.
    """

    conditions: Mapping[str, Any]
    scope: Scope = "MessageAttributes"

    def __post_init__(self) -> None:
        """Check the conditions, and report all errors together."""
        if not isinstance(self.conditions, dict) or not self.conditions:
            raise ConfigError(f"FilterPolicy({self.conditions!r}): pass names with lists of values, as in {_EXAMPLE}")
        errors = list(_errors(self.conditions, self.scope))
        if TYPE_ATTRIBUTE in self.conditions or (not errors and TYPE_ATTRIBUTE in _paths(self.conditions)):
            errors.append("'type' is reserved: smartpipe sets it to the types that have handlers")
        if errors:
            raise ConfigError([f"FilterPolicy: {error}" for error in errors])

    def __hash__(self) -> int:
        """Hash the conditions as JSON, because a dictionary has no hash."""
        return hash((json.dumps(self.conditions, sort_keys=True), self.scope))

    def policy(self, types: Iterable[str]) -> dict[str, Any]:
        """Return the complete filter policy of a subscription to these event types."""
        return {TYPE_ATTRIBUTE: sorted(types), **self.conditions}


_EXAMPLE = '{"tenant": ["acme"]}'


def policy_errors(policy: Mapping[str, Any], scope: Scope) -> list[str]:
    """Return a sentence for each rule of SNS that a complete filter policy, with event types, breaks."""
    return list(_errors(policy, scope, types=True))


def _errors(policy: Mapping[str, Any], scope: Scope, *, types: bool = False) -> Iterator[str]:
    if scope not in get_args(Scope):
        yield f"scope={scope!r} is not one of {', '.join(get_args(Scope))}"
        return
    max_keys = MAX_KEYS if types else MAX_KEYS - 1
    if len(policy) > max_keys:
        yield f"{len(policy)} names: SNS allows {MAX_KEYS}, one of which is the event's type"
    try:
        text = json.dumps(policy, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        yield f"it cannot be written as JSON: {error}"
        return
    if size > MAX_POLICY_BYTES:
        yield f"it has {size:,} bytes: SNS allows {MAX_POLICY_BYTES:,}"
    nesting = list(_nesting_errors(policy, scope))
    yield from nesting
    combinations = math.prod(_counts(policy, 1))
    if combinations > MAX_COMBINATIONS:
        yield (
            f"{combinations} combinations of values (values of nested names count times their depth): SNS allows "
            f"{MAX_COMBINATIONS}; use fewer values, a prefix, or a separate queue for some of the events"
        )
    elif not nesting:
        yield from _path_errors(policy)
    if not nesting and (points := count_wildcard_points(policy)) > MAX_WILDCARD_POINTS:
        yield (
            f"its wildcards have {points} points, and SNS allows {MAX_WILDCARD_POINTS}: a pattern with one * has 1 "
            "point, another has 3 for each *, and the sum for a name is multiplied by the number of its patterns"
        )
    yield from _number_errors(policy)


def _nesting_errors(policy: Mapping[str, Any], scope: Scope) -> Iterator[str]:
    for name, rules in policy.items():
        if not isinstance(name, str) or not name:
            yield f"{name!r} is not a name"
        elif name == OR:
            yield from _or_errors(rules, scope)
        elif isinstance(rules, dict) and scope == "MessageAttributes":
            yield f'{name!r} is nested, and message attributes are flat: scope="MessageBody" matches the envelope'
        elif not isinstance(rules, (list, dict)) or not rules:
            yield f"{name!r}: {rules!r} must be a list of values, as in {_EXAMPLE}"
        elif isinstance(rules, dict):
            yield from _nesting_errors(rules, scope)
        else:
            yield from (f"{name!r}: {error}" for error in find_rule_errors(rules))


def _or_errors(rules: Any, scope: Scope) -> Iterator[str]:
    if not isinstance(rules, list) or len(rules) < 2 or not all(isinstance(one, dict) and one for one in rules):  # noqa: PLR2004 - one alternative is not an "or"
        yield '"$or" must be a list of at least two policies, as in {"$or": [{"a": ["x"]}, {"b": ["y"]}]}'
        return
    for one in rules:
        for name in sorted(RESERVED.intersection(one)):
            yield f'{name!r} in "$or" is an operator, so SNS would not read "$or" as one: name a field there'
        yield from _nesting_errors(one, scope)


def _paths(policy: Mapping[str, Any]) -> set[str]:
    return {path for alternative in expand(policy) for path, _ in alternative}


def _path_errors(policy: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each name that has two conditions at once: SNS would forget one of them."""
    for path in sorted(_paths(policy)):
        if any([name for name, _ in one].count(path) > 1 for one in expand(policy)):
            yield f'{path!r} has two conditions, one of them in "$or" or with a dot, and SNS would use one: join them'


def _counts(policy: Mapping[str, Any], depth: int) -> Iterator[int]:
    """Yield each name's number of values, multiplied by its depth.

    Source: Amazon SNS, "Filter policy constraints", complexity.
    """
    for name, rules in policy.items():
        if isinstance(rules, dict):
            yield from _counts(rules, depth + 1)
        elif name == OR and isinstance(rules, list):
            yield max(1, sum(math.prod(_counts(option, depth)) for option in rules if isinstance(option, dict)))
        elif isinstance(rules, list):
            yield max(1, len(rules)) * depth


def _number_errors(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _number_errors(one)
    elif isinstance(value, list):
        for one in value:
            yield from _number_errors(one)
    elif (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not (abs(value) <= MAX_NUMBER and round(value, DECIMALS) == value)
    ):
        yield (
            f"the number {value!r}: SNS compares numbers from -{MAX_NUMBER:,} to {MAX_NUMBER:,}, with {DECIMALS} "
            "decimals"
        )
