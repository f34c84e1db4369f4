"""Kinds of changes of an event, with the verdicts of another tool, and the classes before and after each change."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - Pydantic reads the annotations
from datetime import date, datetime
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, Field, create_model

from smartpipe import Event, Topic
from smartpipe.contracts.findings import Direction  # noqa: TC001 - Pydantic reads the annotations

orders = Topic("orders")
TYPE = "contracts.placed"


class Line(BaseModel):
    sku: str


class PricedLine(BaseModel):
    sku: str
    price: int


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Cash(BaseModel):
    kind: Literal["cash"]


class Voucher(BaseModel):
    kind: Literal["voucher"]
    code: str


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Forest(BaseModel):
    value: float
    children: list[Forest] = []


Two = Annotated[Card | Cash, Field(discriminator="kind")]
Three = Annotated[Card | Cash | Voucher, Field(discriminator="kind")]
Described = Annotated[str, Field(description="The customer's note.", examples=["ring twice"])]


class Change(NamedTuple):
    """A change of an event.

    Args:
        before: The fields of the older class: a type, or a type with a default.
        backward, forward: Whether Confluent's Schema Registry 8 allows it for JSON Schema, by its documentation. The
            schemas that it compares are those that Pydantic writes, which are open.
        lenient: A direction in which Pydantic reads values that the reader's schema does not describe, so that only
            other languages refuse them.
    """

    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    backward: bool
    forward: bool
    lenient: Direction | None = None


def text(**limits: Any) -> Any:
    return Annotated[str, Field(**limits)]


def number(**limits: Any) -> Any:
    return Annotated[int, Field(**limits)]


CODES: Any = Annotated[str, Field(pattern="^[a-c]$")]

CHANGES = [
    Change("an optional field is added", {}, {"b": (str, "x")}, backward=False, forward=True),
    Change("a required field is added", {}, {"b": str}, backward=False, forward=True),
    Change("an optional field is removed", {"b": (str, "x")}, {}, backward=True, forward=False),
    Change("a required field is removed", {"b": str}, {}, backward=True, forward=False),
    Change("a required field is renamed", {"b": str}, {"c": str}, backward=False, forward=False),
    Change("a required field gets a default", {"b": str}, {"b": (str, "x")}, backward=True, forward=False),
    Change("a field loses its default", {"b": (str, "x")}, {"b": str}, backward=False, forward=True),
    Change("a default changes", {"b": (str, "x")}, {"b": (str, "y")}, backward=True, forward=True),
    Change("a description is added", {"b": str}, {"b": Described}, backward=True, forward=True),
    Change("`int` becomes `float`", {"b": int}, {"b": float}, backward=True, forward=False),
    Change("`float` becomes `int`", {"b": float}, {"b": int}, backward=False, forward=True),
    Change("`int` becomes `str`", {"b": int}, {"b": str}, backward=False, forward=False),
    Change("`str` becomes `str | None`", {"b": str}, {"b": str | None}, backward=True, forward=False),
    Change("`str | None` becomes `str`", {"b": str | None}, {"b": str}, backward=False, forward=True),
    Change("`Any` becomes `int`", {"b": Any}, {"b": int}, backward=False, forward=True),
    Change(
        "a value is added to a `Literal`",
        {"b": Literal["x", "y"]},
        {"b": Literal["x", "y", "z"]},
        backward=True,
        forward=False,
    ),
    Change(
        "a value is removed from a `Literal`",
        {"b": Literal["x", "y", "z"]},
        {"b": Literal["x", "y"]},
        backward=False,
        forward=True,
    ),
    Change("`max_length` grows", {"b": text(max_length=5)}, {"b": text(max_length=9)}, backward=True, forward=False),
    Change("`max_length` shrinks", {"b": text(max_length=9)}, {"b": text(max_length=5)}, backward=False, forward=True),
    Change("`min_length` is added", {"b": str}, {"b": text(min_length=1)}, backward=False, forward=True),
    Change("`ge` grows", {"b": number(ge=0)}, {"b": number(ge=1)}, backward=False, forward=True),
    Change("`lt` is removed", {"b": number(lt=9)}, {"b": int}, backward=True, forward=False),
    Change("`multiple_of` is added", {"b": int}, {"b": number(multiple_of=5)}, backward=False, forward=True),
    Change("`str` becomes `datetime`", {"b": str}, {"b": datetime}, backward=True, forward=True),
    Change("`UUID` becomes `str`", {"b": UUID}, {"b": str}, backward=True, forward=True),
    Change("`datetime` becomes `date`", {"b": datetime}, {"b": date}, backward=True, forward=True, lenient="forward"),
    Change("a member is added to a union", {"b": Two}, {"b": Three}, backward=True, forward=False),
    Change("a member is removed from a union", {"b": Three}, {"b": Two}, backward=False, forward=True),
    Change(
        "a required field is added within a list",
        {"b": list[Line]},
        {"b": list[PricedLine]},
        backward=False,
        forward=True,
    ),
    Change("the values of a map change", {"b": dict[str, int]}, {"b": dict[str, str]}, backward=False, forward=False),
    Change(
        "the values of a map with a pattern for keys change",
        {"b": dict[CODES, int]},
        {"b": dict[CODES, str]},
        backward=False,
        forward=False,
    ),
    Change("a field within a recursive model widens", {"b": Tree}, {"b": Forest}, backward=True, forward=False),
    Change(
        "a `list` becomes a `set`", {"b": list[int]}, {"b": set[int]}, backward=False, forward=True, lenient="backward"
    ),
    Change("a tuple gets longer", {"b": tuple[int]}, {"b": tuple[int, int]}, backward=False, forward=False),
]


def make_event(fields: Mapping[str, Any], version: str = "1.0") -> type[Event]:
    """Return an event class with these fields and one that never changes. It replaces the one of the last call."""
    declared: dict[str, Any] = {
        name: one if isinstance(one, tuple) else (one, ...) for name, one in {"a": int, **fields}.items()
    }
    arguments: dict[str, Any] = {"topic": orders, "type": TYPE, "version": version}
    return create_model("Placed", __base__=Event, __module__=__name__, __cls_kwargs__=arguments, **declared)
