"""Hypothesis strategies for the values of a JSON Schema, with the keywords that Pydantic writes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from smartpipe.contracts.compare import TYPES, WITHOUT_EFFECT, alternatives_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smartpipe.contracts.compare import Document, Schema

MAX_ITEMS = 3
MAX_MORE_ITEMS = 100
_LENGTHS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 -_.é"


class UnknownFormat(ValueError):
    """There is no strategy for a format of text."""


class Hints:
    """Values at which a rule of another schema may change: just inside and outside of its limits."""

    def __init__(self, schemas: Iterable[object] = ()) -> None:
        self.lengths: set[int] = set()
        self.numbers: set[float] = set()
        for schema in schemas:
            self._collect(schema)

    def _collect(self, value: object) -> None:
        if isinstance(value, list):
            for one in value:
                self._collect(one)
        elif isinstance(value, dict):
            for key, one in value.items():
                if key in _LENGTHS and isinstance(one, int):
                    self.lengths |= {max(one - 1, 0), one, one + 1}
                elif key in _NUMBERS and isinstance(one, (int, float)):
                    self.numbers |= {one - 1, one, one + 1, one + 0.5}
                else:
                    self._collect(one)


def values_of(document: Document, hints: Hints | None = None) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a document.

    Args:
        hints: Makes values at the limits of another document likely.

    Raises:
        UnknownFormat: The document has a format that no strategy is known for.
    """
    return _Builder(document, hints or Hints()).build(document.schema)


class _Builder:
    def __init__(self, document: Document, hints: Hints) -> None:
        self._document, self._hints = document, hints
        self._deferred: dict[str, st.SearchStrategy[Any]] = {}

    def build(self, schema: Any) -> st.SearchStrategy[Any]:
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if reference is None or set(schema) - {"$ref", "title", "description", "default"}:
            return self._build(self._document.resolve(schema))
        if reference not in self._deferred:
            self._deferred[reference] = st.deferred(lambda: self._build(self._document.resolve(schema)))
        return self._deferred[reference]

    def _build(self, schema: Schema) -> st.SearchStrategy[Any]:
        members = list(alternatives_of(schema))
        if members:
            # The last member of a recursive union often ends it, such as null.
            return st.one_of([self.build(one) for one in reversed(members)])
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        types = schema.get("type", [one for one in TYPES if one not in {"array", "object", "number"}])
        if isinstance(types, list):
            return st.one_of([self._build({**schema, "type": one}) for one in types])
        if types == "array":
            return self._arrays(schema)
        if types == "object":
            return self._objects(schema)
        if "contentSchema" in schema:  # a text that has JSON
            return self.build(schema["contentSchema"]).map(json.dumps)
        if types in {"boolean", "null"}:
            return st.booleans() if types == "boolean" else st.none()
        return _SCALARS[types](schema, self._hints)

    def _arrays(self, schema: Schema) -> st.SearchStrategy[Any]:
        first = [self.build(one) for one in schema.get("prefixItems", ())]
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        if first and most <= len(first):
            return st.tuples(*first).map(list)
        items = self.build(schema.get("items", True))
        unique = schema.get("uniqueItems", False)
        sizes = self._sizes(least, most)
        if unique:  # there may be fewer different items than the size
            rest = sizes.flatmap(lambda size: st.lists(items, min_size=least, max_size=size, unique_by=repr))
        else:
            rest = sizes.flatmap(lambda size: st.lists(items, min_size=size, max_size=size))
        return st.tuples(st.tuples(*first), rest).map(lambda pair: [*pair[0], *pair[1]]) if first else rest

    def _objects(self, schema: Schema) -> st.SearchStrategy[Any]:
        required = set(schema.get("required", ()))
        fields = {name: self.build(one) for name, one in schema.get("properties", {}).items()}
        fixed = st.fixed_dictionaries(
            {name: one for name, one in fields.items() if name in required},
            optional={name: one for name, one in fields.items() if name not in required},
        )
        more = schema.get("additionalProperties", False)
        for pattern, one in schema.get("patternProperties", {}).items():
            return st.dictionaries(_texts({"pattern": pattern}, self._hints), self.build(one), max_size=MAX_ITEMS)
        if more is False:
            return fixed
        names = self._build({"type": "string", "minLength": 1, **self._names(schema)})
        values = self.build(more)
        least = schema.get("minProperties", 0)
        sizes = self._sizes(least, schema.get("maxProperties", math.inf))
        others = sizes.flatmap(lambda size: st.dictionaries(names, values, min_size=least, max_size=size))
        return st.tuples(others, fixed).map(lambda pair: {**pair[0], **pair[1]})

    def _names(self, schema: Schema) -> Schema:
        return self._document.resolve(schema.get("propertyNames", True))

    def _sizes(self, least: int, most: float) -> st.SearchStrategy[int]:
        """Return a strategy for a number of items. Half of them are the least, so that recursive values end."""
        sizes = {*range(least, int(min(most, least + MAX_ITEMS)) + 1), *self._hints.lengths}
        if most < math.inf:
            sizes.add(int(most))
        allowed = sorted(size for size in sizes if least <= size <= most and size <= least + MAX_MORE_ITEMS)
        return st.just(least) | st.sampled_from(allowed)


def _texts(schema: Schema, hints: Hints) -> st.SearchStrategy[Any]:
    expected = schema.get("format")
    if expected in _FORMATS:
        return _FORMATS[expected]
    if expected is not None and expected not in WITHOUT_EFFECT:
        raise UnknownFormat(expected)
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if "pattern" in schema:
        matching = st.from_regex(str(schema["pattern"]), fullmatch=False)
        # In Python's expressions, $ also matches before a line end.
        return matching.filter(lambda text: least <= len(text) <= most and not text.endswith("\n"))
    sizes = {least, min(most, least + 5), most, *hints.lengths}
    edges = sorted(int(size) for size in sizes if least <= size <= most and size < math.inf)
    longest = int(min(most, least + 20))
    return st.text(_ALPHABET, min_size=least, max_size=longest) | st.sampled_from(edges).flatmap(_text_of_length)


def _text_of_length(size: int) -> st.SearchStrategy[str]:
    return st.text(_ALPHABET, min_size=size, max_size=size)


def _integers(schema: Schema, hints: Hints) -> st.SearchStrategy[Any]:
    low, high = _bounds(schema, 1)
    factor = int(schema.get("multipleOf", 1))
    drawn = st.integers(
        None if low is None else math.ceil(low / factor), None if high is None else math.floor(high / factor)
    )
    edges = [
        int(one)
        for one in sorted({*hints.numbers, *(one for one in (low, high) if one is not None)})
        if one % factor == 0 and (low is None or one >= low) and (high is None or one <= high)
    ]
    multiples = drawn.map(lambda number: number * factor)
    return multiples | st.sampled_from(edges) if edges else multiples


def _numbers(schema: Schema, hints: Hints) -> st.SearchStrategy[Any]:
    if "multipleOf" in schema:
        return _integers({**schema, "multipleOf": math.ceil(schema["multipleOf"])}, hints)
    low, high = _bounds(schema, 0)
    drawn = st.floats(
        low,
        high,
        allow_nan=False,
        allow_infinity=False,
        exclude_min=_is_excluded(schema, "Minimum", low),
        exclude_max=_is_excluded(schema, "Maximum", high),
    )
    edges = [one for one in sorted(hints.numbers) if (low is None or one > low) and (high is None or one < high)]
    return st.sampled_from(edges) | drawn if edges else drawn


def _is_excluded(schema: Schema, side: str, bound: float | None) -> bool:
    return bound is not None and schema.get(f"exclusive{side}") == bound


def _bounds(schema: Schema, step: int) -> tuple[float | None, float | None]:
    lows = [schema["minimum"]] if "minimum" in schema else []
    highs = [schema["maximum"]] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(schema["exclusiveMinimum"] + step)
    if "exclusiveMaximum" in schema:
        highs.append(schema["exclusiveMaximum"] - step)
    return max(lows, default=None), min(highs, default=None)


_SCALARS: dict[str, Callable[[Schema, Hints], st.SearchStrategy[Any]]] = {
    "string": _texts,
    "integer": _integers,
    "number": _numbers,
}
_HOSTS = st.sampled_from(["example.com", "shop.example.org"])
_FORMATS: dict[str, st.SearchStrategy[Any]] = {
    "date-time": st.datetimes().map(lambda one: f"{one.isoformat()}Z"),
    "date": st.dates().map(lambda one: one.isoformat()),
    "time": st.times().map(lambda one: f"{one.isoformat()}Z"),
    "duration": st.integers(0, 10**6).map(lambda seconds: f"PT{seconds}S"),
    "uuid": st.uuids(version=4).map(str),
    **{f"uuid{version}": st.uuids(version=version).map(str) for version in (1, 3, 4, 5)},
    "email": _HOSTS.map(lambda host: f"ada@{host}"),
    "uri": _HOSTS.map(lambda host: f"https://{host}/"),
    "ipv4": st.ip_addresses(v=4).map(str),
    "ipv6": st.ip_addresses(v=6).map(str),
}
