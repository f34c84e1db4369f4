"""docs/log-lines.md lists every line that smartpipe logs, with the level that the code has, and no other line."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "smartpipe"
PAGE = ROOT / "docs" / "log-lines.md"

LEVELS = {"debug", "info", "warning", "error", "exception"}
VARIES = "varies"
"""The level of a line that the code logs at more than one: the page says when."""


class Line(NamedTuple):
    logger: str
    level: str
    text: str


def _loggers(tree: ast.Module) -> dict[str, str]:
    """Return the module's loggers: the variables, and the names."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for call in ast.walk(node.value):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("getLogger") and call.args:
                    name = ast.literal_eval(call.args[0])
                    found[ast.unparse(node.targets[0]).rpartition(".")[2]] = name
    return found


def _shown(text: str) -> str:
    """Return a format string as the page has it: with … for each value."""
    return re.sub(r"%[-.\d]*[a-z]", "…", text)


def lines_of(path: Path) -> set[Line]:
    """Return the lines that a module logs, without those that are only a value, such as the text of an error."""
    tree = ast.parse(path.read_text())
    loggers = _loggers(tree)
    found: set[Line] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        variable, level = ast.unparse(node.func.value).rpartition(".")[2], node.func.attr
        if variable not in loggers or level not in {*LEVELS, "log"}:
            continue
        text = node.args[1 if level == "log" else 0]
        texts = [text.body, text.orelse] if isinstance(text, ast.IfExp) else [text]
        level = VARIES if level == "log" else "error" if level == "exception" else level
        found |= {
            Line(loggers[variable], level, _shown(one.value))
            for one in texts
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and _shown(one.value).strip("…: ")
        }
    return found


def lines_of_the_page() -> list[Line]:
    found: list[Line] = []
    logger = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.fullmatch(r"## .*`(smartpipe\.[a-z]+)`.*", line):
            logger = heading[1]
        elif row := re.fullmatch(r"\| (?P<ticks>`+)(?P<text>.+?)(?P=ticks) \| (?P<level>[a-z]+) \| .+ \| .+ \|", line):
            found.append(Line(logger, row["level"], row["text"].strip()))
    return found


def test_the_page_lists_every_log_line_and_no_other() -> None:
    logged = {line for path in PACKAGE.rglob("*.py") for line in lines_of(path)}
    listed = set(lines_of_the_page())

    assert len(logged) > 70
    assert logged - listed == set(), "add these to docs/log-lines.md"
    assert listed - logged == set(), "nothing logs these any more"


def test_the_page_lists_no_line_twice() -> None:
    listed = lines_of_the_page()

    assert len(listed) == len(set(listed))
