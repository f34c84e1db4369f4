"""Finds fields of an event that consumers could not read as they were published. Pure.

Pydantic has two views of a class: the names and types that it reads, and those that it writes. They differ for aliases,
excluded fields, secrets and a few types. One service writes an event and others read it, so both views must agree.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaSerializer, SchemaValidator, core_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_CLASSES = frozenset({"model", "dataclass"})
_DICTS = frozenset({"dict", "counter", "ordered-dict", "frozen-dict"})
_COLLECTIONS = frozenset({"list", "set", "frozenset", "generator", "deque"})
_MUTABLE = frozenset({"list", "set", "deque", "typed-dict", *_CLASSES, *_DICTS})
_UNREADABLE_KEYS = _COLLECTIONS | _DICTS | _CLASSES | {"tuple", "nullable", "none", "typed-dict", "named-tuple"}
"""Types of keys that Pydantic cannot read from the text that JSON has for a key."""
_SCALARS = {"int": int, "str": str, "bool": bool, "float": float}


class FieldReport(NamedTuple):
    """The findings about an event class.

    Args:
        errors: A sentence for each field that consumers could not read.
        mutable: A value may have stopped fitting its type since the event was validated, because it is in a list, a
            dict or another model. Or a default value was never validated.
        own_serializers: The class has serializers, or a union with Json, and consumers may not be able to read their
            output.
        infinite: A field may hold infinity or NaN, because it belongs to a model that allows them.
        anything: A field has the type Any.
        json_text: A field has the type Json, which Pydantic reads from text but writes as a value.
        nested: The classes of values within the event, each with its fields that contain such values.
    """

    errors: list[str]
    mutable: bool
    own_serializers: bool
    infinite: bool
    anything: bool
    json_text: bool
    nested: Mapping[type, tuple[str, ...]]


def inspect_fields(schema: Any) -> FieldReport:
    """Compare the names and types that the class with this Pydantic core schema reads with those that it writes."""
    inspection = _Inspection()
    inspection.inspect(schema, "", {})
    nested = {cls: tuple(names) for cls, names in inspection.nested.items()}
    if len(nested) == 1:  # only the event itself
        nested = {}
    return FieldReport(
        list(dict.fromkeys(inspection.errors)),
        inspection.mutable,
        inspection.own_serializers,
        inspection.infinite,
        inspection.anything,
        inspection.json_text,
        nested,
    )


def find_undeclared_class(value: Any, nested: Mapping[type, tuple[str, ...]]) -> str | None:
    """Describe a value within an event whose class adds fields to the declared class; None if there is none.

    Pydantic writes only the fields of the declared class, so the added ones would vanish. Every publish of an event
    with models in it calls this, so members of a declared class without others in it, which are most, cost one lookup.

    Args:
        nested: That of the event's FieldReport.
    """
    fields = nested.get(type(value))
    if fields is None:
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return _find_first(value, nested)
        if isinstance(value, dict):
            return _find_first(value.values(), nested)
        declared = next((cls for cls in type(value).__mro__ if cls in nested), None)
        if declared is None:
            return None
        added = [name for name in _list_fields(type(value)) if name not in _list_fields(declared)]
        if added:
            return f"a {type(value).__name__}, which adds {', '.join(added)} to {declared.__name__}"
        fields = nested[declared]
    for name in fields:
        member = getattr(value, name, None)
        if type(member) is list:
            found = _find_first(member, nested)
        elif nested.get(type(member)) == ():
            continue
        else:
            found = find_undeclared_class(member, nested)
        if found is not None:
            return found
    return None


def _find_first(values: Iterable[Any], nested: Mapping[type, tuple[str, ...]]) -> str | None:
    for value in values:
        if nested.get(type(value)) != ():
            found = find_undeclared_class(value, nested)
            if found is not None:
                return found
    return None


def _list_fields(cls: type) -> Iterable[str]:
    return cls.model_fields if issubclass(cls, BaseModel) else getattr(cls, "__dataclass_fields__", ())


class _Inspection:
    """One walk through a core schema. It visits each definition once, at the first path that leads to it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.mutable = self.own_serializers = self.infinite = self.anything = self.json_text = False
        self.nested: dict[type, list[str]] = {}
        self._definitions: dict[str, Any] = {}

    def inspect(self, schema: Any, path: str, config: Mapping[str, Any]) -> bool:
        """Inspect *schema*, the type at *path* in a class with this *config*; return whether it contains classes."""
        if self._ends_at_serializer(schema, path):
            return False
        if "serialization" in schema:  # by the class of the value, as SerializeAsAny asks for
            self.inspect({name: value for name, value in schema.items() if name != "serialization"}, path, config)
            return False
        kind = schema["type"]
        if kind == "definition-ref":
            definition = self._definitions.pop(schema["schema_ref"], None)
            return definition is None or self.inspect(definition, path, config)
        self.mutable |= kind in _MUTABLE and bool(path) and not schema.get("frozen")
        if kind in _CLASSES:
            fields = self.nested.setdefault(schema["cls"], [])
            config = schema.get("config", {})
            for name, inner in _list_class_fields(schema):
                if self.inspect(inner, _join(path, name), config):
                    fields.append(name)
            self._inspect_names(schema, path, config)
            return True
        if kind == "typed-dict":
            config = schema.get("config", {})
            self._inspect_names(schema, path, config)
        self._inspect_type(schema, path, config)
        found = [self.inspect(inner, _join(path, name), config) for name, inner in _list_children(schema)]
        return True in found

    def _ends_at_serializer(self, schema: Any, path: str) -> bool:
        """Return whether a serializer decides what is written, so that the types within do not matter."""
        serialization = schema.get("serialization")
        if serialization is None or serialization["type"] == "any":
            return False
        function = serialization.get("function")
        module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
        if module == "pydantic.types" and name.startswith("_serialize_secret"):
            self._report(
                path,
                "is a secret and would be published as '**********': add a @field_serializer that reveals it, or "
                "publish a reference to the secret",
            )
        elif function is not None and module.partition(".")[0] != "pydantic":
            self.own_serializers = True
        return True

    def _inspect_type(self, schema: Any, path: str, config: Mapping[str, Any]) -> None:
        match schema["type"]:
            case "definitions":
                self._definitions |= {one["ref"]: one for one in schema["definitions"]}
            case "json":
                self.json_text = True
            case "any":
                self.anything = True
            case "float":
                self.infinite |= schema.get("allow_inf_nan", config.get("allow_inf_nan", True))
            case "bytes":
                self._inspect_bytes(path, config)
            case kind if kind in _DICTS:
                self._inspect_keys(schema.get("keys_schema", {"type": "any"}), path)
            case "literal" if any(_is_plain_member(one) for one in schema["expected"]):
                error = "is a Literal of a member of an Enum, which is not read from JSON: use a StrEnum or an IntEnum"
                self._report(path, error)
            case "callable" | "is-subclass" as kind:
                self._report(path, f"has a type ({kind}) that JSON cannot represent: publish a name instead")
            case "function-plain":
                self.own_serializers = True
            case "union" if _contains_json(schema):
                self.own_serializers = True  # Pydantic writes None as null, which a Json field does not read
            case "default":
                self.mutable |= not _has_valid_default(schema)

    def _inspect_bytes(self, path: str, config: Mapping[str, Any]) -> None:
        written, read = config.get("ser_json_bytes", "utf8"), config.get("val_json_bytes", "utf8")
        if written != read:
            self._report(
                path, f'is published as {written} and read as {read}: set val_json_bytes="{written}" in model_config'
            )

    def _inspect_keys(self, keys: Any, path: str) -> None:
        keys = self._definitions.get(keys.get("schema_ref"), keys)
        kind = keys["type"]
        members = keys.get("expected") if kind == "literal" else keys.get("members") if kind == "enum" else None
        if "serialization" in keys:
            return
        if kind in _UNREADABLE_KEYS or (members is not None and not _are_keys_readable(keys, members)):
            self._report(
                path,
                f"has keys of the type {kind}, which are not read from the text that JSON has for a key: use text as "
                "keys, or a list of pairs",
            )

    def _inspect_names(self, schema: Any, path: str, config: Mapping[str, Any]) -> None:
        fields, computed = _find_fields(schema)
        published = [one.get("alias", one["property_name"]) for one in computed]
        if config.get("extra_fields_behavior") == "forbid":
            for name in published:
                error = f'is computed and published as {name!r}, but extra="forbid" refuses it when it is read'
                self._report(_join(path, name), f"{error}: remove one of the two")
        for name, field in fields:
            if field.get("serialization_exclude") or field.get("init_only"):
                error = "is excluded, so it is not published: use a PrivateAttr for a value that stays in the process"
                self._report(_join(path, name), error)
                continue
            if field.get("serialization_exclude_if") and _is_required(field):
                self._report(_join(path, name), "is required but has an exclude_if: give it a default")
            written = field.get("serialization_alias", name)
            published.append(written)
            read = list(_list_names_read(name, field, config))
            if written not in read:
                shown = " or ".join(map(repr, read)) or "a part of another field"
                error = f"is published as {written!r} but read as {shown}: give it one alias=… for both"
                self._report(_join(path, name), error)
        for name, count in Counter(published).items():
            if count > 1:
                self._report(_join(path, name), f"is the published name of {count} fields: give them different names")

    def _report(self, path: str, error: str) -> None:
        self.errors.append(f"field {path!r} {error}")


def _is_plain_member(value: object) -> bool:
    return isinstance(value, Enum) and not isinstance(value, (str, int))


def _are_keys_readable(keys: Any, members: Iterable[Any]) -> bool:
    schema = core_schema.dict_schema(keys)
    try:
        SchemaValidator(schema).validate_json(SchemaSerializer(schema).to_json(dict.fromkeys(members)))
    except ValidationError:
        return False
    return True


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _list_names_read(name: str, field: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names under which a field is read."""
    alias = field.get("validation_alias")
    if alias is None or config.get("validate_by_name"):
        yield name
    if alias is not None and config.get("validate_by_alias", True):
        paths = [[alias]] if isinstance(alias, str) else alias if isinstance(alias[0], list) else [alias]
        yield from (path[0] for path in paths if len(path) == 1)


def _is_required(field: Mapping[str, Any]) -> bool:
    return bool(field.get("required", True)) and field["schema"]["type"] != "default"


def _has_valid_default(schema: Mapping[str, Any]) -> bool:
    """Return whether the default value certainly has the type of its field."""
    inner, value = schema["schema"], schema.get("default")
    if schema.get("validate_default"):
        return True
    if value is None:
        return "default" in schema and inner["type"] in ("nullable", "any")
    inner = inner["schema"] if inner["type"] == "nullable" else inner
    return type(value) is _SCALARS.get(inner["type"])


def _find_fields(schema: Any) -> tuple[list[tuple[str, Any]], list[Any]]:
    """Return the fields of a class or a typed dictionary, by name, and its computed fields."""
    computed: list[Any] = []
    while True:
        computed += schema.get("computed_fields", ())
        fields = schema.get("fields")
        if isinstance(fields, dict):
            return list(fields.items()), computed
        if isinstance(fields, list) and schema["type"] == "dataclass-args":
            return [(one["name"], one) for one in fields], computed
        if "schema" not in schema:  # such as a root model's, or one with a validator of its own
            return [], computed
        schema = schema["schema"]


def _list_class_fields(schema: Any) -> Iterable[tuple[str, Any]]:
    if schema.get("root_model"):
        return [("root", schema["schema"])]
    return [(name, field["schema"]) for name, field in _find_fields(schema)[0]]


def _contains_json(schema: Any) -> bool:
    """Return whether a value, without classes and definitions within, has the type Json."""
    if schema["type"] == "json":
        return True
    return schema["type"] not in _CLASSES and any(_contains_json(inner) for _, inner in _list_children(schema))


def _list_children(schema: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the schemas in *schema* that data is written by, each with the name of its field or ""."""
    kind = schema["type"]
    if kind == "typed-dict":
        return [(name, field["schema"]) for name, field in schema["fields"].items()]
    if kind == "named-tuple":
        return [(field["name"], field["schema"]) for field in schema["fields"]]
    if kind in _DICTS:
        inner = [schema.get("values_schema", {"type": "any"})]
    elif kind == "tuple":
        inner = schema["items_schema"]
    elif kind in ("union", "tagged-union"):
        choices = schema["choices"]
        inner = list(choices.values()) if isinstance(choices, dict) else choices
        inner = [one[0] if isinstance(one, tuple) else one for one in inner]
    elif kind in _COLLECTIONS:
        inner = [schema.get("items_schema", {"type": "any"})]
    elif kind == "chain":
        inner = schema["steps"][-1:]
    else:
        names = {"json-or-python": "json_schema", "lax-or-strict": "strict_schema"}
        inner = [schema[name] for name in [names.get(kind, "schema")] if isinstance(schema.get(name), dict)]
    return [("", one) for one in inner]
