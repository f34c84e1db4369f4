"""The two views of an event: published data fits the writer's view, and a compatible change breaks no message."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import (
    AliasChoices,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    RootModel,
    ValidationError,
    WithJsonSchema,
    computed_field,
    field_serializer,
)
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from smartpipe import Event
from smartpipe.contracts.check import Options, check
from smartpipe.contracts.compare import Document
from smartpipe.contracts.examples import FORMATS
from smartpipe.contracts.files import describe
from smartpipe.contracts.schemas import event_schema
from smartpipe.contracts.strategies import values_of
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.serialize import UnreadableData, get_serializer
from tests.support.contract_changes import TYPE, Card, Cash, Forest, Line, PricedLine, Tree, make_event, orders


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Size:
    width: int
    height: int = 1


class Options2(TypedDict, total=False):
    gift: bool


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = ""


class Total(BaseModel):
    net: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> int:
        return self.net * 2


class Names(RootModel[list[str]]):
    pass


class Masked(BaseModel):
    number: str = "1234"

    @field_serializer("number")
    def mask(self, value: str):  # type: ignore[no-untyped-def] # noqa: ANN201 - the return type is not declared
        return value[-4:]


class Keywords(BaseModel):
    discriminator: str
    oneOf: str  # noqa: N815 - a keyword of JSON Schema
    ref: str = Field(alias="$ref")
    properties: dict[str, str] = {"$ref": "#/nowhere"}


KINDS: dict[str, Any] = {
    "str": str,
    "limited text": Annotated[str, Field(min_length=1, max_length=5)],
    "pattern": Annotated[str, Field(pattern="^[a-c]{1,3}$")],
    "int": int,
    "limited int": Annotated[int, Field(ge=1, lt=10)],
    "multiple": Annotated[int, Field(multiple_of=5)],
    "float": float,
    "limited float": Annotated[float, Field(gt=0, le=1)],
    "bool": bool,
    "none": None,
    "optional": int | None,
    "any": Any,
    "datetime": datetime,
    "aware datetime": AwareDatetime,
    "date": date,
    "time": time,
    "timedelta": timedelta,
    "uuid": UUID,
    "decimal": Decimal,
    "ip address": IPv4Address,
    "url": AnyUrl,
    "enum": Colour,
    "int enum": Level,
    "literal": Literal["a", 1],
    "literal or none": Literal["a"] | None,
    "list": list[int],
    "limited list": Annotated[list[str], Field(min_length=1, max_length=2)],
    "set": set[int],
    "tuple": tuple[int, str],
    "variable tuple": tuple[int, ...],
    "named tuple": Point,
    "map": dict[str, int],
    "map of whole numbers": dict[int, int],
    "map of int enum": dict[Level, int],
    "map of switches": dict[bool, int],
    "sequence": Sequence[int],
    "sequence of text": Sequence[str],
    "path": Path,
    "map with a factory": defaultdict[str, int],
    "text of JSON": Json[list[int]],
    "text of any JSON": Json,
    "numerals": Literal["1", "2"],
    "field names of JSON Schema": Keywords,
    "map of enum": dict[Colour, int],
    "map of pattern": dict[Annotated[str, Field(pattern="^[a-c]{1,3}$")], int],
    "map of pattern to text": dict[Annotated[str, Field(pattern="^[a-c]{1,3}$")], str],
    "model": Line,
    "list of models": list[PricedLine],
    "dataclass": Size,
    "typed dict": Options2,
    "union": int | str,
    "discriminated union": Annotated[Card | Cash, Field(discriminator="kind")],
    "recursive model": Tree,
    "recursive floats": Forest,
    "open model": Open,
    "computed field": Total,
    "root model": Names,
    "alias": Annotated[str, Field(alias="theName")],
    "two names": Annotated[str, Field(validation_alias=AliasChoices("b", "old_b"))],
    "default": (int, 5),
    "default factory": (list[int], Field(default_factory=list)),
    "declared schema": Annotated[str, WithJsonSchema({"type": "string", "maxLength": 40})],
    "declared serializer": Annotated[int, PlainSerializer(lambda value: value, return_type=int)],
    "undeclared serializer": Masked,
}
QUICK = settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def validator_of(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FORMATS)


@pytest.mark.parametrize("kind", KINDS)
def test_published_data_of_every_kind_fits_the_view_of_the_writer(kind: str) -> None:
    event = make_event({"b": KINDS[kind]})
    writer = validator_of(event_schema(event, "writer"))

    @QUICK
    @given(values_of(Document.of_data(event_schema(event, "reader"))))
    def check_all(data: Any) -> None:
        try:
            made = event.model_validate_json(json.dumps(data))
        except ValidationError:  # the schema is wider than the class, as for some patterns
            assume(False)
        writer.validate(json.loads(encode(wrap(made, source="shop"))))

    check_all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_accepts_all_values_of_the_view_of_the_reader(kind: str) -> None:
    event = make_event({"b": KINDS[kind]})

    @QUICK
    @given(values_of(Document.of_data(event_schema(event, "reader"))))
    def check_all(data: Any) -> None:
        event.model_validate_json(json.dumps(data))

    check_all()


@pytest.mark.timeout(180)  # it makes fifty classes and their schemas
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(before=st.sampled_from(sorted(KINDS)), after=st.sampled_from(sorted(KINDS)), data=st.data())
def test_no_message_breaks_a_change_that_is_compatible(before: str, after: str, data: st.DataObject) -> None:
    old_class = make_event({"b": KINDS[before]})
    old = describe(old_class)
    new_class = make_event({"b": KINDS[after]}, "1.1")
    new = describe(new_class)
    findings = check([new], {TYPE: [old]}, Options(), {})
    undecided = {direction for one in findings for direction in one.directions}

    for direction, writer, schema, reader in (
        ("forward", new_class, new.writer, old_class),
        ("backward", old_class, old.writer, new_class),
    ):
        if direction not in undecided:
            for _ in range(5):
                value = data.draw(values_of(Document.of_data(schema)))
                try:
                    sent = get_serializer(writer).serialize(writer.model_validate_json(json.dumps(value)))
                except (ValidationError, UnreadableData):  # so it is never published
                    continue
                reader.model_validate_json(sent)


def test_a_field_with_a_default_is_always_written_also_within_another_model() -> None:
    class Inner(BaseModel):
        colour: str = "red"

    class Painted(Event, topic=orders, type="views.painted", version="1.0"):
        inner: Inner = Inner()

    writer, reader = event_schema(Painted, "writer")["$defs"], event_schema(Painted, "reader")["$defs"]

    assert writer["Inner"]["required"] == ["colour"]
    assert writer["Painted"]["required"] == ["inner"]
    assert "required" not in reader["Inner"]
    assert "required" not in reader["Painted"]


def test_the_objects_that_a_producer_writes_are_closed_and_its_envelope_is_not() -> None:
    schema = event_schema(make_event({"b": Line}), "writer")

    assert all(one["additionalProperties"] is False for one in schema["$defs"].values())
    assert "additionalProperties" not in schema


def test_a_serializer_without_a_return_type_may_write_any_value() -> None:
    schema = event_schema(make_event({"b": Masked}), "writer")

    assert "type" not in schema["$defs"]["Masked"]["properties"]["number"]


def test_data_of_a_declared_serializer_is_described_by_its_return_type() -> None:
    as_text = Annotated[int, PlainSerializer(str, return_type=str)]

    writer = event_schema(make_event({"b": as_text}), "writer")
    reader = event_schema(make_event({"b": as_text}), "reader")

    assert writer["$defs"]["Placed"]["properties"]["b"]["type"] == "string"
    assert reader["$defs"]["Placed"]["properties"]["b"]["type"] == "integer"
