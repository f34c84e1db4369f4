"""Formats in which CI systems show findings: GitHub's workflow commands, and SARIF. Pure.

Sources: "Workflow commands for GitHub Actions"; SARIF 2.1.0 (OASIS).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(NamedTuple):
    """A line of a file. The file is relative to the working directory if it is below it."""

    file: str
    line: int

    def as_sarif(self) -> dict[str, Any]:
        """Return it as a SARIF location."""
        artifact = {"artifactLocation": {"uri": self.file}, "region": {"startLine": self.line}}
        return {"physicalLocation": artifact}


class Annotation(NamedTuple):
    """A workflow command of GitHub, which shows *text* beside a line of a file.

    Args:
        level: ``error``, ``warning`` or ``notice``.
    """

    level: str
    title: str
    text: str
    place: Place | None = None

    def __str__(self) -> str:
        """Return the command in one line."""
        properties = {"title": self.title}
        if self.place:
            properties |= {"file": self.place.file, "line": str(self.place.line)}
        options = ",".join(f"{key}={_escape(value, ':,')}" for key, value in properties.items())
        return f"::{self.level} {options}::{_escape(self.text)}"


def describe_rule(code: str, title: str, remedy: str, level: str) -> dict[str, Any]:
    """Return the rule behind a code for SARIF. *level* is ``error``, ``warning`` or ``note``."""
    return {
        "id": code,
        "shortDescription": {"text": title},
        "help": {"text": remedy},
        "defaultConfiguration": {"level": level},
    }


def format_sarif(tool: str, version: str, rules: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> str:
    """Return a log in SARIF 2.1.0. *version* is that of smartpipe."""
    driver = {"name": tool, "version": version, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, ensure_ascii=False)


def count(number: int, noun: str) -> str:
    """Return the number with its noun, in the plural unless it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
