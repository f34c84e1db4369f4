"""The operators of SNS filter policies, and the operands that SNS accepts for each. Pure.

Source: Amazon SNS, "Subscription filter policies" and the pages below it: "String value matching", "Numeric value
matching", "Key matching", "AND/OR logic" and "Filter policy constraints".
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

OR = "$or"
MAX_WILDCARDS = 3
MAX_WILDCARD_POINTS = 100
_LOWER_BOUNDS = (">", ">=")
_UPPER_BOUNDS = ("<", "<=")
_COMPARISONS = ("=", *_UPPER_BOUNDS, *_LOWER_BOUNDS)
_NEGATED = ("prefix", "wildcard")
"""The operators that ``anything-but`` accepts. SNS refuses the others there, such as ``suffix``."""
_TOKEN = re.compile(r"\\(.?)|(\*)|([^\\*]+)", re.DOTALL)
_ESCAPED = ("*", "\\")


def find_rule_errors(rules: Iterable[Any]) -> Iterator[str]:
    """Yield a sentence for each of a name's values and operators that SNS would refuse."""
    for rule in rules:
        if isinstance(rule, dict):
            error = _find_operator_error(rule)
        elif isinstance(rule, (str, int, float)) or rule is None:  # True and False are integers
            error = ""
        else:
            error = f"{rule!r} is not a value: a list has texts, numbers, True, False, None and operators"
        if error:
            yield error


def count_wildcard_points(policy: Mapping[str, Any]) -> int:
    """Return the wildcard complexity of a valid policy: for each name, the points of its patterns times their number.

    Source: Amazon SNS, "Filter policy constraints".
    """
    total = 0
    for name, rules in policy.items():
        if name == OR:
            total += sum(map(count_wildcard_points, rules))
        elif isinstance(rules, dict):
            total += count_wildcard_points(rules)
        else:
            patterns = [one for rule in rules if isinstance(rule, dict) for one in _wildcards_of(rule)]
            total += sum(map(_points_of, patterns)) * len(patterns)
    return total


def expand(policy: Mapping[str, Any], path: str = "") -> list[list[tuple[str, list[Any]]]]:
    """Return the alternatives of a valid policy: each ``$or`` makes several. An event has to meet all of one.

    Each alternative has the path of each name, such as ``data.country``, with its values. SNS compares paths too: a
    name with a dot, in the policy or in the body, is the same as two names.
    """
    found: list[list[tuple[str, list[Any]]]] = [[]]
    for name, rules in policy.items():
        if name == OR:
            options = [one for option in rules for one in expand(option, path)]
        elif isinstance(rules, dict):
            options = expand(rules, f"{path}{name}.")
        else:
            options = [[(path + name, rules)]]
        found = [[*one, *option] for one in found for option in options]
    return found


def split_wildcard(pattern: str) -> list[str]:
    r"""Return the literal texts between the ``*`` of a pattern. ``\*`` and ``\\`` stand for the character itself."""
    parts = [""]
    for escaped, star, text in _TOKEN.findall(pattern):
        if star:
            parts.append("")
        else:
            parts[-1] += escaped or text
    return parts


def _find_operator_error(rule: Mapping[str, Any]) -> str:
    if len(rule) != 1:
        return f"{rule!r} has {len(rule)} operators: SNS expects one in each pair of braces"
    [(name, operand)] = rule.items()
    check = _OPERATORS.get(name)
    if check is None:
        close = get_close_matches(str(name), _OPERATORS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its operators are {', '.join(_OPERATORS)}"
        return f"{rule!r}: SNS has no operator {name!r}; {hint}"
    error = check(operand)
    return f"{rule!r}: operator {name!r} {error}" if error else ""


def _find_text_error(operand: Any) -> str:
    return "" if isinstance(operand, str) else "expects a text"


def _find_wildcard_error(operand: Any) -> str:
    if not isinstance(operand, str):
        return "expects a text"
    if any(escaped not in _ESCAPED for escaped in _escaped_in(operand)):
        return r"has a backslash that does not precede * or another backslash"
    parts = split_wildcard(operand)
    if "" in parts[1:-1]:
        return "has two * in a row: write one"
    if len(parts) - 1 > MAX_WILDCARDS:
        return f"has {len(parts) - 1} *: SNS allows {MAX_WILDCARDS} in a pattern"
    return ""


def _escaped_in(pattern: str) -> list[str]:
    return [found[1] for found in _TOKEN.finditer(pattern) if found[0].startswith("\\")]


def _find_anything_but_error(operand: Any) -> str:
    if isinstance(operand, dict):
        return _find_negation_error(operand)
    values = operand if isinstance(operand, list) else [operand]
    if values and (all(isinstance(one, str) for one in values) or all(map(_is_number, values))):
        return ""
    if isinstance(operand, list):
        return "expects texts or numbers, not both, and no other values"
    return "expects a text, a number, or a list of either"


def _find_negation_error(operand: Mapping[str, Any]) -> str:
    [(name, inner)] = operand.items() if len(operand) == 1 else [(None, None)]
    if name not in _NEGATED:
        return f"can contain {' or '.join(map(repr, _NEGATED))}, once, and no other operator"
    values = inner if isinstance(inner, list) else [inner]
    if not values or not all(isinstance(one, str) and one for one in values):
        return f"with {name!r} expects a text or a list of texts, none of them empty"
    errors = map(_find_wildcard_error, values) if name == "wildcard" else ()
    return next(filter(None, errors), "")


def _find_numeric_error(operand: Any) -> str:
    """Check a comparison such as ``[">", 0]``, or a range such as ``[">", 0, "<=", 9]``, its lower bound first."""
    if not isinstance(operand, list) or len(operand) not in (2, 4):
        return 'expects a comparison or a range, as in [">", 0] or [">", 0, "<=", 9]'
    for sign, number in zip(operand[::2], operand[1::2], strict=True):
        if sign not in _COMPARISONS:
            return f"has no comparison {sign!r}: use one of {', '.join(_COMPARISONS)}"
        if not _is_number(number):
            return f"compares with {number!r}, which is not a number"
    if len(operand) == 2:  # noqa: PLR2004 - a sign and a number
        return ""
    low, bottom, high, top = operand
    if low not in _LOWER_BOUNDS or high not in _UPPER_BOUNDS:
        return 'expects a range with its lower bound first, as in [">", 0, "<=", 9]'
    return "" if bottom < top else f"has an empty range: {bottom!r} is not less than {top!r}"


def _find_exists_error(operand: Any) -> str:
    return "" if isinstance(operand, bool) else "expects True or False"


def _find_cidr_error(operand: Any) -> str:
    try:
        address, mask = str(operand).split("/")
        network = ip_network(f"{ip_address(address)}/{int(mask)}", strict=False)
    except ValueError:
        return 'expects an address and the bits of its mask, as in "10.0.0.0/24"'
    if network.prefixlen == network.max_prefixlen:
        return f"needs a mask of fewer than {network.max_prefixlen} bits: for one address, write it as a value"
    return ""


_OPERATORS: dict[str, Callable[[Any], str]] = {
    "prefix": _find_text_error,
    "suffix": _find_text_error,
    "equals-ignore-case": _find_text_error,
    "wildcard": _find_wildcard_error,
    "anything-but": _find_anything_but_error,
    "numeric": _find_numeric_error,
    "cidr": _find_cidr_error,
    "exists": _find_exists_error,
}
"""By name, with a function that returns what is wrong with an operand; empty if nothing is."""
RESERVED = frozenset(_OPERATORS)
"""SNS does not treat ``$or`` as an operator if one of its alternatives has a field of such a name."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wildcards_of(rule: Mapping[str, Any]) -> Iterator[str]:
    for source in (rule, rule.get("anything-but")):
        found = source.get("wildcard", ()) if isinstance(source, dict) else ()
        yield from [found] if isinstance(found, str) else found


def _points_of(pattern: str) -> int:
    """Return the points of a pattern: one for a single ``*``, three for each of several."""
    count = len(split_wildcard(pattern)) - 1
    return count if count <= 1 else 3 * count
