"""Match messages against SNS filter policies. Pure.

Source: Amazon SNS, "Subscription filter policies" and the pages below it: over message attributes or over the JSON
body. ``smartpipe.filter_operators`` lists the operators, and refuses operands that nothing here expects.
"""

from __future__ import annotations

import json
import operator
import re
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from smartpipe.filter_operators import expand, split_wildcard
from smartpipe.filter_policy import DECIMALS, MAX_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smartpipe.message import Attribute, OutgoingMessage

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ARRAY = ".Array"
_EMPTY = (None, "")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(policy: Mapping[str, Any] | None, scope: str, message: OutgoingMessage) -> bool:
    """Return whether SNS would deliver *message* to a subscription with this policy and FilterPolicyScope."""
    if not policy:
        return True
    if scope == "MessageBody":
        try:
            body = json.loads(message.body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return isinstance(body, dict) and any(_matches_object(dict(one), body) for one in expand(policy))
    # Without any attribute nothing matches, not even {"exists": false}.
    attributes = message.attributes
    return bool(attributes) and _matches_all(policy, lambda key: _attribute_values(attributes.get(key)))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _matches_all(policy: Mapping[str, Any], values_of: Callable[[str], list[Any]]) -> bool:
    return all(
        any(_matches_all(option, values_of) for option in rules)
        if key == "$or"
        else _matches_any(rules, values_of(key))
        for key, rules in policy.items()
    )


def _matches_objects(conditions: Mapping[str, Any], value: Any) -> bool:
    """Return whether one of the objects in *value* meets all *conditions*. Without an object, all names are missing."""
    return any(_matches_object(conditions, one) for one in [*_objects_in(value)] or [{}])


def _matches_object(conditions: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Return whether an object meets all *conditions*, by path.

    Those on the same list of objects have to be met by the same object in it.
    """
    inner: dict[str, dict[str, Any]] = {}
    for path, rules in conditions.items():
        keys = [key for key in fields if path == key or path.startswith(f"{key}.")]
        if len(keys) == 1 and keys[0] != path:
            inner.setdefault(keys[0], {})[path[len(keys[0]) + 1 :]] = rules
        elif not _matches_any(rules, [*_leaves_at(path, fields)]):
            return False
    return all(_matches_objects(those, fields[key]) for key, those in inner.items())


def _leaves_at(path: str, value: Any) -> Iterator[Any]:
    """Yield the values at *path*. A key with a dot counts as several keys, as it does for SNS."""
    for fields in _objects_in(value):
        for key, inner in fields.items():
            if path == key:
                yield from _leaves_in(inner)
            elif path.startswith(f"{key}."):
                yield from _leaves_at(path[len(key) + 1 :], inner)


def _objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _objects_in(one)


def _leaves_in(value: Any) -> Iterator[Any]:
    """Yield the values to compare: those in lists, too. An empty list and an object have none."""
    if isinstance(value, list):
        for one in value:
            yield from _leaves_in(one)
    elif not isinstance(value, dict):
        yield value


def _attribute_values(attribute: Attribute | None) -> list[Any]:
    """Return the values that a policy compares. A Binary attribute counts as missing."""
    if attribute is None or isinstance(attribute.value, bytes):
        return []
    kind, text = attribute.data_type, attribute.value
    if kind.endswith(_ARRAY):
        try:
            return [*_leaves_in(json.loads(text, parse_constant=_refuse))]
        except (ValueError, RecursionError):
            return []
    if kind.startswith("Number"):
        return [float(text)] if _NUMBER.fullmatch(text) else []
    return [text]


def _matches_any(rules: Sequence[Any], values: list[Any]) -> bool:
    return any(_matches_rule(rule, values) for rule in rules)


def _matches_rule(rule: Any, values: list[Any]) -> bool:
    if not isinstance(rule, dict):
        return any(_is_equal(rule, value) for value in values)
    [(name, operand)] = rule.items()
    if name == "exists":
        return any(value not in _EMPTY for value in values) if operand else not values
    if name == "anything-but":
        return any(not _is_excluded(operand, value) for value in values)
    return any(_OPERATORS[name](operand, value) for value in values)


def _is_excluded(operand: Any, value: Any) -> bool:
    if isinstance(operand, dict):
        [(name, inner)] = operand.items()
        return any(_OPERATORS[name](one, value) for one in _listed(inner))
    return any(_is_equal(one, value) for one in _listed(operand))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_equal(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    if _is_number(wanted) and _is_number(value):
        return _compares("=", value, wanted)
    return bool(wanted == value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compares(sign: str, value: float, bound: float) -> bool:
    """Compare as SNS does: five decimals count, and a number beyond a thousand million matches nothing."""
    return abs(value) <= MAX_NUMBER and _COMPARISONS[sign](round(value, DECIMALS), round(bound, DECIMALS))


def _matches_numeric(operand: Sequence[Any], value: Any) -> bool:
    pairs = zip(operand[::2], operand[1::2], strict=True)
    return _is_number(value) and all(_compares(sign, value, bound) for sign, bound in pairs)


def _matches_cidr(operand: str, value: Any) -> bool:
    try:
        return isinstance(value, str) and ip_address(value) in ip_network(operand, strict=False)
    except ValueError:
        return False


def _matches_wildcard(operand: str, value: Any) -> bool:
    first, *others = split_wildcard(operand)
    if not isinstance(value, str) or not others:
        return bool(value == first)
    *middle, last = others
    if not value.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = value.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return position <= len(value) - len(last) and value.endswith(last)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "cidr": _matches_cidr,
    "equals-ignore-case": lambda operand, value: isinstance(value, str) and value.lower() == operand.lower(),
    "numeric": _matches_numeric,
    "prefix": lambda operand, value: isinstance(value, str) and value.startswith(operand),
    "suffix": lambda operand, value: isinstance(value, str) and value.endswith(operand),
    "wildcard": _matches_wildcard,
}
