"""Decides whether every value that a writer's schema describes fits a reader's schema. Pure.

A schema is a dict of JSON Schema 2020-12, with the keywords that Pydantic writes. Source of their meaning: JSON Schema
2020-12, "Validation".
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Schema: TypeAlias = "dict[str, Any]"

Rule: TypeAlias = Literal["required", "closed", "type", "value", "alternative", "limit", "format", "pattern", "keyword"]
"""Why a value does not fit, or may not. ``required``: a field may be missing. ``closed``: a field is forbidden.
``alternative``: it fits no member of a union. ``pattern`` and ``keyword`` cannot be decided."""

MAX_BREAKS = 100
"""Of one pair of schemas. A recursive one may have any number, the deeper ones being repetitions."""
UNDECIDED: frozenset[Rule] = frozenset({"pattern", "keyword"})
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
WITHOUT_EFFECT = frozenset({"binary", "password", "path", "file-path", "directory-path"})
"""Formats that any text has."""
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs"}
    | {"$schema", "contentMediaType", "contentSchema", "contentEncoding"}
)
LIMITS = (
    *("minLength", "maxLength", "pattern", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"),
    *("minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"),
)
"""The keywords that limit the values of a type."""
_DATA = frozenset({"default", "examples", "const", "enum"})
_NAMED = frozenset({"properties", "patternProperties", "$defs"})
KEYWORDS = frozenset(LIMITS) | frozenset(
    {"type", "const", "enum", "anyOf", "oneOf", "format", "items", "prefixItems", "properties", "required"}
    | {"additionalProperties", "patternProperties", "propertyNames"}
)
"""The keywords that are compared."""


class Break(NamedTuple):
    """A place at which a written value may not fit the reader.

    Args:
        path: The field, such as ``items[].price``; ``{}`` is any key of a map. Empty for the data as a whole.
        written: The writer's schema at the path, or its value; None if the writer does not send the field.
        accepted: The reader's schema there, or one keyword of it.
    """

    path: str
    rule: Rule
    written: Any
    accepted: Any


class WrongReference(ValueError):
    """A ``$ref`` leads nowhere."""


class Document:
    """A schema and the definitions that it refers to."""

    def __init__(self, root: Schema, schema: Schema | None = None) -> None:
        self.root = root
        self.schema = root if schema is None else schema

    @classmethod
    def of_data(cls, envelope: Schema) -> Document:
        """Return the schema of ``data`` within that of an envelope."""
        data = envelope.get("properties", {}).get("data", {})
        return cls(envelope, data if isinstance(data, dict) else {})

    def resolve(self, schema: Any) -> Schema:
        """Return *schema* without ``$ref`` and ``allOf`` at its top; False as a schema that nothing fits.

        Raises:
            WrongReference: It refers to a definition that does not exist, or to itself without anything between.
        """
        for _ in range(len(self.root.get("$defs", {})) + 2):
            if schema is True:
                return {}
            if schema is False:
                return {"not": {}}
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._find(schema["$ref"]), **rest}
            elif "allOf" in schema:
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                for part in schema["allOf"]:
                    rest = {**self.resolve(part), **rest}
                schema = rest
            else:
                return schema  # type: ignore[no-any-return]
        raise WrongReference("a definition refers to itself")

    def find_wrong_reference(self) -> str | None:
        """Return a sentence about a reference in the document that is wrong; None if all are right."""
        waiting: list[tuple[Any, bool]] = [(self.root, False)]  # and whether its keys are names
        while waiting:
            one, is_named = waiting.pop()
            if isinstance(one, list):
                waiting += ((item, False) for item in one)
            elif isinstance(one, dict):
                if not is_named and isinstance(one.get("$ref"), str):
                    try:
                        self.resolve(one)
                    except WrongReference as error:
                        return str(error)
                inner = ((key, value) for key, value in one.items() if is_named or key not in _DATA)
                waiting += ((value, key in _NAMED and not is_named) for key, value in inner)
        return None

    def _find(self, reference: str) -> Schema:
        if reference != "#" and not reference.startswith("#/"):
            raise WrongReference(
                f"it refers to {reference!r}, but only references within the file are read: '#/$defs/…'"
            )
        found: Any = self.root
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901 - RFC 6901, section 4
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, (dict, bool)):
            raise WrongReference(f"it refers to {reference!r}, which does not exist")
        return found if isinstance(found, dict) else {} if found else {"not": {}}


def find_breaks(writer: Document, reader: Document) -> list[Break]:
    """Return the places at which a value of *writer* may not fit *reader*; none if each value fits.

    The references in both must be right: see ``Document.find_wrong_reference``.
    """
    found = _Comparison(writer, reader).compare(writer.schema, reader.schema, "")
    return _remove_duplicates(found)


class _Comparison:
    def __init__(self, writer: Document, reader: Document) -> None:
        self._writer, self._reader = writer, reader
        self._fitting: set[tuple[object, object]] = set()
        self._trail: list[tuple[object, object]] = []  # the same pairs, in the order in which they were added
        self._failed: dict[tuple[object, object], tuple[str, list[Break]]] = {}
        self._alive: list[object] = []  # keeps the ids in the pairs from being used again

    def compare(self, written: Any, accepted: Any, path: str) -> list[Break]:
        """Return the breaks of a pair of schemas. A pair that contains itself is assumed to fit, as by induction.

        Each pair is compared once: members of a recursive union would otherwise be compared in every order. If a pair
        fails, the pairs that fit because it was assumed to fit are forgotten.
        """
        key = (_identify(written), _identify(accepted))
        if key in self._fitting:
            return []
        if key in self._failed:
            first, known = self._failed[key]
            return [one._replace(path=_move_path(one.path, first, path)) for one in known]
        self._alive += [written, accepted]
        start = len(self._trail)
        self._fitting.add(key)
        self._trail.append(key)
        breaks = self._compare(self._writer.resolve(written), self._reader.resolve(accepted), path)
        if breaks:
            self._fitting.difference_update(self._trail[start:])
            del self._trail[start:]
            breaks = sorted(_remove_duplicates(breaks), key=lambda one: len(one.path))[:MAX_BREAKS]
            self._failed[key] = (path, breaks)
        return breaks

    def _compare(self, written: Schema, accepted: Schema, path: str) -> list[Break]:
        if written == {"not": {}} or not accepted.keys() - _ANNOTATIONS:
            return []
        if accepted == {"not": {}}:
            return [Break(path, "closed", written, False)]
        pieces = list(_split(written))
        if pieces != [written]:
            return [one for piece in pieces for one in self.compare(piece, accepted, path)]
        alternatives = list(alternatives_of(accepted))
        if alternatives:
            return self._compare_union(written, accepted, alternatives, path)
        return list(self._compare_one(written, accepted, path))

    def _compare_union(self, written: Schema, accepted: Schema, alternatives: list[Schema], path: str) -> list[Break]:
        """Find the member of a union that the written value fits, or else the one that it was meant for."""
        close: list[list[Break]] = []
        for alternative in alternatives:
            if self._is_close(written, alternative):
                close.append(self.compare(written, alternative, path))
                if not close[-1]:
                    return []
        if len(close) == 1:
            return close[0]
        decided = [breaks for breaks in close if not any(one.rule in UNDECIDED for one in breaks)]
        if close and not decided:
            return min(close, key=len)
        return [Break(path, "alternative", written, accepted)]

    def _is_close(self, written: Schema, alternative: Schema) -> bool:
        """Return whether both have one type and, if they are objects with constants, the same constants.

        If not, no written value fits.
        """
        resolved = self._reader.resolve(alternative)
        if not _types(written) & _widen(_types(resolved)):
            return False
        theirs = resolved.get("properties", {})
        for name, schema in written.get("properties", {}).items():
            ours = self._writer.resolve(schema)
            other = self._reader.resolve(theirs.get(name, True))
            if "const" in ours and "const" in other and ours["const"] != other["const"]:
                return False
        return True

    def _compare_one(self, written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
        unknown = {
            key: value
            for key, value in accepted.items()
            if key not in KEYWORDS and key not in _ANNOTATIONS and written.get(key) != value
        }
        if unknown:
            yield Break(path, "keyword", written, unknown)
        types = _types(written)
        if not types <= _widen(_types(accepted)):
            yield Break(path, "type", written, accepted)
            return
        values = [False, True] if types == {"boolean"} and _values(written) is None else _values(written)
        if values is not None:
            yield from _compare_values(values, accepted, path)
            yield from self._compare_contents(written, accepted, path)
            if _values(accepted) is None:
                for value in values:
                    if isinstance(value, (dict, list)):
                        yield from self.compare(_describe(value), accepted, path)
            return
        if _values(accepted) is not None:
            yield Break(path, "value", written, accepted)
            return
        if "string" in types:
            yield from _compare_texts(written, accepted, path)
            yield from self._compare_contents(written, accepted, path)
        if types & {"integer", "number"}:
            yield from _compare_numbers(written, accepted, path)
        if "array" in types:
            yield from self._compare_arrays(written, accepted, path)
        if "object" in types:
            yield from self._compare_objects(written, accepted, path)

    def _compare_contents(self, written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
        """Compare texts that have JSON, as of Pydantic's ``Json``."""
        if "contentSchema" not in accepted:
            return
        try:
            values = _values(written)
            contents = [written["contentSchema"]] if values is None else [_describe(json.loads(one)) for one in values]
        except (KeyError, TypeError, ValueError):  # not JSON, or not always
            yield Break(path, "format", written, {"contentMediaType": "application/json"})
            return
        for content in contents:
            yield from self.compare(content, accepted["contentSchema"], path)

    def _compare_arrays(self, written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
        yield from _compare_bounds(written, accepted, path, "minItems", "maxItems")
        if accepted.get("uniqueItems") and not written.get("uniqueItems") and written.get("maxItems", 2) > 1:
            yield Break(path, "limit", written, {"uniqueItems": True})
        ours, theirs = written.get("prefixItems", []), accepted.get("prefixItems", [])
        most = written.get("maxItems", math.inf)
        for index in range(max(len(ours), len(theirs))):
            if index < most:
                item = ours[index] if index < len(ours) else written.get("items", True)
                other = theirs[index] if index < len(theirs) else accepted.get("items", True)
                yield from self.compare(item, other, f"{path}[{index}]")
        if most > max(len(ours), len(theirs)):
            yield from self.compare(written.get("items", True), accepted.get("items", True), f"{path}[]")

    def _compare_objects(self, written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
        yield from _compare_bounds(written, accepted, path, "minProperties", "maxProperties")
        ours, theirs = written.get("properties", {}), accepted.get("properties", {})
        others, more = accepted.get("additionalProperties", True), written.get("additionalProperties", True)
        sent = set(written.get("required", ()))
        for name in accepted.get("required", ()):
            if name not in sent:
                yield Break(join_path(path, name), "required", ours.get(name), theirs.get(name, {}))
        for name, schema in ours.items():
            yield from self._compare_names([{"const": name}], accepted, path)
            if name in theirs:
                yield from self.compare(schema, theirs[name], join_path(path, name))
            elif others is False:
                yield Break(join_path(path, name), "closed", schema, False)
            else:
                yield from self.compare(schema, others, join_path(path, name))
        yield from self._compare_patterns(written, accepted, path)
        if more is False or "patternProperties" in written:
            return
        for name in theirs.keys() - ours.keys():  # a map may have any key
            yield from self.compare(more, theirs[name], join_path(path, name))
        if others is False:
            yield Break(f"{path}{{}}", "closed", more, False)
        else:
            yield from self.compare(more, others, f"{path}{{}}")
        yield from self._compare_names([written.get("propertyNames", True)], accepted, path)

    def _compare_names(self, written: list[Any], accepted: Schema, path: str) -> Iterator[Break]:
        """Compare the schemas of a map's keys with those that a reader accepts."""
        if "propertyNames" in accepted:
            expected = {"type": "string", **self._reader.resolve(accepted["propertyNames"])}
            for one in written:
                yield from self.compare({"type": "string", **self._writer.resolve(one)}, expected, f"{path}{{key}}")

    def _compare_patterns(self, written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
        """Compare maps whose keys match patterns. Which keys match two different patterns is not decided."""
        ours, theirs = written.get("patternProperties", {}), accepted.get("patternProperties", {})
        yield from self._compare_names([{"pattern": pattern} for pattern in ours], accepted, path)
        if ours and not theirs:
            for schema in ours.values():
                yield from self.compare(schema, accepted.get("additionalProperties", True), f"{path}{{}}")
        elif ours.keys() != theirs.keys():
            yield Break(path, "keyword", written, {"patternProperties": theirs})
        for pattern in ours.keys() & theirs.keys():
            yield from self.compare(ours[pattern], theirs[pattern], f"{path}{{}}")


def _identify(schema: Any) -> object:
    """Return the identity of a schema. One that refers to a definition may be a copy, and is the same by its text."""
    if isinstance(schema, dict) and "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        return json.dumps(rest, sort_keys=True)
    return id(schema)


def _remove_duplicates(breaks: list[Break]) -> list[Break]:
    return list({(one.path, one.rule, repr(one.accepted)): one for one in breaks}.values())


def _move_path(path: str, old: str, new: str) -> str:
    """Return a path below *old* as it is below *new*."""
    rest = path.removeprefix(old)
    if not new:
        return rest.removeprefix(".")
    return f"{new}{rest}" if not rest or rest[0] in ".[{" else join_path(new, rest)


def join_path(path: str, name: str) -> str:
    """Return the path of a field of the object at *path*."""
    return f"{path}.{name}" if path else name


def _split(schema: Schema) -> Iterator[Schema]:
    """Yield the members of a union, the values of an enumeration, and the types of a list of types, each on its own."""
    alternatives = list(alternatives_of(schema))
    if alternatives:
        yield from alternatives
    elif len(schema.get("enum", ())) > 1:
        yield from ({**schema, "enum": [value]} for value in schema["enum"])
    elif isinstance(schema.get("type"), list):
        yield from ({**schema, "type": one} for one in schema["type"])
    else:
        yield schema


def alternatives_of(schema: Schema) -> Iterator[Schema]:
    """Yield the members of a union, each with the keywords beside it; none if *schema* is not a union."""
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            rest = {key: value for key, value in schema.items() if key != keyword and key not in _ANNOTATIONS}
            yield from ({**rest, **one} if rest and isinstance(one, dict) else one for one in schema[keyword])
            return


def _types(schema: Schema) -> set[str]:
    """Return the types of a schema. A number includes every integer."""
    declared = schema.get("type")
    if declared is None:
        values = _values(schema)
        return set(TYPES) - {"integer"} if values is None else {_type_of(value) for value in values}
    return {declared} if isinstance(declared, str) else set(declared)


def _widen(types: set[str]) -> set[str]:
    return types | {"integer"} if "number" in types else types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {int: "integer", str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def _values(schema: Schema) -> list[Any] | None:
    """Return the only values of a schema, or None if it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    return [None] if schema.get("type") == "null" else None


def _describe(value: Any) -> Schema:
    """Return a schema that only *value* fits."""
    if isinstance(value, list):
        return {
            "type": "array",
            "prefixItems": [*map(_describe, value)],
            "minItems": len(value),
            "maxItems": len(value),
        }
    if isinstance(value, dict):
        fields = {name: _describe(one) for name, one in value.items()}
        return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    return {"const": value}


def _compare_values(values: list[Any], accepted: Schema, path: str) -> Iterator[Break]:
    known = _values(accepted)
    for value in values:
        if known is not None:
            if not any(type(one) is type(value) and one == value for one in known):
                yield Break(path, "value", value, accepted)
        elif isinstance(value, str):
            size = {"minLength": len(value), "maxLength": len(value)}
            yield from _compare_bounds(size, accepted, path, "minLength", "maxLength")
            if "pattern" in accepted and not _matches(accepted["pattern"], value):
                yield Break(path, "value", value, {"pattern": accepted["pattern"]})
            if accepted.get("format", "binary") not in WITHOUT_EFFECT:
                yield Break(path, "format", value, {"format": accepted["format"]})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = {"minimum": value, "maximum": value, "multipleOf": value or accepted.get("multipleOf", 1)}
            yield from _compare_numbers(number, accepted, path)


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False


def _compare_texts(written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
    yield from _compare_bounds(written, accepted, path, "minLength", "maxLength")
    expected = accepted.get("format")
    if expected is not None and expected not in WITHOUT_EFFECT and written.get("format") != expected:
        yield Break(path, "format", written, {"format": expected})
    pattern = accepted.get("pattern")
    if pattern is not None and pattern != written.get("pattern"):
        is_free = not written.keys() & {"pattern", "format"}
        refused = is_free and any(not _matches(pattern, text) for text in _make_probes(written))
        yield Break(path, "limit" if refused else "pattern", written, {"pattern": pattern})


def _make_probes(written: Schema) -> Iterator[str]:
    """Yield texts that a schema without a pattern describes. A pattern that refuses one of them is a narrower rule."""
    least, most = written.get("minLength", 0), written.get("maxLength", math.inf)
    for character in "a0 -~é":
        size = max(least, min(1, most))
        yield character * int(size)
    if least == 0:
        yield ""


def _compare_numbers(written: Schema, accepted: Schema, path: str) -> Iterator[Break]:
    whole = "number" not in _types(written)
    for side, sign in (("minimum", 1), ("maximum", -1)):
        ours, theirs = _find_bound(written, side, sign, whole=whole), _find_bound(accepted, side, sign, whole=whole)
        if ours < theirs:
            keyword = next(key for key in (_exclusive(side), side) if key in accepted)
            yield Break(path, "limit", written, {keyword: accepted[keyword]})
    factor = accepted.get("multipleOf")
    if factor is not None:
        own = written.get("multipleOf", 1 if whole else 0)
        if not own or not math.isclose(own / factor, round(own / factor), rel_tol=1e-9):
            yield Break(path, "limit", written, {"multipleOf": factor})


def _find_bound(schema: Schema, side: str, sign: int, *, whole: bool) -> tuple[float, bool]:
    """Return a lower bound, negated if it is an upper one, and whether the bound itself is excluded."""
    bounds = [(-math.inf, False)]
    if side in schema:
        bounds.append((sign * schema[side], False))
    excluded = schema.get(_exclusive(side))
    if excluded is not None:
        next_whole = math.floor(sign * excluded) + 1
        bounds.append((next_whole, False) if whole else (sign * excluded, True))
    best = max(bounds)
    return (math.ceil(best[0]), best[1]) if whole and math.isfinite(best[0]) else best


def _exclusive(side: str) -> str:
    return f"exclusive{side.capitalize()}"


def _compare_bounds(written: Mapping[str, Any], accepted: Schema, path: str, least: str, most: str) -> Iterator[Break]:
    if accepted.get(least, 0) > written.get(least, 0):
        yield Break(path, "limit", dict(written), {least: accepted[least]})
    if accepted.get(most, math.inf) < written.get(most, math.inf):
        yield Break(path, "limit", dict(written), {most: accepted[most]})
