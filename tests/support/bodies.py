"""Bodies that fit into one SQS message, and that are expensive to decode for their size."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from smartpipe import Event, Topic

if TYPE_CHECKING:
    from collections.abc import Callable

FULL_MESSAGE_BYTES = 1_048_576
measures = Topic("measures", limit_bytes=FULL_MESSAGE_BYTES)


class Point(BaseModel):
    x: int = 0


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    x: int = 0


class AlsoClosed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    y: int = 0


class Demanding(Event, topic=measures, type="demanding", version="1.0"):
    """An event with many required fields."""

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int
    i: int
    j: int
    k: int
    l: int  # noqa: E741 - one of many fields
    m: int
    n: int
    o: int


class Measured(Event, topic=measures, type="survey", version="1.0"):
    """An event with a collection of every kind."""

    numbers: list[int] = Field([])
    pairs: list[tuple[int, int]] = Field([])
    distinct: set[int] = Field(set())
    lists: list[list[int]] = Field([])
    by_name: dict[str, int] = Field({})
    points: list[Point] = Field([])
    choices: list[Point | list[int] | str] = Field([])
    closed: Closed | None = None
    either: Closed | AlsoClosed | None = None
    anything: Any = None


def body_of(data: str, type_: str = "survey") -> str:
    """Return an envelope with *data*, which is JSON."""
    context = {"specversion": "1.0", "id": "1", "source": "elsewhere", "type": type_}
    return f'{json.dumps(context)[:-1]},"data":{data}}}'


@cache
def full(
    field: str,
    item: str | Callable[[int], str],
    brackets: str = "[]",
    *,
    wanted: int = FULL_MESSAGE_BYTES,
    type_: str = "survey",
) -> str:
    """Return a body of nearly *wanted* bytes. Its *field* contains as many items as fit."""
    frame = body_of(f'{{"{field}":{brackets}}}', type_)
    available = wanted - len(frame)
    items: list[str] = []
    while available > 0:
        text = item if isinstance(item, str) else item(len(items))
        items.append(text)
        available -= len(text) + 1
    return body_of(f'{{"{field}":{brackets[0]}{",".join(items[:-1])}{brackets[1]}}}', type_)


def zero_by_name(number: int) -> str:
    """Return a member of a JSON object."""
    return f'"{number:x}":0'


WRONG: dict[str, Callable[[], str]] = {
    "a list of wrong items": lambda: full("numbers", '""'),
    "a list of lists": lambda: full("numbers", "[]"),
    "tuples of the wrong length": lambda: full("pairs", "[1]"),
    "a set of wrong items": lambda: full("distinct", '"a"'),
    "lists of wrong items": lambda: full("lists", '["",""]'),
    "a dict of wrong values": lambda: full("by_name", lambda n: f'"{n:x}":""', "{}"),
    "models with wrong fields": lambda: full("points", '{"x":""}'),
    "a union that nothing fits": lambda: full("choices", "null"),
    "unknown fields where they are forbidden": lambda: full("closed", zero_by_name, "{}"),
    "unknown fields that each choice forbids": lambda: full("either", zero_by_name, "{}"),
    "fifteen missing fields": lambda: full("junk", '""', type_="demanding"),
    "garbage in an unknown field": lambda: full("unheard_of", "[]"),
    "garbage where anything goes": lambda: full("anything", '{"":0}'),
    "deep nesting": lambda: body_of('{"anything":' + "[" * 500_000),
    "a number of a million digits": lambda: body_of('{"numbers":[' + "9" * 1_000_000 + "]}"),
    "no JSON": lambda: "[" + "{}," * 349_000,
    "no event": lambda: "[" + "0," * 500_000 + "0]",
}

VALID: dict[str, Callable[[], str]] = {
    "numbers": lambda: full("numbers", "1"),
    "names and numbers": lambda: full("by_name", lambda n: f'"{n:x}":1', "{}"),
    "60,000 models": lambda: full("points", lambda n: f'{{"x":{n % 10}}}', wanted=500_000),
    "60,000 choices": lambda: full("choices", lambda n: f'{{"x":{n % 10}}}', wanted=500_000),
    "text": lambda: body_of('{"anything":"' + "a,[{" * 250_000 + '"}'),
}
