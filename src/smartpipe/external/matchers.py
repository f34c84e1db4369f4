"""Matchers of message attributes and of fields in JSON bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smartpipe.errors import ConfigError
from smartpipe.raw_messages import Matcher, RawMessage, Where

if TYPE_CHECKING:
    from collections.abc import Callable

_MISSING = object()


def attribute(name: str, *values: object) -> Matcher:
    """Select messages whose attribute *name* has one of *values*, or any value if none is given.

    An attribute of the type ``Number`` equals a number, and one of the type ``String.Array`` is selected if one of its
    elements is.

    Args:
        name: The name of the attribute.
        values: Texts, numbers, True, False or None.
    """
    return _AttributeMatcher(name, values)


def field(path: str | tuple[str, ...], *values: object) -> Matcher:
    """Select JSON bodies whose field at *path* has one of *values*, or any value if none is given.

    ``field("detail.state", "stopped")`` looks at the field ``state`` in the object ``detail``. Write a tuple if a name
    has a dot. A list is selected if one of its elements is.

    Args:
        path: The names of objects and field, joined by dots, or a tuple of them.
        values: Texts, numbers, True, False or None.

    Raises:
        ConfigError: The path is empty.
    """
    names = tuple(path.split(".")) if isinstance(path, str) else tuple(path)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f'field({path!r}): write a path of names, as in field("detail.state", "stopped")')
    return _FieldMatcher(names, values)


def where(function: Callable[[RawMessage], bool]) -> Matcher:
    """Select the messages for which *function* returns true.

    A message for which it raises an exception is dead-lettered as ``invalid-data``. It is called on the event loop, or
    in a thread if the body is large, so it must be fast and must not do I/O.

    Args:
        function: Takes the RawMessage.
    """
    return Where(function)


@dataclass(frozen=True, slots=True)
class _AttributeMatcher(Matcher):
    name: str
    values: tuple[object, ...]

    def __call__(self, message: RawMessage) -> bool:
        found = message.attributes.get(self.name)
        return found is not None and _has_one(found.parsed, self.values)


@dataclass(frozen=True, slots=True)
class _FieldMatcher(Matcher):
    path: tuple[str, ...]
    values: tuple[object, ...]

    def __call__(self, message: RawMessage) -> bool:
        found: Any = message.json
        for name in self.path:
            found = found.get(name, _MISSING) if isinstance(found, dict) else _MISSING
        return found is not _MISSING and _has_one(found, self.values)


def _has_one(found: Any, values: tuple[object, ...]) -> bool:
    candidates = found if isinstance(found, list) else [found]
    return not values or any(_is_equal(one, value) for one in candidates for value in values)


def _is_equal(one: object, value: object) -> bool:
    """Compare as JSON does: true is not 1."""
    return one == value and isinstance(one, bool) == isinstance(value, bool)
