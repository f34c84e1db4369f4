"""The messages of errors, found in the code, and the rows of the page that explains them.

A message is a text in the code that becomes the text of an error, or a part of it: an argument of an exception, a value
of a variable such as ``msg`` or ``errors``, or the result of a function that is named after errors. In a message, …
stands for each value.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from tests.reference import DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = DIRECTORY.parents[1] / "src" / "smartpipe"
PAGE = DIRECTORY / "errors.md"

FIRST_SECTION = "\n## Events\n"
"""The tables above it are about classes, codes and kinds."""

NEW_SECTION = """
## New

Describe these, and move them to their section.

| message | cause | remedy |
|---|---|---|
"""
NOT_ERRORS = {"cli/logs.py", "envelope/validators.py"}
"""Modules whose texts are log lines, or templates of Pydantic's own messages."""
INTERNAL = {
    "a policy has statements",
    "a policy is a JSON object",
    "module 'smartpipe' has no attribute …",
    "module 'smartpipe.testing' has no attribute …",
    "no kind of resource has ARNs like …",
    "… resources are never deleted",
}
"""Errors that smartpipe catches, or that only a fault in smartpipe could raise."""
MIN_WORDS = 3
_CALLS = re.compile(r"(?:^|\.)(?:\w*Error|Failure|PublishFailure|EventTooLarge|UnknownEventType|Reject|Retry)$")
_ROW = re.compile(r"\| (?P<ticks>`+) ?(?P<text>.+?) ?(?P=ticks) \| (?P<cause>.*?) \| (?P<remedy>.*?) \|")
_CODED = re.compile(r"(?:^|\.)(?:TransportError|Failure|PublishFailure)$")
_VARIABLES = re.compile(r"msg|message|errors?|problems?|detail|sentence|hint|advice")
_FUNCTIONS = re.compile(r"error|problem|refuse|check|advice|missing")


class Row(NamedTuple):
    """A row of the page."""

    message: str
    cause: str
    remedy: str


def messages() -> dict[str, set[str]]:
    """Return every message, with the modules that it is in."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module not in NOT_ERRORS:
            for text in _messages_of(path):
                found.setdefault(text, set()).add(module)
    assert found.keys() >= INTERNAL, f"remove these from INTERNAL: {INTERNAL - found.keys()}"
    return {text: modules for text, modules in found.items() if text not in INTERNAL}


def codes() -> set[str]:
    """Return the codes of a PublishError or a TransportError that smartpipe itself sets."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _CODED.search(ast.unparse(node.func)):
                constants = [one.value for one in node.args if isinstance(one, ast.Constant)]
                found |= {one for one in constants if isinstance(one, str) and re.fullmatch(r"[A-Z][A-Za-z]+", one)}
    return found


def rows() -> dict[str, Row]:
    """Return the rows of the page, by their message."""
    found = {}
    for line in PAGE.read_text().partition(FIRST_SECTION)[2].splitlines():
        if match := re.fullmatch(
            r"\| (?P<ticks>`+) ?(?P<text>.+?) ?(?P=ticks) \| (?P<cause>.*?) \| (?P<remedy>.*?) \|", line
        ):
            text = match["text"].replace("\\|", "|")
            assert text not in found, f"docs/reference/errors.md has this message twice: {text}"
            found[text] = Row(text, match["cause"], match["remedy"])
    return found


def format_row(row: Row) -> str:
    """Return the line of the page."""
    ticks = "``" if "`" in row.message else "`"
    space = " " if row.message.startswith("`") or row.message.endswith("`") else ""
    message = row.message.replace("|", "\\|")
    return f"| {ticks}{space}{message}{space}{ticks} | {row.cause} | {row.remedy} |"


def update() -> tuple[int, int]:
    """Remove the rows of messages that do not exist any more, and add rows without a cause and a remedy for new ones.

    Return the number of each.
    """
    text = PAGE.read_text()
    listed, known = rows(), messages()
    gone = listed.keys() - known.keys()
    for message in gone:
        text = text.replace(format_row(listed[message]) + "\n", "")
    new = sorted(known.keys() - listed.keys())
    if new:
        text += "" if NEW_SECTION in text else NEW_SECTION
        text += "".join(format_row(Row(one, "", "")) + "\n" for one in new)
    PAGE.write_text(text)
    return len(gone), len(new)


def _messages_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    texts = [text for node in ast.walk(tree) for value in _values(node) for text in _texts(value)]
    return {re.sub(r"…(?:\s*…)+", "…", text).strip() for text in texts if _is_sentence(text)}


def _is_sentence(text: str) -> bool:
    return len([word for word in text.split() if re.search(r"[a-z]", word)]) >= MIN_WORDS


def _values(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions at *node* whose value is a message, or a list of messages."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from node.exc.args
    elif isinstance(node, ast.Call) and (_CALLS.search(ast.unparse(node.func)) or _adds_to_errors(node)):
        yield from node.args
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and _VARIABLES.fullmatch(target.id):
            yield node.value
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _FUNCTIONS.search(node.name):
        for inner in ast.walk(node):
            if isinstance(inner, (ast.Return, ast.Yield)) and inner.value is not None:
                yield inner.value


def _adds_to_errors(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in ("append", "extend")
        and re.search(r"errors|problems", ast.unparse(function.value)) is not None
    )


def _texts(node: ast.expr) -> list[str]:
    """Return the texts that an expression can be, or that a list can contain."""
    text = _text(node)
    if text is not None:
        return [text]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [text for one in node.elts for text in _texts(one)]
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return _texts(node.elt)
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    return _texts(node.value) if isinstance(node, ast.Starred) else []


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None and right is None else f"{left or '…'}{right or '…'}"
    return None
