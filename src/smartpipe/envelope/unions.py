"""Bounds the number of tries of unions of recursive classes. Pure.

Suppose a field takes one of two classes, and both have such a field again. Pydantic then validates it twice at each
level: a body of 256 bytes, thirty levels deep, takes half a minute. With a discriminator it knows which class to try.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INLINE_TRIES = 8_192
"""On the event loop. A try takes some 3 µs. A body that needs more is validated in a thread."""
THREAD_TRIES = 131_072
"""Plus one for each character. A body has fewer values than characters, so only repeated tries can exceed this."""


class TooManyTries(Exception):
    """The body makes Pydantic try too many combinations of the choices of nested unions."""

    def __init__(self) -> None:
        super().__init__(
            "its nested unions allow too many combinations; add a discriminator to them in the event class, with "
            "Field(discriminator=…)"
        )


class TryCounter:
    """Counts the tries of one validation, in unions that contain themselves in several ways.

    Args:
        in_thread: Allow the number of tries for a thread, not the lower one for an event loop.
    """

    def __init__(self, schema: Any, *, in_thread: bool) -> None:
        self._in_thread = in_thread
        self._left = threading.local()
        definitions = {one["ref"]: one for one in schema.get("definitions", ())} if isinstance(schema, dict) else {}
        direct = {ref: set(_references(one)) for ref, one in definitions.items()}
        self._reachable = {ref: _closure(ref, direct) for ref in direct}

    @property
    def needed(self) -> bool:
        """Whether any class is recursive."""
        return any(ref in reachable for ref, reachable in self._reachable.items())

    def bound(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return *schema*; if it is a union with several recursive choices, make it count each try."""
        if schema.get("type") != "union" or sum(map(self._is_recursive, schema["choices"])) < 2:  # noqa: PLR2004
            return schema
        ref = schema.pop("ref", None)
        counted: dict[str, Any] = dict(core_schema.no_info_before_validator_function(self._spend, schema))
        return counted | ({"ref": ref} if ref else {})

    def wrap(self, validate: Callable[[str], Any]) -> Callable[[str], Any]:
        """Return a function that calls *validate* with a new count for each body."""
        return partial(self._validate, validate)

    def _validate(self, validate: Callable[[str], Any], body: str) -> Any:
        self._left.tries = THREAD_TRIES + len(body) if self._in_thread else INLINE_TRIES
        value = validate(body)
        if self._left.tries < 0:  # the exception may be lost, where a default replaces an invalid value
            raise TooManyTries
        return value

    def _spend(self, value: Any) -> Any:
        self._left.tries -= 1
        if self._left.tries < 0:
            raise TooManyTries
        return value

    def _is_recursive(self, choice: Any) -> bool:
        direct = set(_references(choice))
        reachable = direct.union(*(self._reachable.get(ref, ()) for ref in direct))
        return any(ref in self._reachable.get(ref, ()) for ref in reachable)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if schema.get("type") == "definition-ref":
            yield schema["schema_ref"]
        for key, inner in schema.items():
            if key != "metadata":
                yield from _references(inner)
    elif isinstance(schema, (list, tuple)):
        for inner in schema:
            yield from _references(inner)


def _closure(start: str, direct: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(direct[start])
    while todo:
        ref = todo.pop()
        if ref not in found:
            found.add(ref)
            todo.extend(direct.get(ref, ()))
    return found
