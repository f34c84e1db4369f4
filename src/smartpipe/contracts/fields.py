"""The fields that a schema describes, by path, and short descriptions of them. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.contracts.compare import LIMITS, alternatives_of, join_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smartpipe.contracts.compare import Document

MAX_DEPTH = 8
"""Schemas may contain themselves."""
MAX_SHOWN_VALUES = 8
NO_DEFAULT = object()


class Field(NamedTuple):
    """A field of an object.

    Args:
        path: As in ``Break``.
        schema: Its schema, which may refer to definitions of the document.
        default: ``NO_DEFAULT`` if it has none.
    """

    path: str
    schema: Any
    required: bool
    default: Any
    document: Document

    @property
    def text(self) -> str:
        """A short description of its values."""
        return summarize(self.document, self.schema)


def walk_fields(document: Document) -> dict[str, Field]:
    """Return all fields of a schema by path, in the order of declaration; each object before its own fields.

    The members of a union may have fields of one path. They are one field with all of their values.
    """
    found: dict[str, list[Field]] = {}
    for field in _walk(document, document.schema, "", 0, {}):
        found.setdefault(field.path, []).append(field)
    return {path: fields[0] if len(fields) == 1 else _join(fields) for path, fields in found.items()}


def _join(fields: Sequence[Field]) -> Field:
    defaults = [field.default for field in fields]
    return fields[0]._replace(
        schema={"anyOf": [field.schema for field in fields]},
        required=all(field.required for field in fields),
        default=defaults[0] if all(one == defaults[0] for one in defaults) else NO_DEFAULT,
    )


def list_defaults(document: Document) -> dict[str, list[str]]:
    """Return the defaults of each field as JSON. The members of a union may have fields of one path."""
    found: dict[str, list[str]] = {}
    for field in _walk(document, document.schema, "", 0, {}):
        if field.default is not NO_DEFAULT:
            found.setdefault(field.path, []).append(json.dumps(field.default, sort_keys=True))
    return found


def summarize(document: Document, schema: Any) -> str:
    """Return a short description of the values of a schema, such as ``array of string`` or ``integer, minimum 1``."""
    name = schema["$ref"].rpartition("/")[2] if isinstance(schema, dict) and "$ref" in schema else None
    resolved = document.resolve(schema)
    members = list(alternatives_of(resolved))
    if members:
        return " | ".join(dict.fromkeys(summarize(document, one) for one in members))
    if "const" in resolved:
        return json.dumps(resolved["const"], ensure_ascii=False)
    if "enum" in resolved:
        values = [json.dumps(value, ensure_ascii=False) for value in resolved["enum"]]
        more = f" | {len(values) - MAX_SHOWN_VALUES} more" if len(values) > MAX_SHOWN_VALUES else ""
        return " | ".join(values[:MAX_SHOWN_VALUES]) + more
    kind = resolved.get("type")
    if kind is None:
        return "nothing" if "not" in resolved else "any value"
    if kind == "object" and "properties" in resolved:
        return name or resolved.get("title") or "object"
    if kind == "object":
        values = resolved.get("additionalProperties", True)
        return "object" if isinstance(values, bool) else f"map of {summarize(document, values)}"
    if kind == "array":
        items = [summarize(document, one) for one in resolved.get("prefixItems", ())]
        if items:
            return f"array of ({', '.join(items)})"
        text = f"array of {summarize(document, resolved['items'])}" if "items" in resolved else "array"
    else:
        text = f"{kind} ({resolved['format']})" if "format" in resolved else str(kind)
    return ", ".join([text, *(f"{key} {_show(resolved[key])}" for key in LIMITS if key in resolved)])


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _walk(
    document: Document, schema: Any, path: str, depth: int, seen: dict[tuple[str, object], object]
) -> Iterator[Field]:
    """Yield the fields below *path*. The members of a recursive union lead to the same paths, which are walked once.

    Args:
        seen: The schemas that have been walked, by path and identity.
    """
    key = (path, schema["$ref"] if isinstance(schema, dict) and "$ref" in schema else id(schema))
    if depth > MAX_DEPTH or key in seen:
        return
    seen[key] = schema
    resolved = document.resolve(schema)
    depth += 1
    for one in alternatives_of(resolved):
        yield from _walk(document, one, path, depth, seen)
    required = resolved.get("required", ())
    for name, child in resolved.get("properties", {}).items():
        place = join_path(path, name)
        own = child if isinstance(child, dict) else {}
        default = own.get("default", NO_DEFAULT)
        yield Field(place, child, name in required, default, document)
        yield from _walk(document, child, place, depth, seen)
    items, values = resolved.get("items"), resolved.get("additionalProperties")
    for index, one in enumerate(resolved.get("prefixItems", ())):
        yield from _walk(document, one, f"{path}[{index}]", depth, seen)
    if isinstance(items, dict):
        yield from _walk(document, items, f"{path}[]", depth, seen)
    if isinstance(values, dict):
        yield from _walk(document, values, f"{path}{{}}", depth, seen)
