"""Reads docstrings in Google style, as the modules of smartpipe have them."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

_SECTIONS = ("Args", "Raises", "Returns", "Yields")


class Docstring(NamedTuple):
    """The parts of a docstring: paragraphs, and the entries of ``Args`` and ``Raises`` by name."""

    paragraphs: list[str]
    arguments: dict[str, str]
    raises: dict[str, str]


def read(thing: Any) -> Docstring:
    """Return the docstring of *thing* as Markdown, without line breaks inside of a paragraph."""
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    paragraphs: list[str] = []
    sections: dict[str, list[str]] = {name: [] for name in _SECTIONS}
    for block in inspect.cleandoc(own or "").split("\n\n"):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") in _SECTIONS and head.endswith(":"):
            sections[head.rstrip(":")].append(rest)
        elif block:
            paragraphs.append(_markdown(block))
    return Docstring(paragraphs, _entries(sections["Args"]), _entries(sections["Raises"], split=False))


def _entries(blocks: list[str], *, split: bool = True) -> dict[str, str]:
    """Return the entries ``name: text`` of a section. ``host, port: text`` is an entry for each name."""
    found: dict[str, str] = {}
    for block in blocks:
        for entry in re.split(r"\n(?! )", inspect.cleandoc("\n" + block)):
            names, colon, text = entry.partition(":")
            assert colon, f"not an entry of Args or Raises: {entry!r}"
            for name in names.split(", ") if split else [names]:
                found[name.strip("*")] = _markdown(text)
    return found


def _markdown(text: str) -> str:
    return re.sub(r"``", "`", " ".join(text.split()))
