"""The shape of the code: order of imports, sizes, and which modules know the AWS libraries."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smartpipe import Delivery, Event, Publisher, Service, Topic
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport
from tests.support.consumers import drain, make_consumer
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "smartpipe"

# From the lowest to the highest. A module imports only from units to the left of its own and, in a folder, from its own
# folder. The longest name counts: topology's pure modules are below the transports, and `topology.aws` is above them.
ORDER = [
    "version",
    "limits",
    "characters",
    "escaping",
    "ci_formats",
    "counters",
    "names",
    "keys",
    "errors",
    "telemetry",
    "process_guard",
    "message",
    "exhaustion",
    "tags",
    "filter_operators",
    "filter_policy",
    "urls",
    "connections",
    "retry",
    "transport",
    "topics",
    "upcasters",
    "event_fields",
    "events",
    "settings",
    "options",
    "envelope",
    "contracts",
    "raw_messages",
    "external",
    "telemetry.spans",
    "log_fields",
    "topology",
    "monitoring",
    "batching",
    "transports",
    "payload_offload",
    "topology.export",
    "topology.aws",
    "idempotency",
    "delivery",
    "batch",
    "failures",
    "middleware",
    "publisher",
    "consumer",
    "service",
    "outbox",
    "blocking",
    "dlq",
    "deploy",
    "worker",
    "doctor",
    "local",
    "testing",
    "bench",
    "cli",
    "__main__",
]
UPWARD = {("service", "worker.aws_lambda")}
"""``Service.lambda_handler()`` is the one import that points up. It is made when it is called."""
LAZY = {"", "testing"}
"""Packages whose ``__init__`` imports public names at their first use, so that ``import smartpipe`` stays fast."""
NOT_IMPORTS = {"getLogger", "files"}
"""Functions that take a module's name and do not import it."""
AWS_LIBRARIES = {"boto3", "botocore", "aiobotocore"}
KNOW_AWS_LIBRARIES = ("transports.aws", "topology.aws", "idempotency.stores.dynamodb")
TRANSPORTS = str(PACKAGE / "transports")
MAX_PUBLISH_FILES = 9
MAX_CONSUME_FILES = 11


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def holds_code(path: Path) -> bool:
    return len(ast.parse(path.read_text()).body) > 1


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if holds_code(path)]
MODULES = {module_of(path) for path in PACKAGE.rglob("*.py")}


def unit_of(module: str) -> tuple[int, str] | None:
    """Return the place of a module in ORDER, and the name that gives it: the module's own or a folder's."""
    named = [(place, name) for place, name in enumerate(ORDER) if f"{module}.".startswith(f"{name}.")]
    return max(named, key=lambda unit: len(unit[1]), default=None)


def imports_of(path: Path) -> set[str]:
    """Every module imported at run time, at the top or inside a function, by a statement or by its name as text.

    Imports for type checkers only do not count.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return set(_imported(tree))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if name.removeprefix("smartpipe.") in MODULES] or [node.module]
        elif isinstance(node, ast.Call) and _name_of_call(node) in NOT_IMPORTS:
            node.args = []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
            if name.startswith("smartpipe.") and name.removeprefix("smartpipe.") in MODULES:
                yield name


def _name_of_call(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def imports_of_ours(path: Path) -> set[str]:
    return {name.removeprefix("smartpipe.") for name in imports_of(path) if name.startswith("smartpipe.")} - {
        module_of(path) if path.is_relative_to(PACKAGE) else ""
    }


def assert_no_cycle(graph: dict[str, set[str]]) -> None:
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
    if module in LAZY:
        return
    own = unit_of(module)
    assert own is not None, f"{module} has no place: add it to ORDER and to docs/architecture.md"

    for name in imports_of_ours(path):
        other = unit_of(name)
        assert other is not None, f"{module} imports {name}, which has no place in ORDER"
        allowed = other[0] < own[0] or other == own or (module, name) in UPWARD
        assert allowed, f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize(
    "hidden",
    [
        'import_module("smartpipe.cli.app")',
        'HOMES = {"app": "smartpipe.cli.app"}',
        "def late():\n    from smartpipe.cli import app",
    ],
)
def test_imports_by_text_and_inside_functions_are_seen(hidden: str, tmp_path: Path) -> None:
    module = tmp_path / "hiding.py"
    module.write_text(hidden)

    assert imports_of_ours(module) == {"cli.app"}


def test_only_packages_with_lazy_names_import_modules_of_ours_by_computed_names() -> None:
    computed = {
        module_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and _name_of_call(node) == "import_module"
        and not isinstance(node.args[0], ast.Constant)
    }

    assert computed == {*LAZY, "cli.targets"}  # the last one imports the modules of users


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_adapters_know_the_aws_libraries(path: Path) -> None:
    if f"{module_of(path)}.".startswith(tuple(f"{name}." for name in KNOW_AWS_LIBRARIES)):
        return

    roots = {name.partition(".")[0] for name in imports_of(path)}

    assert roots & AWS_LIBRARIES == set()


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
    graph = {module_of(path): imports_of_ours(path) for path in FILES if module_of(path)}

    assert_no_cycle(
        {module: names - {name for one, name in UPWARD if one == module} for module, names in graph.items()}
    )


def test_a_folder_is_small() -> None:
    modules = [path for path in FILES if not path.name.startswith("__")]

    crowded = {folder: count for folder, count in Counter(path.parent for path in modules).items() if count > 20}

    assert set(crowded) <= {PACKAGE}  # shared modules and those that users import by their path


def test_an_init_file_holds_no_logic() -> None:
    busy = {
        module_of(path)
        for path in PACKAGE.rglob("__init__.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }

    assert busy == {*LAZY, "cli"}  # `cli` catches what commands raise


def test_the_map_in_the_docs_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z0-9_.]+)`", text))

    modules = {module_of(path) for path in FILES} - {"", "__main__"}

    assert {module for module in modules if module not in named} == set()


class Traced(Event, topic=Topic("traced"), type="tests.traced", version="1.0"):
    number: int


def traced_files(frames: set[str]) -> set[str]:
    """Return the modules of the package among the files of *frames*."""
    return {module_of(Path(name)) for name in frames if Path(name).is_relative_to(PACKAGE)}


@contextmanager
def tracing() -> Iterator[set[str]]:
    """Collect the files whose functions are called inside the block, apart from a transport's and the ones it calls."""
    files = set[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        caller: FrameType | None = frame
        while caller is not None and TRANSPORTS not in caller.f_code.co_filename:
            caller = caller.f_back
        if event == "call" and caller is None:
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)


async def test_publishing_an_event_enters_few_files() -> None:
    transport = MemoryTransport()
    transport.apply(derive([tracing_service(asyncio.Event())], NAMING))

    async with Publisher("tests", transport=transport) as publisher:
        await publisher.publish(Traced(number=1))  # what happens once in a process does not count
        with tracing() as files:
            await publisher.publish(Traced(number=2))

    entered = traced_files(files)
    assert len(entered) <= MAX_PUBLISH_FILES, " ".join(sorted(entered))


async def test_handling_an_event_enters_few_files() -> None:
    transport, handled = MemoryTransport(), asyncio.Event()
    service = tracing_service(handled)
    transport.apply(derive([service], NAMING))
    consumer = make_consumer(service, transport, poll_seconds=1)
    consumer.start()
    first, second = (prepare(Publication(Traced(number=number)), source="tests").message for number in (1, 2))
    await transport.send("tracing", [first])
    await until(lambda: not len(transport.queue("tracing")))

    with tracing() as files:
        await transport.send("tracing", [second])
        await handled.wait()
        await until(lambda: not len(transport.queue("tracing")))

    await drain(consumer)
    entered = traced_files(files)
    assert len(entered) <= MAX_CONSUME_FILES, " ".join(sorted(entered))


def tracing_service(handled: asyncio.Event) -> Service:
    service = Service("tracing")

    @service.subscribe(Traced)
    async def handle(event: Traced, delivery: Delivery) -> None:
        if event.number == 2:
            handled.set()

    return service
