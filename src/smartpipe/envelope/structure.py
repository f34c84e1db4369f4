"""How many values a JSON text holds, counted before it is parsed; and a shorter copy of it. Pure.

Each object of a JSON text becomes a Python object of 200 bytes or more, so a limit on bytes alone bounds neither the
time nor the memory that a body takes.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT_CHARACTERS = 4_096
MAX_ITEMS_EXPLAINED = 100
MAX_MEMBERS_EXPLAINED = 300
MAX_CHARACTERS_EXPLAINED = 1_000
MAX_VALUES_EXPLAINED = 10_000
VALUES_FOR_EACH_OBJECT = 8
"""How many values a body may have for each object or array that it may have."""


def refuse_too_many_values(body: str, limit_objects: float) -> None:
    """Raise DecodeError if *body* has more than *limit_objects* objects and arrays, or eight times as many values.

    By default that is 65,536 objects and arrays, one for each 16 bytes of the largest message, and 524,288 values,
    as many as an uncompressed message can hold at all.

    Raises:
        DecodeError: Of the kind ``too-many-values``.
    """
    if exceeds(body, limit_objects):
        raise DecodeError("too-many-values", _too_many(limit_objects))


def exceeds(body: str, limit_objects: float) -> bool:
    """Return whether *body* has more objects and arrays than that, or eight times as many values."""
    limit_values = limit_objects * VALUES_FOR_EACH_OBJECT
    # A few microseconds for each 100 kB. It also counts what is inside of strings, so it can only be too much.
    if not _is_beyond(_count(body), limit_objects, limit_values):
        return False
    objects = commas = 0
    for part in _outside_strings(body):
        more_objects, more_commas = _count(part)
        objects, commas = objects + more_objects, commas + more_commas
        if _is_beyond((objects, commas), limit_objects, limit_values):
            return True
    return False


def shorten(body: str) -> str:
    """Return *body* with few items in each array, so that errors found in it are few and hold little.

    A short text is returned as it is, and so is one that is not JSON.
    """
    if len(body) <= SHORT_CHARACTERS:
        return body
    try:
        value = from_json(body)
    except ValueError:
        return body
    return to_json(_Shortener().shorten(value)).decode()


class _Shortener:
    """Copies a value without most of its items; arrays are empty where there have been enough values."""

    def __init__(self) -> None:
        self._values_left = MAX_VALUES_EXPLAINED

    def shorten(self, value: Any) -> Any:
        self._values_left -= 1
        if isinstance(value, str):
            return value[:MAX_CHARACTERS_EXPLAINED]
        if isinstance(value, dict):
            members = islice(value.items(), MAX_MEMBERS_EXPLAINED)
            return {name[:MAX_CHARACTERS_EXPLAINED]: self.shorten(one) for name, one in members}
        if isinstance(value, list):
            items = islice(value, MAX_ITEMS_EXPLAINED)
            return [self.shorten(one) for one in items if self._values_left > 0]
        return value


def _too_many(limit_objects: float) -> str:
    return (
        f"the body has more than {limit_objects:,} objects and arrays, or {limit_objects * VALUES_FOR_EACH_OBJECT:,} "
        "values; raise SMARTPIPE_PAYLOAD_LIMIT_OBJECTS if it may have more"
    )


def _count(text: str) -> tuple[int, int]:
    return text.count("{") + text.count("["), text.count(",")


def _is_beyond(counted: tuple[int, int], limit_objects: float, limit_values: float) -> bool:
    objects, commas = counted
    return objects > limit_objects or commas + 1 > limit_values


def _outside_strings(body: str) -> Iterator[str]:
    position = 0
    while (start := body.find('"', position)) >= 0:
        yield body[position:start]
        position = _end_of_string(body, start + 1)
    yield body[position:]


def _end_of_string(body: str, position: int) -> int:
    """Return the place after the quotation mark that ends the string which goes on at *position*."""
    while (end := body.find('"', position)) >= 0:
        before = body[position:end]
        backslashes = len(before) - len(before.rstrip("\\"))
        position = end + 1
        if backslashes % 2 == 0:
            return position
    return len(body)
