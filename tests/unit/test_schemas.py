from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import core_schema

from smartpipe import ConfigError, Event
from smartpipe.cli.schema.export import run_export
from smartpipe.cli.targets import load_events
from smartpipe.contracts.files import CONTRACT, ENVELOPE_FILE, FIXTURES, READER, WRITER, export
from smartpipe.contracts.schemas import View, event_schema
from smartpipe.envelope import encode, wrap
from tests.support.events import ADA, OrderPlaced, UserSignedUp, users

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def test_the_schema_describes_the_envelope_and_the_data_of_draft_2020_12() -> None:
    schema = event_schema(UserSignedUp, "reader")

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
    assert "dataversion" in event_schema(OrderPlaced, "reader")["required"]


def test_what_is_published_conforms_to_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    body: dict[str, Any] = json.loads(encode(wrap(ADA, source="s")))

    jsonschema.Draft202012Validator(event_schema(UserSignedUp, "reader")).validate(body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(event_schema(UserSignedUp, "reader")).validate(body | {"type": "other"})


def test_the_schema_speaks_of_aliases_as_the_wire_does() -> None:
    class Aliased(Event, topic=users, type="aliased", version="1.0"):
        user_id: int = Field(alias="userId")

    assert list(event_schema(Aliased, "reader")["$defs"]["Aliased"]["properties"]) == ["userId"]
    assert json.loads(encode(wrap(Aliased(userId=5), source="s")))["data"] == {"userId": 5}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = export([UserSignedUp, OrderPlaced], tmp_path).files
    files = {path: path.read_bytes() for path in first}

    second = export([OrderPlaced, UserSignedUp], tmp_path).files

    assert [path.relative_to(tmp_path).as_posix() for path in first] == [
        ENVELOPE_FILE,
        "member.signed_up/1.1.contract.json",
        "member.signed_up/1.1.reader.json",
        "member.signed_up/1.1.writer.json",
        "order.placed/2.3.contract.json",
        "order.placed/2.3.reader.json",
        "order.placed/2.3.writer.json",
    ]
    assert all(first.values())
    assert not any(second.values())
    assert {path: path.read_bytes() for path in second} == files


def test_the_committed_schemas_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `cd examples && smartpipe schema export signup.events --directory ../schemas` when this fails."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    expected = {
        path.relative_to(tmp_path).as_posix(): path.read_text()
        for path in export(load_events(["signup.events"]), tmp_path).files
    }

    files = [path for path in (ROOT / "schemas").rglob("*.json") if not path.name.endswith(FIXTURES)]
    committed = {path.relative_to(ROOT / "schemas").as_posix(): path.read_text() for path in files}

    assert committed == expected


class Opaque:
    """A type that JSON Schema cannot describe."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


class Box(BaseModel):
    size: int
    content: Opaque


class Packed(Event, topic=users, type="schemas.packed", version="1.0"):
    box: Box


class Sealed(Event, topic=users, type="schemas.sealed", version="1.0"):
    number: int
    content: list[Opaque]


def test_an_event_that_json_schema_cannot_describe_is_named_with_its_field_and_the_others_are_written(
    tmp_path: Path,
) -> None:
    files, errors = export([Packed, UserSignedUp, Sealed], tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        ENVELOPE_FILE,
        *(f"member.signed_up/1.1{suffix}" for suffix in (CONTRACT, READER, WRITER)),
    ]
    assert len(errors) == 2
    assert "Packed: JSON Schema cannot describe field 'box.content'" in errors[0]
    assert "Sealed: JSON Schema cannot describe field 'content'" in errors[1]
    assert all("WithJsonSchema" in error for error in errors)


def test_the_command_writes_the_other_schemas_and_fails_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"field 'box\.content'"):
        run_export([f"{__name__}:Packed", "tests.support.events:UserSignedUp"], tmp_path, as_json=False)

    assert "member.signed_up/1.1.reader.json" in capsys.readouterr().out


def test_the_command_lists_the_files_and_which_of_them_have_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, names = (
        "tests.support.events:UserSignedUp",
        (ENVELOPE_FILE, *(f"member.signed_up/1.1{suffix}" for suffix in (CONTRACT, READER, WRITER))),
    )

    for status in ("written", "unchanged"):
        run_export([target], tmp_path, as_json=False)
        assert capsys.readouterr().out == "".join(f"  {status}  {tmp_path.as_posix()}/{name}\n" for name in names)
    (tmp_path / names[1]).write_text("")
    run_export([target], tmp_path, as_json=True)

    assert json.loads(capsys.readouterr().out) == [
        {"path": f"{tmp_path.as_posix()}/{name}", "changed": changed}
        for name, changed in zip(names, (False, True, False, False), strict=True)
    ]


def test_files_that_cannot_be_written_or_are_not_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / ENVELOPE_FILE).write_bytes(b"\xff")

    with pytest.raises(ConfigError, match=f"{ENVELOPE_FILE} cannot be written: it exists, and is not text; move it"):
        run_export(["tests.support.events:UserSignedUp"], tmp_path, as_json=False)
    assert (tmp_path / ENVELOPE_FILE).read_bytes() == b"\xff"
    with pytest.raises(ConfigError, match=r"file.* cannot be written: (File exists|Not a directory)"):
        run_export(["tests.support.events:UserSignedUp"], tmp_path / "file", as_json=False)


class Card(BaseModel):
    kind: Literal["card"] = "card"


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"


class Settled(Event, topic=users, type="schemas.settled", version="1.0"):
    by: Card | Cash = Field(discriminator="kind")


def test_a_discriminated_union_is_plain_json_schema_that_strict_validators_accept() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = event_schema(Settled, "reader")
    body: dict[str, Any] = json.loads(encode(wrap(Settled(by=Card(kind="card")), source="s")))
    keywords = set(jsonschema.Draft202012Validator.VALIDATORS) | ANNOTATIONS

    assert set(list_keywords(schema)) <= keywords
    jsonschema.Draft202012Validator(schema).validate(body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(body | {"data": {"by": {"kind": "cheque"}}})


def test_the_members_of_a_discriminated_union_require_the_field_that_the_class_needs_to_tell_them_apart() -> None:
    with pytest.raises(ValidationError, match="discriminator"):
        Settled.model_validate({"by": {}})

    for view in get_args(View):
        definitions = event_schema(Settled, view)["$defs"]
        assert definitions["Card"]["required"] == definitions["Cash"]["required"] == ["kind"]


ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "examples", "deprecated", "format"}
NAMED = {"properties", "$defs", "patternProperties", "dependentSchemas"}


def list_keywords(schema: Any) -> Iterator[str]:
    """Yield the keywords of *schema* and of the schemas in it, but not the names of properties and definitions."""
    if isinstance(schema, list):
        for one in schema:
            yield from list_keywords(one)
    elif isinstance(schema, dict):
        for keyword, value in schema.items():
            yield keyword
            for one in value.values() if keyword in NAMED else [value]:
                yield from list_keywords(one)
