"""docs/twelve-factor.md: its rows are complete, its tests exist, and its commands too."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import typer.main

from smartpipe.cli.app import app
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "twelve-factor.md"
FACTORS = [
    "I. Codebase",
    "II. Dependencies",
    "III. Config",
    "IV. Backing services",
    "V. Build, release, run",
    "VI. Processes",
    "VII. Port binding",
    "VIII. Concurrency",
    "IX. Disposability",
    "X. Dev/prod parity",
    "XI. Logs",
    "XII. Admin processes",
]
TEST = re.compile(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)")
COMMAND = re.compile(r"`(?:[A-Z_]+=\S+ )?smartpipe ([^`>]+)[^`]*`")


class Row(NamedTuple):
    name: str
    does: str
    see: str
    tests: str


ROWS = [
    Row(*(cell.strip() for cell in line.strip("|").split("|")))
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| factor", "| principle"))
]


def test_the_page_has_every_factor_in_its_order() -> None:
    assert [row.name for row in ROWS[:12]] == FACTORS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_names_a_test_that_exists(row: Row) -> None:
    named = TEST.findall(row.tests)

    assert named
    for test, file in named:
        assert test in _functions(ROOT / file), f"{file} has no {test}"


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {one.name for one in ast.walk(tree) if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row_shows_itself_by_a_command_that_is_complete(row: Row) -> None:
    found = COMMAND.findall(row.see)

    assert found or row.see.startswith(("`kill ", "`make "))
    for text in found:
        command: Any = typer.main.get_command(app)
        words = text.split()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(text, words)  # fails if an option is unknown, or a required one is missing
