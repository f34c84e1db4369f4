"""Counts the values in a JSON text before it is parsed. Pure.

Each object in a JSON text becomes a Python object of 200 bytes or more, so a limit on bytes alone does not bound the
time and the memory that a body takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES_FOR_EACH_OBJECT = 8
"""The limit on values is this many times the limit on objects and arrays."""


def refuse_too_many_values(body: str, limit_objects: float) -> None:
    """Raise DecodeError if *body* has more than *limit_objects* objects and arrays, or eight times as many values.

    The default is 65,536 objects and arrays, one for each 16 bytes of the largest message, and 524,288 values or
    174,763 members of objects, which is the most that an uncompressed message can contain.

    Raises:
        DecodeError: Its kind is ``too-many-values``.
    """
    if has_too_many_values(body, limit_objects):
        detail = (
            f"the body has more than {limit_objects:,} objects and arrays, or more than "
            f"{limit_objects * VALUES_FOR_EACH_OBJECT:,} values; to accept it, raise SMARTPIPE_PAYLOAD_LIMIT_OBJECTS"
        )
        raise DecodeError("too-many-values", detail)


def has_too_many_values(body: str, limit_objects: float) -> bool:
    """Return whether *body* has more than *limit_objects* objects and arrays, or eight times as many values."""
    limits = _Counts(
        limit_objects, limit_objects * VALUES_FOR_EACH_OBJECT - 1, limit_objects * VALUES_FOR_EACH_OBJECT / 3 + 1
    )
    # A first count takes a few microseconds for each 100 kB. It includes characters inside strings, so it is at least
    # as high as the exact count.
    if not _exceeds(_count(body), limits):
        return False
    counted = _Counts(0, 0, 0)
    for part in _parts_outside_strings(body):
        counted = _Counts(*map(sum, zip(counted, _count(part), strict=True)))
        if _exceeds(counted, limits):
            return True
    return False


def has_few_objects(body: str, limit_objects: int) -> bool:
    """Return whether *body* certainly has at most *limit_objects* objects and arrays. Brackets in strings count too."""
    return body.count("{") + body.count("[") <= limit_objects


class _Counts(NamedTuple):
    """The numbers of objects and arrays, commas, and colons in a text. Each member of an object has a colon."""

    objects: float
    commas: float
    colons: float


def _count(text: str) -> _Counts:
    return _Counts(text.count("{") + text.count("["), text.count(","), text.count(":"))


def _exceeds(counted: _Counts, limits: _Counts) -> bool:
    return counted.objects > limits.objects or counted.commas > limits.commas or counted.colons > limits.colons


def _parts_outside_strings(body: str) -> Iterator[str]:
    position = 0
    while (start := body.find('"', position)) >= 0:
        yield body[position:start]
        position = _end_of_string(body, start + 1)
    yield body[position:]


def _end_of_string(body: str, position: int) -> int:
    """Return the position after the closing quotation mark of the string that contains *position*."""
    while (end := body.find('"', position)) >= 0:
        before = body[position:end]
        backslashes = len(before) - len(before.rstrip("\\"))
        position = end + 1
        if backslashes % 2 == 0:
            return position
    return len(body)
