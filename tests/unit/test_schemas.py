from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from smartpipe import Event
from smartpipe.cli.targets import load_events
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.schemas import ENVELOPE_FILE, event_schema, export
from tests.support.events import ADA, OrderPlaced, UserSignedUp, users

ROOT = Path(__file__).parents[2]


def test_the_schema_describes_the_envelope_and_the_data_of_draft_2020_12() -> None:
    schema = event_schema(UserSignedUp)

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["type"]["const"] == "member.signed_up"
    assert schema["properties"]["data"] == {"$ref": "#/$defs/UserSignedUp"}
    assert schema["$defs"]["UserSignedUp"]["properties"]["user_id"] == {
        "format": "uuid",
        "title": "User Id",
        "type": "string",
    }
    assert set(schema["required"]) == {"specversion", "id", "source", "type", "data"}


def test_a_major_version_other_than_one_has_to_be_named() -> None:
    assert "dataversion" in event_schema(OrderPlaced)["required"]


def test_what_is_published_conforms_to_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    body: dict[str, Any] = json.loads(encode(wrap(ADA, source="s")))

    jsonschema.Draft202012Validator(event_schema(UserSignedUp)).validate(body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(event_schema(UserSignedUp)).validate(body | {"type": "other"})


def test_the_schema_speaks_of_aliases_as_the_wire_does() -> None:
    class Aliased(Event, topic=users, type="aliased", version="1.0"):
        user_id: int = Field(alias="userId")

    assert list(event_schema(Aliased)["$defs"]["Aliased"]["properties"]) == ["userId"]
    assert json.loads(encode(wrap(Aliased(userId=5), source="s")))["data"] == {"userId": 5}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = export([UserSignedUp, OrderPlaced], tmp_path)
    files = {path: path.read_bytes() for path in first}

    second = export([OrderPlaced, UserSignedUp], tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in first] == [
        ENVELOPE_FILE,
        "member.signed_up/1.1.json",
        "order.placed/2.3.json",
    ]
    assert all(first.values())
    assert not any(second.values())
    assert {path: path.read_bytes() for path in second} == files


def test_the_committed_schemas_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `cd examples && smartpipe schema export signup.events --directory ../schemas` when this fails."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    expected = {
        path.relative_to(tmp_path).as_posix(): path.read_text()
        for path in export(load_events(["signup.events"]), tmp_path)
    }

    committed = {p.relative_to(ROOT / "schemas").as_posix(): p.read_text() for p in (ROOT / "schemas").rglob("*.json")}

    assert committed == expected
