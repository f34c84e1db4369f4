"""The JSON Schemas of events, for services in any language: what producers write, and what consumers read."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonRef, models_json_schema
from typing_extensions import TypedDict  # Pydantic refuses the standard one before Python 3.12

from smartpipe.envelope.fields import Context, context_fields
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_core import core_schema

    from smartpipe.events import Event

View: TypeAlias = Literal["reader", "writer"]
"""``writer``: every body that a producer with this class publishes. Its objects have no other fields than those named,
and fields with defaults are required, because they are always sent. ``reader``: every body that a consumer with this
class accepts. Fields with defaults are optional, and unknown fields are ignored."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DECIMAL = r"^-?[0-9]+(\.[0-9]*)?([Ee][+-]?[0-9]{1,9})?$"
"""The texts that ``str(Decimal)`` writes, without infinity and NaN, which events refuse."""
_KEYS = {"int": r"^-?[0-9]+$", "bool": r"^(true|false)$"}
"""The texts of keys, by the type of the key in Pydantic's schema of a map."""
_ALWAYS_WRITTEN = ["specversion", "id", "source", "type", "dataversion", "data"]


class _ReaderSchema(GenerateJsonSchema):
    """Writes keywords of JSON Schema only, because strict validators refuse others."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        """Say which texts are decimal numbers. Pydantic's schema allows any text."""
        json_schema = super().decimal_schema(schema)
        for one in json_schema.get("anyOf", [json_schema]):
            if one.get("type") == "string":
                one.setdefault("pattern", DECIMAL)
        return json_schema

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        """Say which keys a map has. In JSON, each key is a text, and Pydantic describes only keys that are texts."""
        json_schema = super().dict_schema(schema)
        pattern = _KEYS.get(schema.get("keys_schema", {}).get("type", ""))
        if pattern is not None:
            json_schema["propertyNames"] = {"pattern": pattern}
        values = self._find_key_values(json_schema.get("propertyNames", {}))
        if not all(isinstance(value, str) for value in values):
            json_schema["propertyNames"] = {
                "enum": [value if isinstance(value, str) else json.dumps(value) for value in values]
            }
        return json_schema

    def _find_key_values(self, names: dict[str, Any]) -> list[Any]:
        """Return the values of keys that are an enumeration."""
        if "$ref" in names:
            names = self.get_schema_from_definitions(JsonRef(names["$ref"])) or {}
        return names.get("enum", [names["const"]] if "const" in names else [])  # type: ignore[no-any-return]


class _WriterSchema(_ReaderSchema):
    """Describes serialized data: closed objects with all of their fields."""

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,  # noqa: FBT001 - Pydantic's signature
    ) -> bool:
        """Require each field that is always written. Pydantic does so only if the model's own config asks for it."""
        if field.get("serialization_exclude_if") is not None:
            return False
        return field["schema"]["type"] == "default" or super().field_is_required(field, total)

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        """Close the object, unless the class allows extra fields."""
        return _close(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> dict[str, Any]:
        """Close the object."""
        return _close(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> dict[str, Any]:
        """Close the object."""
        return _close(super().typed_dict_schema(schema))

    def json_schema(self, schema: core_schema.JsonSchema) -> dict[str, Any]:
        """Describe a Json field as the text that events have, where Pydantic would write its value."""
        content = self.generate_inner(schema["schema"]) if "schema" in schema else {}
        return {"type": "string", "contentMediaType": "application/json", "contentSchema": content}

    def ser_schema(self, schema: Any) -> dict[str, Any] | None:
        """Describe a value that a function writes by its return type; any value, if the function does not declare it.

        Pydantic would describe the value that the class reads. That is right for Pydantic's own functions, as for
        ``Sequence`` and ``Path``.
        """
        is_function = schema["type"] in {"function-plain", "function-wrap"} and "return_schema" not in schema
        if is_function and not _is_of_pydantic(schema["function"]):
            return {}
        return super().ser_schema(schema)


def event_schema(event: type[Event], view: View) -> dict[str, Any]:
    """Return the schema of the complete envelope of *event*. ``$defs`` has the schema of the data, by class name.

    Raises:
        ConfigError: JSON Schema cannot describe a field of the event.
    """
    contract = contract_of(event)
    try:
        generator, mode = _GENERATORS[view]
        references, data = models_json_schema([(event, mode)], schema_generator=generator)
    except Exception as error:
        field = _find_indescribable(event, view)
        where = f"field {field!r}" if field else "the event"
        reason = str(error).partition("\n")[0]
        msg = (
            f"event {event.__module__}.{event.__qualname__}: JSON Schema cannot describe {where}: {reason}; annotate "
            "the type with pydantic.WithJsonSchema"
        )
        raise ConfigError(msg) from error
    _require_discriminators(data, data)
    schema = deepcopy(_describe_context(contract.major))
    schema["properties"] |= {"type": {"const": contract.type, "title": "Type", "type": "string"}}
    schema["properties"]["data"] = references[event, mode]
    schema["$defs"] = data["$defs"]
    required = {*schema["required"], "data"} if view == "reader" else set(_ALWAYS_WRITTEN)
    schema["required"] = [name for name in schema["properties"] if name in required]
    title = f"{contract.type} {contract.version}"
    return {"$schema": DIALECT, **schema, "title": title, "description": (event.__doc__ or title).strip()}


def envelope_schema() -> dict[str, Any]:
    """Return the schema of the context attributes, which is the same for all envelopes."""
    schema = _describe(Context, "reader")
    description = "The context attributes of a smartpipe envelope: CloudEvents 1.0 in structured JSON, with extensions."
    return {"$schema": DIALECT, **schema, "title": "smartpipe envelope", "description": description}


def render_json(value: Any) -> str:
    """Return the text of a file. The same value always gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _is_of_pydantic(function: Callable[..., Any]) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "pydantic"


def _require_discriminators(value: Any, root: dict[str, Any]) -> None:
    """Replace ``discriminator``, a keyword of OpenAPI, by the rule that the members of the union require the field.

    The class refuses data without it, although the field may have a default in each member.
    """
    if isinstance(value, list):
        for one in value:
            _require_discriminators(one, root)
    if not isinstance(value, dict):
        return
    if isinstance(value.get("discriminator"), dict) and isinstance(value.get("oneOf"), list):
        name = value.pop("discriminator")["propertyName"]
        for one in value["oneOf"]:
            member = root["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
            if name in member.get("properties", {}) and name not in member.get("required", ()):
                member["required"] = [*member.get("required", ()), name]
    for one in value.values():
        _require_discriminators(one, root)


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" in schema or schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


@lru_cache
def _describe_context(major: int) -> dict[str, Any]:
    make: Any = TypedDict
    return _describe(make("Envelope", context_fields(major)), "reader")


def _describe(type_: Any, view: View) -> dict[str, Any]:
    generator, mode = _GENERATORS[view]
    return TypeAdapter(type_).json_schema(schema_generator=generator, mode=mode)


def _find_indescribable(model: type[BaseModel], view: View) -> str | None:
    """Return the path of the first field of *model* that JSON Schema cannot describe."""
    for name, field in model.model_fields.items():
        try:
            _describe(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation, view)
        except Exception:  # noqa: BLE001 - Pydantic raises several types, and so do hooks of users
            inner = field.annotation
            path = (
                _find_indescribable(inner, view) if isinstance(inner, type) and issubclass(inner, BaseModel) else None
            )
            return f"{name}.{path}" if path else name
    return None


_GENERATORS: dict[View, tuple[type[GenerateJsonSchema], Literal["validation", "serialization"]]] = {
    "reader": (_ReaderSchema, "validation"),
    "writer": (_WriterSchema, "serialization"),
}
