"""How many values a JSON text holds, counted before it is parsed. Pure.

Each object of a JSON text becomes a Python object of 200 bytes or more, so a limit on bytes alone bounds neither the
time nor the memory that a body takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES_FOR_EACH_OBJECT = 8
"""How many values a body may have for each object or array that it may have."""


def refuse_too_many_values(body: str, limit_objects: float) -> None:
    """Raise DecodeError if *body* has more than *limit_objects* objects and arrays, or eight times as many values.

    By default that is 65,536 objects and arrays, one for each 16 bytes of the largest message; and 524,288 values, or
    174,763 members of objects, as many as an uncompressed message can hold at all.

    Raises:
        DecodeError: Of the kind ``too-many-values``.
    """
    if exceeds(body, limit_objects):
        raise DecodeError("too-many-values", _too_many(limit_objects))


def exceeds(body: str, limit_objects: float) -> bool:
    """Return whether *body* has more objects and arrays than that, or eight times as many values."""
    limits = _Counts(
        limit_objects, limit_objects * VALUES_FOR_EACH_OBJECT - 1, limit_objects * VALUES_FOR_EACH_OBJECT / 3 + 1
    )
    # A few microseconds for each 100 kB. It also counts what is inside of strings, so it can only be too much.
    if not _beyond(_count(body), limits):
        return False
    counted = _Counts(0, 0, 0)
    for part in _outside_strings(body):
        counted = _Counts(*map(sum, zip(counted, _count(part), strict=True)))
        if _beyond(counted, limits):
            return True
    return False


def is_simple(body: str, limit_objects: int) -> bool:
    """Return whether *body* has certainly no more objects and arrays than that; strings are not looked into."""
    return body.count("{") + body.count("[") <= limit_objects


class _Counts(NamedTuple):
    """What a text holds: objects and arrays, commas, and colons, of which each member of an object has one."""

    objects: float
    commas: float
    colons: float


def _too_many(limit_objects: float) -> str:
    return (
        f"the body has more than {limit_objects:,} objects and arrays, or {limit_objects * VALUES_FOR_EACH_OBJECT:,} "
        "values; raise SMARTPIPE_PAYLOAD_LIMIT_OBJECTS if it may have more"
    )


def _count(text: str) -> _Counts:
    return _Counts(text.count("{") + text.count("["), text.count(","), text.count(":"))


def _beyond(counted: _Counts, limits: _Counts) -> bool:
    return counted.objects > limits.objects or counted.commas > limits.commas or counted.colons > limits.colons


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
