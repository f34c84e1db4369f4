"""examples/polyglot: programs in TypeScript and Go with types that are generated from the exported schemas."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import boto3
import pytest

from smartpipe.testing import provision
from tests.support.processes import ROOT, Process, smartpipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker

EXAMPLE = ROOT / "examples" / "polyglot"
PACKAGES = ROOT / ".venv" / "node" / "node_modules"
STEM = "schemas/polyglot.order_placed/1.0"
NAMES = ["json-schema-to-typescript", "ajv", "ajv-formats", "typescript", "quicktype-core", "@aws-sdk/client-sns"]
SECONDS = 120


def run(*command: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def succeed(*command: str, directory: Path, **environment: str) -> str:
    done = run(*command, directory=directory, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with the packages of npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: apt-get install nodejs npm")
    missing = [name for name in NAMES if not (PACKAGES / name).is_dir()]
    if missing:
        pytest.skip(f"packages of npm are not installed: run `make test` ({', '.join(missing)})")
    copy = tmp_path_factory.mktemp("polyglot") / "polyglot"
    left_out = shutil.ignore_patterns("node_modules", "dist", "generated", "__pycache__", "order_placed.go")
    shutil.copytree(EXAMPLE, copy, ignore=left_out)
    (copy / "node_modules").symlink_to(PACKAGES)
    return copy


@pytest.fixture(scope="module")
def built(project: Path) -> Path:
    """The project with generated types and compiled programs."""
    succeed("npm", "run", "--silent", "types", directory=project)
    succeed("npm", "run", "--silent", "build", directory=project)
    return project


def golden_names() -> list[str]:
    return [one["name"] for one in json.loads((EXAMPLE / f"{STEM}.fixtures.json").read_text())]


def test_the_committed_schemas_and_golden_messages_are_up_to_date(tmp_path: Path) -> None:
    """Run `smartpipe schema export orders:service` and `schema fixtures` in the directory when this fails."""
    shutil.copy(EXAMPLE / "orders.py", tmp_path)
    for command in ("export", "fixtures"):
        done = smartpipe("schema", command, "orders:service", directory=str(tmp_path))
        assert done.returncode == 0, done.stderr

    def files(directory: Path) -> dict[str, str]:
        return {path.relative_to(directory).as_posix(): path.read_text() for path in directory.rglob("*.json")}

    assert files(EXAMPLE / "schemas") == files(tmp_path / "schemas")


def test_typescript_compiles_with_the_generated_types_and_refuses_a_wrong_field_and_a_wrong_member(
    built: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy, symlinks=True)
    succeed("npm", "run", "--silent", "check", directory=copy)
    producer = (copy / "ts" / "producer.ts").read_text()
    for right, wrong in (
        ("quantity: 2", "quantty: 2"),
        ('kind: "card"', 'kind: "invoice"'),
        ('type: "polyglot.order_placed"', 'type: "order_placed"'),
    ):
        assert right in producer
        (copy / "ts" / "producer.ts").write_text(producer.replace(right, wrong, 1))
        done = run("npm", "run", "--silent", "check", directory=copy)
        assert done.returncode != 0, f"{wrong} was compiled"
        assert "ts/producer.ts" in done.stdout


def test_a_node_consumer_validates_every_golden_message_with_ajv_in_strict_mode(built: Path, tmp_path: Path) -> None:
    output = succeed("node", "dist/ts/consumer.js", directory=built)
    wrong = tmp_path / "wrong.json"
    fixtures = json.loads((EXAMPLE / f"{STEM}.fixtures.json").read_text())
    fixtures[0]["message"]["data"]["items"] = []
    fixtures[1]["message"]["data"]["added_in_1_1"] = True
    wrong.write_text(json.dumps(fixtures[:2]))
    refused = run("node", "dist/ts/consumer.js", str(wrong), directory=built)

    assert [line.partition(":")[0] for line in output.splitlines()] == golden_names()
    assert "REFUSED" not in output
    assert refused.returncode == 1
    first, second = refused.stdout.splitlines()
    assert first == "minimal: REFUSED: /data/items must NOT have fewer than 1 items"
    assert "REFUSED" not in second, "a consumer ignores fields of newer versions"


def test_both_views_compile_in_ajvs_strict_mode_and_accept_every_golden_message(built: Path, tmp_path: Path) -> None:
    events = ["tests.support.golden:Sold", "tests.support.golden:Returned", "tests.support.golden:Unwritten"]
    for command in ("export", "fixtures"):
        done = smartpipe("schema", command, *events, "--directory", str(tmp_path))
        assert done.returncode == 0, done.stderr
    script = built / "strict.mjs"
    script.write_text(
        "import { readFileSync } from 'node:fs';\n"
        "import { compile, describe } from './dist/ts/contract.js';\n"
        "for (const stem of process.argv.slice(2)) for (const view of ['reader', 'writer']) {\n"
        "  const validate = compile(`${stem}.${view}.json`);\n"
        "  for (const one of JSON.parse(readFileSync(`${stem}.fixtures.json`, 'utf8')))\n"
        "    console.log(validate(one.message) ? 'ok' : `${stem} ${view} ${one.name}: ${describe(validate)}`);\n"
        "}\n"
    )
    stems = [str(path).removesuffix(".fixtures.json") for path in sorted(tmp_path.glob("*/*.fixtures.json"))]

    output = succeed("node", "strict.mjs", f"{EXAMPLE}/{STEM}", *stems, directory=built).splitlines()

    assert len(stems) == len(events)
    assert set(output) == {"ok"}
    assert len(output) > 40


@pytest.fixture
def billing(fast_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A worker of the example's service."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import orders  # type: ignore[import-not-found] # in the example

    asyncio.run(provision(orders.service))
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    flags = ("--host", "127.0.0.1", "--port", "0")
    worker = Process("worker", "orders:service", *flags, directory=str(EXAMPLE), PYTHONDONTWRITEBYTECODE="1")
    worker.wait_until(lambda: worker.logged("ready"))
    yield worker
    worker.end()


def test_an_event_that_node_publishes_with_the_aws_sdk_is_handled_by_a_worker(built: Path, billing: Process) -> None:
    topics = boto3.client("sns").list_topics()["Topics"]
    prefix = os.environ["SMARTPIPE_PREFIX"]
    arn = next(one["TopicArn"] for one in topics if one["TopicArn"].endswith(f":{prefix}polyglot-orders"))

    published = succeed("node", "dist/ts/producer.js", directory=built, ORDERS_TOPIC_ARN=arn)

    assert published.startswith("published ")
    billing.wait_until(lambda: "charged 42.00 for SKU-1 by card" in billing.lines)


def test_go_compiles_the_generated_types_and_reads_every_golden_message(project: Path, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: apt-get install golang-go")
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)
    succeed("npm", "run", "--silent", "go", directory=copy)
    environment = {"GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    environment |= {"HOME": str(tmp_path)}

    succeed("go", "build", "-o", str(tmp_path / "reader"), ".", directory=copy / "go", **environment)
    output = succeed(str(tmp_path / "reader"), str(EXAMPLE / f"{STEM}.fixtures.json"), directory=copy)

    assert [line.partition(":")[0] for line in output.splitlines()] == golden_names()
    assert "REFUSED" not in output
    types = (copy / "go" / "order_placed.go").read_text()
    assert "LastDigits *string" in types, "the flaw that the README describes: one struct for all members of a union"
    assert "Days       *int64" in types
