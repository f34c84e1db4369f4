"""Bounds how often the unions of recursive classes are tried. Pure.

A field that takes one of two classes which have such a field themselves is validated twice at each level: a body of
256 bytes, thirty levels deep, takes half a minute. With a discriminator Pydantic knows which of them to try.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INLINE_TRIES = 8_192
"""Some 3 µs each. What needs more is validated in a thread."""
THREAD_TRIES = 131_072
"""And one for each character: a body has fewer values, so this is too little only where they are tried repeatedly."""


class TooManyTries(Exception):
    """The body makes Pydantic try the choices of nested unions in more combinations than it is worth."""

    def __init__(self) -> None:
        super().__init__(
            "its nested unions allow too many combinations; let the event class tell their choices apart, with "
            "Field(discriminator=…)"
        )


class Tries:
    """Counts the tries of one validation, over those unions that lead to themselves in several ways.

    Args:
        in_thread: It may take as long as a thread has, not only as long as an event loop.
    """

    def __init__(self, schema: Any, *, in_thread: bool) -> None:
        self._in_thread = in_thread
        self._left = threading.local()
        definitions = {one["ref"]: one for one in schema.get("definitions", ())} if isinstance(schema, dict) else {}
        direct = {ref: set(_references(one)) for ref, one in definitions.items()}
        self._reachable = {ref: _closure(ref, direct) for ref in direct}

    @property
    def needed(self) -> bool:
        """Whether any class is recursive at all."""
        return any(ref in reachable for ref, reachable in self._reachable.items())

    def bound(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Let a union with several recursive choices count each try."""
        if schema.get("type") != "union" or sum(map(self._is_recursive, schema["choices"])) < 2:  # noqa: PLR2004
            return schema
        ref = schema.pop("ref", None)
        counted: dict[str, Any] = dict(core_schema.no_info_before_validator_function(self._spend, schema))
        return counted | ({"ref": ref} if ref else {})

    def counting(self, validate: Callable[[str], Any]) -> Callable[[str], Any]:
        """Return *validate* with a count of its own for each body."""
        return partial(self._validate, validate)

    def _validate(self, validate: Callable[[str], Any], body: str) -> Any:
        self._left.tries = THREAD_TRIES + len(body) if self._in_thread else INLINE_TRIES
        value = validate(body)
        if self._left.tries < 0:  # a default for what does not fit takes the place of any exception
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
