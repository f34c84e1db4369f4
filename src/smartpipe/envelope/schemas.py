"""JSON Schema files of events, for services in any language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from smartpipe.envelope.fields import Context, envelope_fields
from smartpipe.errors import ConfigError
from smartpipe.events import contract_of
from smartpipe.keys import escape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pydantic_core import core_schema

    from smartpipe.events import Event

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE_FILE = "envelope.json"


class _PlainJsonSchema(GenerateJsonSchema):
    """Writes keywords of JSON Schema only, because strict validators refuse others."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        """Leave out ``discriminator``, a keyword of OpenAPI. The constants in the alternatives say the same."""
        json_schema = super().tagged_union_schema(schema)
        json_schema.pop("discriminator", None)
        return json_schema


def event_schema(event: type[Event]) -> dict[str, Any]:
    """Return the schema of the complete envelope of *event*. ``$defs`` has the schema of the data, by class name.

    Raises:
        ConfigError: JSON Schema cannot describe a field of the event.
    """
    contract = contract_of(event)
    try:
        schema = _describe(envelope_fields(event))
    except Exception as error:
        field = _find_indescribable(event)
        where = f"field {field!r}" if field else "the event"
        reason = str(error).partition("\n")[0]
        msg = (
            f"event {event.__module__}.{event.__qualname__}: JSON Schema cannot describe {where}: {reason}; annotate "
            "the type with pydantic.WithJsonSchema"
        )
        raise ConfigError(msg) from error
    title = f"{contract.type} {contract.version}"
    return {"$schema": DIALECT, **schema, "title": title, "description": (event.__doc__ or title).strip()}


def envelope_schema() -> dict[str, Any]:
    """Return the schema of the context attributes, which is the same for all envelopes."""
    schema = _describe(Context)
    description = "The context attributes of a smartpipe envelope: CloudEvents 1.0 in structured JSON, with extensions."
    return {"$schema": DIALECT, **schema, "title": "smartpipe envelope", "description": description}


class Exported(NamedTuple):
    """For each written file, whether it has changed; and a sentence for each event without a schema."""

    files: dict[Path, bool]
    errors: list[str]


def export(events: Iterable[type[Event]], directory: Path) -> Exported:
    """Write ``<type>/<version>.json`` for each event, and ``envelope.json``, below *directory*.

    In the name of the folder, ``/`` and ``:`` of the type are ``!2F`` and ``!3A``, as in keys. The same events always
    produce the same bytes. An event that JSON Schema cannot describe does not stop the others.
    """
    files = {directory / ENVELOPE_FILE: envelope_schema()}
    errors: list[str] = []
    for event in events:
        contract = contract_of(event)
        try:
            files[directory / escape(contract.type) / f"{contract.version}.json"] = event_schema(event)
        except ConfigError as error:
            errors += error.problems
    return Exported({path: _write(path, render_schema(schema)) for path, schema in sorted(files.items())}, errors)


def render_schema(schema: dict[str, Any]) -> str:
    """Return the text of a schema file."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _describe(type_: Any) -> dict[str, Any]:
    return TypeAdapter(type_).json_schema(schema_generator=_PlainJsonSchema)


def _find_indescribable(model: type[BaseModel]) -> str | None:
    """Return the path of the first field of *model* that JSON Schema cannot describe."""
    for name, field in model.model_fields.items():
        try:
            _describe(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        except Exception:  # noqa: BLE001 - Pydantic raises several types, and so do hooks of users
            inner = field.annotation
            path = _find_indescribable(inner) if isinstance(inner, type) and issubclass(inner, BaseModel) else None
            return f"{name}.{path}" if path else name
    return None


def _write(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return True
