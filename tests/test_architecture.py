"""The shape of the code, held: layers, rooms, and who may know botocore."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "smartpipe"

# From the bottom to the top: a module imports only from layers below its own. The longest name counts. A folder that is
# named as a whole is one layer, whose modules may import one another.
LAYERS: list[set[str]] = [
    {
        "version",
        "characters",
        "errors",
        "message",
        "envelope.traceparent",
        "counters",
        "batching.timers",
        "keys",
        "escaping",
    },
    {"exhaustion"},
    {
        "urls",
        "names",
        "tags",
        "filter_policy",
        "topology.resources",
        "topology.rights",
        "topology.claims",
        "topology.buckets",
    },
    {"topics", "topology.regions", "retry", "transport"},
    {"events", "settings"},
    {"payloads"},
    {"envelope", "envelope.structure", "envelope.unions"},
    {"envelope.validators"},
    {"envelope.decode"},
    {"envelope.read", "envelope.schemas"},
    {"publisher.prepare"},
    {"topology.policy", "topology.changes", "topology.companions"},
    {"topology.derive", "topology.plan", "topology.stages", "topology.destroy", "topology.status"},
    {"topology.checks", "topology.export"},
    {"idempotency.store"},
    {"idempotency.claims", "idempotency.stores"},
    {
        "delivery",
        "batch",
        "consumer.breaker",
        "consumer.decide",
        "consumer.subscribing",
        "consumer.capacity",
    },
    {"consumer.signature", "consumer.invoke", "consumer.threads"},
    {"consumer.batches", "consumer.guard"},
    {"consumer.handlers"},
    {"middleware"},
    {"batching.resend", "batching.chunker"},
    {"batching.batcher", "publisher.publish_many"},
    {"publisher.publish_one"},
    {"publisher.publisher"},
    {"outbox", "aws", "transports.memory", "local"},
    {"service", "blocking"},
    {
        "consumer.room",
        "consumer.pace",
        "consumer.groups",
        "consumer.dead_letter",
        "consumer.isolation",
        "consumer.poller",
        "consumer.leases",
        "consumer.acknowledger",
    },
    {"consumer.processor"},
    {"consumer.settle"},
    {"consumer.consumer"},
    {"dlq.messages", "dlq.processed"},
    {"dlq.scan"},
    {"dlq.redrive"},
    {"worker.metrics", "worker.signals", "worker.loops", "worker.garbage", "worker.limits"},
    {"worker.log_writer"},
    {"worker.health"},
    {"worker.worker", "worker.aws_lambda", "worker.supervisor"},
    {"testing", "bench"},
    {"cli"},
    {"__main__"},
]
LAZY_OR_NAMES_ONLY = {"", "testing", "topology"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def holds_code(path: Path) -> bool:
    return len(ast.parse(path.read_text()).body) > 1


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if holds_code(path)]


def place_of(module: str) -> tuple[int, str] | None:
    """Return the module's layer, and the name there that says so: its own or a folder's."""
    named = [(i, name) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    return max(named, key=lambda place: len(place[1]), default=None)


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


def imports_of_ours(path: Path) -> set[str]:
    return {name.removeprefix("smartpipe.") for name in imports_of(path) if name.startswith("smartpipe.")}


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " → ".join((*trail, node))
        if node not in done:
            for imported in sorted(graph.get(node, ())):
                visit(imported, (*trail, node))
            done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_only(path: Path) -> None:
    module = module_of(path)
    if module in LAZY_OR_NAMES_ONLY:
        return
    own = place_of(module)
    assert own is not None, f"{module} stands in no layer: give it one in LAYERS and in docs/architecture.md"

    for name in imports_of_ours(path):
        other = place_of("topics" if name == "topology" else name)
        assert other is not None, f"{module} imports {name}, which stands in no layer"
        assert other[0] < own[0] or other == own, f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_aws_and_blocking_know_the_aws_libraries(path: Path) -> None:
    module = module_of(path)
    if module == "blocking" or module.startswith("aws."):
        return

    roots = {name.partition(".")[0] for name in imports_of(path)}

    assert roots & {"boto3", "botocore", "aiobotocore"} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()

    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            body = node.body[1:] if documented and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            assert lines <= 50, f"{node.name} has {lines} lines"


def test_there_is_no_import_cycle() -> None:
    assert_no_circle({module_of(path): imports_of_ours(path) for path in FILES if module_of(path)})


def test_folders_too_import_one_another_in_one_direction_only() -> None:
    def folder_of(module: str) -> str:
        # Topology's words are below events, and what becomes of them above: its modules count by themselves.
        return module if module.startswith("topology") else module.partition(".")[0]

    graph: dict[str, set[str]] = {}
    for path in FILES:
        if folder := folder_of(module_of(path)):
            graph.setdefault(folder, set()).update({folder_of(name) for name in imports_of_ours(path)} - {folder})

    assert_no_circle(graph)


def test_a_folder_is_small() -> None:
    modules = [path for path in FILES if not path.name.startswith("__")]

    crowded = {str(folder): count for folder, count in Counter(path.parent for path in modules).items() if count > 20}

    assert crowded == {}


def test_the_map_in_the_docs_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_.]+)`", text))

    modules = {module_of(path) for path in FILES} - {"", "__main__"}

    assert {module for module in modules if module not in named} == set()
