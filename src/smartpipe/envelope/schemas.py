"""JSON Schema files of events, for services in any language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from smartpipe.envelope.fields import Context, envelope_fields
from smartpipe.events import contract_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from smartpipe.events import Event

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE_FILE = "envelope.json"


def event_schema(event: type[Event]) -> dict[str, Any]:
    """Return the schema of the complete envelope of *event*. ``$defs`` has the schema of the data, by class name."""
    contract = contract_of(event)
    schema = TypeAdapter(envelope_fields(event)).json_schema()
    title = f"{contract.type} {contract.version}"
    return {"$schema": DIALECT, **schema, "title": title, "description": (event.__doc__ or title).strip()}


def envelope_schema() -> dict[str, Any]:
    """Return the schema of the context attributes, which is the same for all envelopes."""
    schema = TypeAdapter(Context).json_schema()
    description = "The context attributes of a smartpipe envelope: CloudEvents 1.0 in structured JSON, with extensions."
    return {"$schema": DIALECT, **schema, "title": "smartpipe envelope", "description": description}


def export(events: Iterable[type[Event]], directory: Path) -> dict[Path, bool]:
    """Write ``<type>/<version>.json`` for each event, and ``envelope.json``, below *directory*.

    The same events always produce the same bytes.

    Returns:
        For each file, whether it has changed.
    """
    files = {directory / ENVELOPE_FILE: envelope_schema()}
    for event in events:
        contract = contract_of(event)
        files[directory / contract.type / f"{contract.version}.json"] = event_schema(event)
    return {path: _write(path, render_schema(schema)) for path, schema in sorted(files.items())}


def render_schema(schema: dict[str, Any]) -> str:
    """Return the text of a schema file."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return True
