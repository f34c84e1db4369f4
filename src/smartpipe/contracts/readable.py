"""Readable values of a JSON Schema, with the keywords that Pydantic writes: for example messages. Pure.

The same schema always gives the same values: random ones have a seed.
"""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from smartpipe.contracts.compare import alternatives_of
from smartpipe.contracts.plausible import numbers_for, texts_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.contracts.compare import Document, Schema
    from smartpipe.contracts.plausible import Search

Style: TypeAlias = Literal["minimal", "full", "smallest", "largest", "random"]
"""``minimal``: defaults, and no optional field. ``full``: all fields, and each time other members of unions.
``smallest`` and ``largest``: all fields, with values at their limits."""
Path: TypeAlias = tuple[str, ...]
"""The names of the fields around a value; ``[]`` is any item of an array, ``{}`` any value of a map, and
``{key}`` any key of it; ``|0`` is the first member of a union, and ``=`` one of the values of an enumeration."""

ITEM, VALUE, KEY = "[]", "{}", "{key}"
MEMBER, CHOICE = "|", "="
MAX_ITEMS = 3
MAX_OPTIONS_IN_AN_ARRAY = 20
_NO_VALUE = object()


class NoValueError(ValueError):
    """There is no value for a field that its class accepts.

    Args:
        path: The field.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


def join(path: Path) -> str:
    """Return a path as people read it."""
    return ".".join(one for one in path if not one.startswith((MEMBER, CHOICE))).replace(f".{ITEM}", ITEM)


class Coverage:
    """The members of unions and the values of enumerations that messages already have."""

    def __init__(self) -> None:
        self._seen: set[tuple[Path, int]] = set()
        self._sizes: dict[Path, int] = {}

    def copy(self) -> Coverage:
        """Return a copy, for a message that may be refused."""
        copy = Coverage()
        copy._seen, copy._sizes = set(self._seen), dict(self._sizes)
        return copy

    def __len__(self) -> int:
        """Return the number of members and values that messages have."""
        return len(self._seen)

    @property
    def widest(self) -> int:
        """The largest number of options at one place."""
        return max(self._sizes.values(), default=0)

    @property
    def missing(self) -> list[Path]:
        """The places some of whose options no message has."""
        return [path for path, size in self._sizes.items() if any((path, one) not in self._seen for one in range(size))]

    def choose(self, path: Path, size: int, otherwise: int) -> int:
        """Return an option that no message has yet; if there is none, the one with this number."""
        self._sizes[path] = size
        index = next((one for one in range(size) if (path, one) not in self._seen), otherwise % size)
        self.add(path, index)
        return index

    def add(self, path: Path, index: int) -> None:
        """Record an option."""
        self._seen.add((path, index))


class Builder:
    """Builds one value.

    Args:
        coverage: Is extended by the options that the value has.
        attempts: The number of values that were refused at a path. The next one is used.
        number: Selects among options that are all covered. It is also the seed of random values.
    """

    def __init__(
        self,
        document: Document,
        style: Style,
        *,
        coverage: Coverage,
        attempts: Mapping[Path, int],
        number: int,
        search: Search,
    ) -> None:
        self._document = document
        self._style = style
        self._coverage = coverage
        self._attempts = attempts
        self._number = number
        self._search = search
        self._random = Random(f"{style} {number}")  # noqa: S311 - not a secret
        self.paths: list[Path] = []

    def build(self) -> Any:
        """Return the value.

        Raises:
            NoValueError: All values for a field were refused.
        """
        return self._build(self._document.schema, (), (), minimal=self._style == "minimal")

    def _build(self, schema: Any, path: Path, inside: tuple[str, ...], nth: int = 0, *, minimal: bool) -> Any:
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        resolved = self._document.resolve(schema)
        self.paths.append(path)
        # A definition inside itself is built with its least fields, so that the value ends.
        minimal = minimal or reference in inside
        inside = (*inside, reference) if reference else inside
        given = self._take_given(resolved, path, minimal=minimal)
        if given is not _NO_VALUE:
            return given
        members = list(alternatives_of(resolved))
        if members:
            index = self._choose_member(members, path, inside, minimal=minimal)
            return self._build(members[index], (*path, f"{MEMBER}{index}"), inside, nth, minimal=minimal)
        if "const" in resolved:
            return resolved["const"]
        values: list[Any] = resolved.get("enum", [False, True] if resolved.get("type") == "boolean" else [])
        if values:
            return values[self._choose((*path, CHOICE), len(values), minimal)]
        if "contentSchema" in resolved:  # a text that has JSON
            return json.dumps(self._build(resolved["contentSchema"], path, inside, minimal=minimal))
        kind = resolved.get("type", "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object":
            return self._build_object(resolved, path, inside, minimal=minimal)
        if kind == "array":
            return self._build_array(resolved, path, inside, minimal=minimal)
        return None if kind == "null" else self._build_scalar({**resolved, "type": kind}, path, nth, minimal=minimal)

    def _take_given(self, schema: Schema, path: Path, *, minimal: bool) -> Any:
        """Return the default or an example that the class declares."""
        if minimal and "default" in schema:
            return deepcopy(schema["default"]) if not self._attempts.get(path) else _NO_VALUE
        examples = schema.get("examples") or ()
        usable = isinstance(examples, (list, tuple)) and path and self._attempts.get(path, 0) < len(examples)
        if not usable or "enum" in schema or "const" in schema:
            return _NO_VALUE
        if self._style == "random":
            return deepcopy(self._random.choice(examples))
        index = 0 if minimal else self._coverage.choose((*path, CHOICE), len(examples), self._number)
        return deepcopy(examples[max(index, self._attempts.get(path, 0))])

    def _choose(self, path: Path, size: int, minimal: bool) -> int:  # noqa: FBT001 - as in the callers
        if self._style == "random":
            index = self._random.randrange(size)
            self._coverage.add(path, index)
            return index
        return self._coverage.choose(path, size, self._number) if not minimal else 0

    def _choose_member(self, members: Sequence[Any], path: Path, inside: tuple[str, ...], *, minimal: bool) -> int:
        # Null comes last, so that the first message with all fields has their values.
        ordered = sorted(range(len(members)), key=lambda one: self._is_null(members[one]))
        if minimal:
            return min(ordered, key=lambda one: self._height(members[one], inside))
        if self._style in {"smallest", "largest"} and self._is_null(members[ordered[-1]]):
            ordered.pop()
        return ordered[self._choose(path, len(ordered), minimal)]

    def _is_null(self, schema: Any) -> bool:
        return self._document.resolve(schema).get("type") == "null"

    def _height(self, schema: Any, seen: tuple[str, ...]) -> float:
        """Return how deep the least value of a schema is; infinity if it contains itself."""
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if reference in seen:
            return math.inf
        seen = (*seen, reference) if reference else seen
        resolved = self._document.resolve(schema)
        members = list(alternatives_of(resolved))
        if members:
            return min(self._height(one, seen) for one in members)
        needed: list[Any] = [resolved.get("properties", {}).get(name, True) for name in resolved.get("required", ())]
        needed += resolved.get("prefixItems", [])
        if resolved.get("minItems", 0) > len(resolved.get("prefixItems", ())):
            needed.append(resolved.get("items", True))
        least = -1 if resolved.get("type") == "null" else 0
        return max((1 + self._height(one, seen) for one in needed), default=least)

    def _build_object(self, schema: Schema, path: Path, inside: tuple[str, ...], *, minimal: bool) -> dict[str, Any]:
        required = schema.get("required", ())
        built = {}
        for name, one in schema.get("properties", {}).items():
            wanted = not minimal and (self._style != "random" or self._random.random() < 0.5)  # noqa: PLR2004 - half
            if name in required or (wanted and self._height(one, ()) < math.inf):
                built[name] = self._build(one, (*path, name), inside, minimal=minimal)
        for key, one in self._entries(schema, path, minimal=minimal):
            if key not in built:
                built[key] = self._build(one, (*path, VALUE), inside, len(built), minimal=minimal)
        return built

    def _entries(self, schema: Schema, path: Path, *, minimal: bool) -> Iterator[tuple[str, Any]]:
        """Yield keys and the schemas of their values, for a map."""
        values = schema.get("additionalProperties", False)
        names = self._document.resolve(schema.get("propertyNames", True))
        for pattern, one in schema.get("patternProperties", {}).items():
            values, names = one, {"pattern": pattern}
        least = schema.get("minProperties", 0)
        if values is False or (values is True and not least):
            return
        keys = names.get("enum") or texts_for("entry", {"type": "string", **names}, self._search)
        self.paths.append((*path, KEY))
        keys = keys[self._attempts.get((*path, KEY), 0) :]
        size = least if minimal or self._style == "smallest" else max(least, 1)
        if "enum" in names and not minimal:
            size = max(size, len(keys))
        if size and not keys:
            raise NoValueError((*path, KEY))
        for index in range(size):
            yield (str(keys[index % len(keys)]) + (str(index) if index >= len(keys) else ""), values)

    def _build_array(self, schema: Schema, path: Path, inside: tuple[str, ...], *, minimal: bool) -> list[Any]:
        first = schema.get("prefixItems", ())
        built = [self._build(one, (*path, f"[{index}]"), inside, minimal=minimal) for index, one in enumerate(first)]
        items = schema.get("items", not first)
        if items is False:
            return built
        least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        size = self._size_of(items, least, most, minimal=minimal)
        for index in range(size - len(built)):
            one = self._build(items, (*path, ITEM), inside, index, minimal=minimal)
            if not schema.get("uniqueItems") or one not in built:
                built.append(one)
        return built

    def _size_of(self, items: Any, least: int, most: float, *, minimal: bool) -> int:
        if minimal or self._style == "smallest" or self._height(items, ()) == math.inf:
            return least
        if self._style == "random":
            return self._random.randint(least, int(min(most, least + MAX_ITEMS)))
        if self._style == "largest":
            return int(most if most <= MAX_OPTIONS_IN_AN_ARRAY else max(least, MAX_ITEMS))
        resolved = self._document.resolve(items)
        options = len(list(alternatives_of(resolved)) or resolved.get("enum", ())) or 1
        return int(min(most, max(least, min(options, MAX_OPTIONS_IN_AN_ARRAY))))

    def _build_scalar(self, schema: Schema, path: Path, nth: int, *, minimal: bool) -> Any:
        name = next((one for one in reversed(path) if not one.startswith(("[", "{", MEMBER))), "")
        if schema["type"] == "string":
            candidates: Sequence[Any] = texts_for(name, schema, self._search)
            edges = _text_edges(schema)
        else:
            candidates = numbers_for(name, schema)
            edges = _number_edges(schema)
        refused = self._attempts.get(path, 0)
        if self._style in edges and not minimal:
            candidates = [*edges[self._style], *candidates]
        elif self._style == "random" and candidates:
            if not refused:
                return self._draw(schema, candidates)
            refused -= 1
        if refused >= len(candidates):
            raise NoValueError(path)
        value = candidates[refused]
        return _vary(value, nth, schema) if nth else value

    def _draw(self, schema: Schema, candidates: Sequence[Any]) -> Any:
        """Return a random value near the candidates."""
        if schema["type"] == "string":
            alike = [one for one in candidates if _has_kind_of(one, candidates[0])]
            return self._random.choice(alike[:MAX_ITEMS])
        low, high = schema.get("minimum"), schema.get("maximum")
        usual = float(candidates[0])
        low = min(usual, 1) if low is None else low
        high = max(usual * 10, low) if high is None else high
        if {"multipleOf", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys():
            return candidates[0]
        if schema["type"] == "integer":
            return self._random.randint(math.ceil(low), math.floor(high))
        return min(max(round(self._random.uniform(low, high), 2), low), high)


def _has_kind_of(one: Any, other: Any) -> bool:
    return re.sub(r"\w", "a", str(one)) == re.sub(r"\w", "a", str(other)) or str(one).isalpha() == str(other).isalpha()


def _vary(value: Any, nth: int, schema: Schema) -> Any:
    """Return another value for the next item of an array, if that is as valid as the first one."""
    if isinstance(value, str):
        longest = schema.get("maxLength", math.inf)
        if "pattern" in schema or "format" in schema or len(value) + 1 + len(str(nth)) > longest:
            return value
        return f"{value}-{nth + 1}"
    if not isinstance(value, (int, float)) or "multipleOf" in schema:
        return value
    highest = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - 1)
    return value + nth if value + nth <= highest else value


_OF_FORMATS: Mapping[str, tuple[str, str]] = {
    "date-time": ("1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
    "date": ("1970-01-01", "9999-12-31"),
    "time": ("00:00:00Z", "23:59:59.999999Z"),
    "duration": ("PT0S", "P366D"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "ipv4": ("0.0.0.0", "255.255.255.255"),  # noqa: S104 - a value, not a listener
}
BEYOND_ASCII = 'Zoë says "hi" in 日本 😀 \\ <b>&amp;</b> '
"""Several scripts, a character outside of the Basic Multilingual Plane, and characters that formats escape."""
MAX_TEXT = 1_000
_BEYOND_32_BITS = 2**31


def _text_edges(schema: Schema) -> Mapping[str, list[Any]]:
    if "format" in schema:
        edges = _OF_FORMATS.get(schema["format"])
        return {"smallest": [edges[0]], "largest": [edges[1]]} if edges else {}
    if "pattern" in schema:
        return {}
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    size = int(most) if most <= MAX_TEXT else max(least, len(BEYOND_ASCII.strip()))
    return {"smallest": ["a" * least], "largest": [(BEYOND_ASCII * (size // len(BEYOND_ASCII) + 1))[:size]]}


def _number_edges(schema: Schema) -> Mapping[str, list[Any]]:
    if "multipleOf" in schema:
        return {}
    step = 1 if schema["type"] == "integer" else 0.01
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", _BEYOND_32_BITS + step) - step)
    if schema["type"] == "integer":
        low, high = math.ceil(low), math.floor(high)
    return {"smallest": [min(low, high)], "largest": [max(low, high)]}
