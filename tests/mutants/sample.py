"""Find the mutants of the source, and choose some of each folder at random."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code

from tests.mutants.operators import list_operators
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PACKAGE = ROOT / "src" / "smartpipe"
UNEXPECTED = "BufferError"
"""The exception that a changed ``except`` clause catches. Nothing here raises it."""


class Mutant(NamedTuple):
    """One change of the source in one place.

    Args:
        occurrence: The number of this place among all places of the file to which the operator applies.
        runs_at_import: The line is outside of all functions, so the tests that depend on it need not run it.
    """

    folder: str
    file: str
    line: int
    operator: str
    occurrence: int
    runs_at_import: bool = False

    def apply(self) -> str:
        """Return the changed text of the file."""
        changed: str | None = mutate_code(
            (ROOT / self.file).read_text(), list_operators()[self.operator][1], self.occurrence
        )
        assert changed is not None, self
        return changed.replace("CosmicRayTestingException", UNEXPECTED)  # an unknown name would itself be an error

    def describe(self) -> str:
        """Return the line before and after the change."""
        before, after = (ROOT / self.file).read_text().splitlines(), self.apply().splitlines()
        changed = [number for number, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
        number = changed[0] if changed else self.line - 1
        return f"{before[number].strip()}  →  {after[number].strip()}"


def folder_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "(root)"


def choose_mutants(seed: int, count: int, folders: Sequence[str] = ()) -> list[Mutant]:
    """Return *count* mutants of each folder.

    First a place is chosen, that is a line and a family of operators, and then one of the operators. Otherwise the
    operators with many variants would make up most of the sample. The order depends on the seed and on each line's own
    text, so a change of the source leaves the rest of a sample as it was.
    """
    by_folder: dict[str, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(PACKAGE.rglob("*.py")):
        folder = folder_of(file)
        if not folders or folder in folders:
            names = _name_lines(file.read_text().splitlines())
            for family, mutant in _find_mutants(file, folder):
                by_folder[folder][f"{mutant.file} {names[mutant.line]} {family}"].append(mutant)
    chosen: list[Mutant] = []
    for _, places in sorted(by_folder.items()):
        ordered = sorted(places, key=lambda place: Random(f"{seed} {place}").random())
        compiling = filter(_compiles, (Random(f"{seed} {place}").choice(places[place]) for place in ordered))
        chosen += islice(compiling, count)
    return chosen


def _name_lines(lines: Sequence[str]) -> dict[int, str]:
    """Return a name for the number of each line: its text, and how often that came before in the file."""
    seen: Counter[str] = Counter()
    names = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        names[number] = f"{line} {seen[line]}"
        seen[line] += 1
    return names


def _compiles(mutant: Mutant) -> bool:
    try:
        compile(mutant.apply(), mutant.file, "exec")
    except (SyntaxError, AttributeError):  # cosmic-ray raises the latter for the exception `a.b` in a tuple
        return False
    return True


def _find_mutants(file: Path, folder: str) -> Iterator[tuple[str, Mutant]]:
    text = file.read_text()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    ignored = _find_ignored(tree, text.splitlines())
    # The parts from each `def` to the first statement of its function.
    headers = [((node.lineno, node.col_offset), (node.body[0].lineno, node.body[0].col_offset)) for node in functions]
    nodes = _Nodes()
    nodes.walk(get_ast(text))
    for name, (family, operator) in list_operators().items():
        starts = [start for node in nodes.found for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(starts):
            # `*` and `/` between parameters are not arithmetic.
            parts = [*ignored, *headers] if family == "arithmetic" else ignored
            if not any(start <= (line, column) < end for start, end in parts):
                inside = any(one.body[0].lineno <= line <= (one.end_lineno or 0) for one in functions)
                yield family, Mutant(folder, str(file.relative_to(ROOT)), line, name, occurrence, not inside)


class _Nodes(Visitor):  # type: ignore[misc]
    """Collects the nodes in the order in which cosmic-ray counts the places of an operator."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def visit(self, node: Any) -> Any:
        self.found.append(node)
        return node


def _find_ignored(tree: ast.AST, lines: Sequence[str]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the parts of a file that never run: annotations, imports for type checkers, and marked lines.

    Also ``strict=`` of ``zip``, which is an assertion.
    """
    found = []
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts.append(node.returns)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            parts += [one.value for one in node.keywords]  # strict=True is an assertion
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            parts.append(node)
        for part in parts:
            if part is not None:
                place: Any = part
                found.append(((place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)))
    marked = [number for number, line in enumerate(lines, 1) if "pragma: no cover" in line]
    return [*found, *(((number, 0), (number + 1, 0)) for number in marked)]
