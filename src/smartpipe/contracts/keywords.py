"""Checks that the keywords of a schema file have values of the right kind, because people may edit the files. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smartpipe.contracts.compare import LIMITS, TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 100
"""The number of schemas within each other, without references."""
MAX_SHOWN = 60
_SCHEMAS = frozenset({"items", "additionalProperties", "propertyNames", "contentSchema"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs"})
_LISTED_SCHEMAS = frozenset({"prefixItems", "anyOf", "oneOf", "allOf"})
_TEXTS = frozenset({"pattern", "format", "$ref"})
_NUMBERS = frozenset(LIMITS) - {"pattern", "uniqueItems"}


def find_wrong_keyword(schema: Any) -> str | None:
    """Return a sentence about the first keyword with a value of the wrong kind; None if all are right."""
    waiting: list[tuple[Any, str, int]] = [(schema, "", 0)]
    while waiting:
        one, path, depth = waiting.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            return f"{path} is {_show(one)}, not a schema"
        if depth > MAX_DEPTH:
            return f"{path.split('.')[0]} has more than {MAX_DEPTH} schemas within each other; move some to $defs"
        for keyword, value in one.items():
            place = f"{path}.{keyword}" if path else keyword
            expected = _find_expected(keyword, value)
            if expected is not None:
                return f"{place} is {_show(value)}, not {expected}"
            waiting += ((inner, f"{place}{name}", depth + 1) for name, inner in _list_schemas(keyword, value))
    return None


def _find_expected(keyword: str, value: Any) -> str | None:
    """Return the kind of value that a keyword has; None if *value* is of this kind."""
    if keyword in _NAMED_SCHEMAS:
        return None if isinstance(value, dict) else "an object"
    if keyword in _LISTED_SCHEMAS:
        return None if isinstance(value, list) and value else "a list of schemas"
    if keyword == "enum":
        return None if isinstance(value, list) and value else "a list of values"
    if keyword == "required":
        return None if isinstance(value, list) and all(isinstance(one, str) for one in value) else "a list of names"
    if keyword == "type":
        types = value if isinstance(value, list) and value else [value]
        return None if all(isinstance(one, str) and one in TYPES for one in types) else f"one of {', '.join(TYPES)}"
    if keyword in _NUMBERS:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    if keyword in _TEXTS:
        return None if isinstance(value, str) else "a text"
    return None


def _list_schemas(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    if keyword in _SCHEMAS:
        yield "", value
    elif keyword in _NAMED_SCHEMAS:
        yield from ((f".{name}", one) for name, one in value.items())
    elif keyword in _LISTED_SCHEMAS:
        yield from ((f"[{index}]", one) for index, one in enumerate(value))


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
