"""The shape of the code, held: layers, rooms, and who may know botocore."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "smartpipe"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports only from layers below its own; within a layer nothing is imported, but inside of a package.
LAYERS: list[set[str]] = [
    {"version", "errors", "message", "telemetry", "counts", "room", "deadlines"},
    {
        "topology.naming",
        "topology.tags",
        "topology.filters",
        "topology.resources",
        "topology.rights",
        "topology.claims",
        "topology.buckets",
    },
    {"topology.model", "retry", "transport", "metrics"},
    {"events", "settings"},
    {"envelope", "settlement", "idempotency", "payloads"},
    {"claims", "stores", "decoder", "outgoing", "attempts", "delivery", "breaker", "pace"},
    {"chunks", "deadletter", "reader", "visibility", "poller", "threads", "batch", "groups"},
    {"topology.policy", "topology.changes", "letters"},
    {"topology.companions", "topology.derive", "topology.stages", "walk", "memories"},
    {"batcher", "bulk", "signature", "memory", "redrive"},
    {"handlers", "middleware", "topology.plan", "topology.advice", "topology.destruction", "topology.tree"},
    {"service", "subscribing", "acknowledger", "publisher", "invocation", "outbox"},
    {"gatherer", "schemas", "guard"},
    {"processor", "topology.export"},
    {"settler"},
    {"consumer"},
    {"health", "signals", "loops", "garbage", "embedded"},
    {"worker", "lambda_handler", "aws", "processes"},
    {"blocking", "testing", "bench"},
    {"cli"},
    {"__main__"},
]
LAZY_OR_NAMES_ONLY = {"__init__", "testing.__init__", "topology.__init__"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imports_of(path: Path) -> set[str]:
    """Every module imported at run time, at the top or inside of a function; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_only(path: Path) -> None:
    module = module_of(path)
    if module in LAZY_OR_NAMES_ONLY:
        return
    own = layer_of(module)
    assert own is not None, f"{module} stands in no layer: give it one in LAYERS and in docs/architecture.md"

    for imported in imports_of(path):
        if not imported.startswith("smartpipe."):
            continue
        name = imported.removeprefix("smartpipe.")
        other = layer_of("topology.model" if name == "topology" else name)
        assert other is not None, f"{module} imports {name}, which stands in no layer"
        same_package = "." in module and name.partition(".")[0] == module.partition(".")[0]
        assert other < own or (other == own and same_package), f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_aws_and_blocking_know_the_aws_libraries(path: Path) -> None:
    module = module_of(path)
    if module == "blocking" or module.startswith("aws."):
        return

    roots = {name.partition(".")[0] for name in imports_of(path)}

    assert roots & {"boto3", "botocore", "aiobotocore"} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()

    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            body = node.body[1:] if documented and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            assert lines <= 40, f"{node.name} has {lines} lines"


def test_there_is_no_import_cycle() -> None:
    graph = {
        module_of(path): {n.removeprefix("smartpipe.") for n in imports_of(path) if n.startswith("smartpipe.")}
        for path in FILES
        if not path.name.startswith("__")
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_map_in_the_docs_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_.]+)`", text))

    modules = {module_of(path) for path in FILES if not path.name.startswith("__")}

    assert {module for module in modules if module not in named} == set()
