"""Formats Markdown: tables, and the values that appear in them."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNITS = {
    "bytes": "bytes",
    "days": "days",
    "objects": "objects",
    "processes": "processes",
    "second": "1/s",
    "seconds": "s",
    "share": "0 to 1",
}
"""Units by the last word of a name."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; without rows, an empty text."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines, "", ""]) if lines else ""


def code(text: str) -> str:
    """Return *text* as code in a cell."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def unit_of(name: str) -> str:
    """Return the unit that the ending of *name* stands for."""
    return UNITS.get(name.rpartition("_")[2], "")


def default_of(value: Any) -> str:
    """Return a default as code; empty if there is none."""
    if value is inspect.Parameter.empty:
        return ""
    if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return code("{}")
    if isinstance(value, str):
        return code(f'"{value}"')
    return code("..." if value is ... else repr(value))


def type_of(annotation: Any) -> str:
    """Return an annotation as code, without the modules of its names."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return code(re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z_a-z])", "", text))
