"""What the core schema of an event class says about its fields."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pytest
from pydantic import BaseModel, Field, Json, PlainSerializer
from pydantic_core import core_schema

from smartpipe import Event
from smartpipe.event_fields import find_undeclared_class, inspect_fields
from tests.unit.test_event_fields import Flat, GiftLine, Line, Node, Open, Order, PlainLine, Tree, declare, things

if TYPE_CHECKING:
    from collections.abc import Callable


class FrozenPart(BaseModel, frozen=True):
    value: int


class InfinitePart(BaseModel):
    value: float


class Length:
    """Reads a list, and then its length as a number."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        read = core_schema.no_info_after_validator_function(len, core_schema.list_schema())
        return core_schema.chain_schema([read, core_schema.int_schema()])


class Pair(NamedTuple):
    number: int
    part: FrozenPart


FINDINGS: dict[str, tuple[Callable[[], type[Event]], set[str]]] = {
    "a number": (lambda: declare(int), set()),
    "a number with another type's default": (lambda: declare(int, True), {"mutable"}),
    "a default that is converted": (lambda: declare(float, 1), {"mutable"}),
    "a default that is validated": (lambda: declare(float, Field(1, validate_default=True)), set()),
    "a default from a function": (lambda: declare(int, Field(default_factory=int)), {"mutable"}),
    "None": (lambda: declare(int | None, None), set()),
    "an optional number with a default": (lambda: declare(int | None, 1), set()),
    "an optional number with a text as the default": (lambda: declare(int | None, "x"), {"mutable"}),
    "None where a number is declared": (lambda: declare(int, None), {"mutable"}),
    "Any": (lambda: declare(Any, None), {"anything"}),
    "a tuple of any values": (lambda: declare(tuple), {"anything"}),
    "a list": (lambda: declare(list[int]), {"mutable"}),
    "a list of any values": (lambda: declare(list), {"mutable", "anything"}),
    "a set": (lambda: declare(set[int]), {"mutable"}),
    "a deque": (lambda: declare(deque[int]), {"mutable"}),
    "a dictionary": (lambda: declare(dict[str, int]), {"mutable"}),
    "a dictionary of any values": (lambda: declare(dict), {"mutable", "anything"}),
    "a tuple": (lambda: declare(tuple[int, ...]), set()),
    "a frozenset": (lambda: declare(frozenset[int]), set()),
    "a model": (lambda: declare(InfinitePart), {"mutable", "infinite"}),
    "a named tuple with a model": (lambda: declare(Pair), {"mutable"}),
    "a number that may be infinite": (lambda: declare(Annotated[float, Field(allow_inf_nan=True)]), {"infinite"}),
    "a number that is finite": (lambda: declare(float), set()),
    "Json": (lambda: declare(Json[int]), {"json_text"}),
    "an optional Json": (lambda: declare(Json[int] | None), {"json_text"}),
    "a union with Json": (lambda: declare(int | Json), {"json_text", "own_serializers"}),
    "a union with Json in a tuple": (lambda: declare(int | tuple[Json[int]]), {"json_text", "own_serializers"}),
    "a list that becomes a number": (lambda: declare(Annotated[int, Length]), set()),
    "a serializer of Pydantic": (lambda: declare(Path), set()),
    "a serializer of one's own": (
        lambda: declare(Annotated[int, PlainSerializer(lambda value: str(value))]),
        {"own_serializers"},
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_an_event_is_validated_when_it_is_published_only_if_its_fields_require_it(case: str) -> None:
    define, expected = FINDINGS[case]

    report = inspect_fields(define().__pydantic_core_schema__)

    assert report.errors == []
    found = {"mutable", "own_serializers", "infinite", "anything", "json_text"}
    assert {name for name in found if getattr(report, name)} == expected


def test_only_fields_with_declared_classes_in_them_are_searched_for_other_classes() -> None:
    Tree.model_rebuild()
    written = declare(Annotated[Line, PlainSerializer(lambda line: {"sku": line.sku})])
    nested: dict[type[Event], dict[type, tuple[str, ...]]] = {
        Flat: {},
        Order: {Order: ("lines", "by_name", "pair"), Line: ()},
        Tree: {Tree: ("root",), Node: ("children",)},
        Open: {Open: ("lines",), Line: ()},
        written: {},
    }

    assert {event: inspect_fields(event.__pydantic_core_schema__).nested for event in nested} == nested


@pytest.mark.parametrize("values", [[Line(), GiftLine()], (Line(), GiftLine()), {"a": Line(), "b": GiftLine()}])
def test_a_class_that_adds_fields_is_found_behind_others(values: Any) -> None:
    nested = inspect_fields(Order.__pydantic_core_schema__).nested

    assert find_undeclared_class(values, nested) == "a GiftLine, which adds wrapping to Line"
    assert find_undeclared_class([Line(), PlainLine()], nested) is None
    assert find_undeclared_class(5, nested) is None


def test_a_class_that_adds_fields_is_found_in_the_field_after_a_declared_one() -> None:
    class Lines(Event, topic=things, type="fields.lines", version="1.0"):
        first: Line
        second: Line

    nested = inspect_fields(Lines.__pydantic_core_schema__).nested

    assert find_undeclared_class(Lines(first=Line(), second=Line()), nested) is None
    assert find_undeclared_class(Lines(first=Line(), second=GiftLine()), nested) is not None
