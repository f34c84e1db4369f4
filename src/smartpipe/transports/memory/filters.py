"""Match messages against SNS filter policies. Pure.

Source: Amazon SNS, "Subscription filter policies": string, numeric, prefix, suffix, anything-but,
exists, equals-ignore-case, cidr, and ``$or``; over message attributes or over the JSON body.
"""

from __future__ import annotations

import json
import operator
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from smartpipe.message import Attribute, OutgoingMessage

_MISSING = object()
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
            body = json.loads(message.body)
        except ValueError:
            return False
        return isinstance(body, dict) and _matches_body(policy, body)
    return _matches_all(policy, lambda key: _attribute_values(message.attributes.get(key)))


def _matches_all(policy: Mapping[str, Any], values_of: Callable[[str], list[Any]]) -> bool:
    return all(
        any(_matches_all(option, values_of) for option in rules)
        if key == "$or"
        else _matches_any(rules, values_of(key))
        for key, rules in policy.items()
    )


def _matches_body(policy: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    for key, rules in policy.items():
        if key == "$or":
            found = any(_matches_body(option, body) for option in rules)
        elif isinstance(rules, dict):
            value = body.get(key, {})
            nested = value if isinstance(value, list) else [value]
            found = any(isinstance(item, dict) and _matches_body(rules, item) for item in nested)
        else:
            value = body.get(key, _MISSING)
            found = _matches_any(rules, [] if value is _MISSING else value if isinstance(value, list) else [value])
        if not found:
            return False
    return True


def _attribute_values(attribute: Attribute | None) -> list[Any]:
    """Return the values that a policy compares. A Binary attribute counts as missing."""
    if attribute is None or isinstance(attribute.value, bytes):
        return []
    kind = attribute.data_type
    try:
        if kind == "String.Array":
            value = json.loads(attribute.value)
            return value if isinstance(value, list) else [value]
        return [float(attribute.value)] if kind.startswith("Number") else [attribute.value]
    except ValueError:
        return []


def _matches_any(rules: Iterable[Any], values: list[Any]) -> bool:
    return any(_matches_rule(rule, values) for rule in rules)


def _matches_rule(rule: Any, values: list[Any]) -> bool:
    if not isinstance(rule, dict):
        return any(_is_equal(rule, value) for value in values)
    if "exists" in rule:
        return bool(values) is bool(rule["exists"])
    if "anything-but" in rule:
        return any(not _is_excluded(rule["anything-but"], value) for value in values)
    return any(_matches_operator(rule, value) for value in values)


def _matches_operator(rule: Mapping[str, Any], value: Any) -> bool:
    [(name, wanted)] = rule.items()
    if name == "numeric":
        pairs = zip(wanted[::2], wanted[1::2], strict=True)
        return _is_number(value) and all(_COMPARISONS[sign](value, bound) for sign, bound in pairs)
    if not isinstance(value, str):
        return False
    if name == "cidr":
        try:
            return ip_address(value) in ip_network(wanted)
        except ValueError:
            return False
    if name == "equals-ignore-case":
        return value.lower() == str(wanted).lower()
    return value.startswith(wanted) if name == "prefix" else name == "suffix" and value.endswith(wanted)


def _is_excluded(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, dict):
        return _matches_operator(wanted, value)
    return any(_is_equal(item, value) for item in (wanted if isinstance(wanted, list) else [wanted]))


def _is_equal(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return bool(wanted == value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
