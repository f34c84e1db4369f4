"""The output of the commands, also after wrong arguments and settings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smartpipe import EmbeddedBroker
from tests.acceptance.conftest import TARGET
from tests.support.processes import ROOT, Process, children_of, is_running, smartpipe
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.conftest import Command


@pytest.mark.parametrize("arguments", [["--help"], ["worker", "--help"], ["topology", "apply", "--help"]])
def test_help_shows_the_usage(arguments: list[str]) -> None:
    result = smartpipe(*arguments)

    assert result.returncode == 0
    assert "Usage: " in result.stdout


COMMANDS = [
    [], ["worker"], ["relay"], ["publish"], ["local"], ["dev"], ["bench"], ["schema"], ["schema", "export"], ["store"],
    ["store", "migrate"],
    ["topology"], *(["topology", name] for name in ("plan", "apply", "destroy", "show", "export")),
    ["dlq"], *(["dlq", name] for name in ("list", "peek", "redrive", "purge")),
]  # fmt: skip


@pytest.mark.parametrize("group", [(), ("topology",), ("dlq",), ("schema",), ("store",)], ids=" ".join)
def test_a_group_of_commands_without_a_command_shows_its_help(inside: Command, group: tuple[str, ...]) -> None:
    bare = inside(*group)

    assert bare.returncode == 2
    assert bare.stdout + bare.stderr == inside(*group, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_is_whole_and_names_values_by_what_they_are(
    inside: Command, command: list[str]
) -> None:
    short, long = inside(*command, "-h"), inside(*command, "--help")

    assert short.returncode == 0
    assert short.stdout == long.stdout
    assert "..." not in short.stdout.replace("[TARGET]...", "").replace("[ARGS]...", "")
    assert "…" not in short.stdout
    assert not re.search(r"list\[|<str>|<int>|<float>|<path>|TEXT|INTEGER|FLOAT|\bPATH\b", short.stdout)
    assert ("TARGET is module:attribute" in short.stdout) == ("[TARGET]..." in short.stdout)


def test_a_shell_completes_commands_services_and_formats(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["shop:billing", "shop:audit"]\n')

    def complete(words: str) -> list[str]:
        environment = {"_SMARTPIPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        code = "import sys; sys.argv = ['smartpipe']; from smartpipe.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert complete("smartpipe topology pl") == ["plan"]
    assert complete("smartpipe worker shop:a") == ["shop:audit"]
    assert complete("smartpipe topology plan shop:") == ["shop:billing", "shop:audit"]
    assert complete("smartpipe topology export --format mer") == ["mermaid"]
    (tmp_path / "shop.py").write_text(
        "from smartpipe import Event, Service, Topic\n"
        "print('importing')\n"
        "class Paid(Event, topic=Topic('orders'), type='order.paid', version='1.0'): ...\n"
        "class Sent(Event, topic=Topic('orders'), type='order.sent', version='1.0'): ...\n"
        "billing, audit = Service('billing', publishes=[Paid]), Service('audit', publishes=[Sent])\n"
    )
    assert complete("smartpipe publish order.") == ["order.paid", "order.sent"]
    assert complete("smartpipe publish order.paid shop:a") == ["shop:audit"]
    assert complete("smartpipe dlq list --json ") == ["shop:billing", "shop:audit"]
    assert complete("smartpipe dlq peek --type order.s") == ["order.sent"]
    assert complete("smartpipe worker --log-format ") == ["json", "text", "auto"]


@pytest.mark.usefixtures("fast_broker")
@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["worker", "nowhere:service"], {}, "no module 'nowhere'"),
        (["worker", "tests.acceptance.services"], {}, "is not module:attribute"),
        (["worker", "tests.acceptance.services:no_handlers"], {}, "service 'idle' has no handlers"),
        (["worker", TARGET, "--concurrency", "0"], {}, "--concurrency=0: input should be greater than or equal to 1"),
        (["worker", TARGET], {"SMARTPIPE_PORT": "high"}, "SMARTPIPE_PORT=high: input should be a valid integer"),
        (["worker", TARGET], {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "no AWS region: set AWS_REGION"),
        (["worker", TARGET, "--drain-seconds", "5", "--wait-seconds", "9"], {}, "is too long for drain_seconds=5"),
        (["topology", "apply"], {}, "no TARGET"),
        (["topology", "apply", "nowhere:service"], {}, "no module 'nowhere'"),
        (["topology", "apply", "--yes", TARGET], {"SMARTPIPE_PREFIX": "a b"}, "SMARTPIPE_PREFIX=a b"),
        (["schema", "export", "json"], {}, "json has no events"),
        (
            ["worker", TARGET],
            {"AWS_PROFILE": "nope"},
            "AWS configuration: The config profile (nope)",
        ),
        (["worker", TARGET, "--port", "0"], {"AWS_ENDPOINT_URL": "localhost:4566"}, "must begin with http://"),
        (["topology", "apply", "--yes", TARGET], {"AWS_ENDPOINT_URL": "localhost:4566"}, "must begin with http://"),
        (
            ["worker", TARGET, "--port", "0"],
            {"AWS_CA_BUNDLE": "/nowhere.pem"},
            "the CA bundle /nowhere.pem (AWS_CA_BUNDLE,",
        ),
        (["worker", TARGET, "--port", "0"], {"AWS_CA_BUNDLE": "README.md"}, "cannot be read: "),
        (["topology", "plan", TARGET], {"AWS_CA_BUNDLE": "/nowhere.pem"}, "cannot be read: [Errno 2]"),
        (["schema", "export", TARGET, "--directory", "README.md"], {}, "File exists"),
        (["worker", "tests.acceptance.services:service.name.nope"], {}, "has no attribute 'service.name.nope'"),
        (["local", "--backend", "rabbitmq"], {}, "backend 'rabbitmq' is not one of ministack, moto"),
    ],
)
def test_a_configuration_error_is_one_line_and_exit_code_2(
    inside: Command, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    run = smartpipe if arguments[0] == "worker" else inside  # a worker that starts would end the process of the test
    result = run(*arguments, **environment)

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert sentence in line
    assert line.startswith("smartpipe: ")


@pytest.mark.usefixtures("fast_broker")
def test_all_wrong_settings_are_reported_together() -> None:
    result = smartpipe("worker", TARGET, "--port", "-1", SMARTPIPE_CONCURRENCY="x", SMARTPIPE_PREFIX="?")

    assert result.returncode == 2
    assert [line.split("=")[0] for line in sorted(result.stderr.splitlines())] == [
        "smartpipe: --port",
        "smartpipe: SMARTPIPE_CONCURRENCY",
        "smartpipe: SMARTPIPE_PREFIX",
    ]


def test_missing_credentials_are_reported_in_one_line(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        environment = {name: value for name, value in broker.environment.items() if "KEY" not in name}
        nowhere = {name: str(tmp_path / "none") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
        result = smartpipe("worker", TARGET, "--port", "0", **environment, **nowhere, AWS_EC2_METADATA_DISABLED="true")

    assert result.returncode == 2
    assert "no AWS credentials found" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.usefixtures("fast_broker")
def test_a_worker_without_its_queues_lists_the_missing_resources() -> None:
    result = smartpipe("worker", TARGET, "--port", "0")

    assert result.returncode == 1
    missing = [line.removeprefix("smartpipe: ") for line in result.stderr.splitlines()]
    prefix = os.environ["SMARTPIPE_PREFIX"]
    assert missing == [
        f"missing: queue {prefix}jobs-dlq",
        f"missing: queue {prefix}jobs",
        f"missing: topic {prefix}jobs",
        f"missing: subscription {prefix}jobs → {prefix}jobs",
        "run `smartpipe topology apply` to create the missing resources",
    ]


@pytest.mark.usefixtures("fast_broker")
def test_a_port_in_use_is_reported_in_one_line() -> None:
    smartpipe("topology", "apply", "--yes", TARGET)
    first = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", "--wait-seconds", "1")
    try:
        first.wait_until(lambda: first.logged("serving"))
        serving = first.logged("serving")
        assert serving is not None
        port = serving["url"].rpartition(":")[2]
        result = smartpipe("worker", TARGET, "--host", "127.0.0.1", "--port", port)
    finally:
        first.end()

    assert result.returncode == 2
    assert f"cannot bind the health port 127.0.0.1:{port}" in result.stderr


@pytest.mark.usefixtures("fast_broker")
def test_apply_prints_each_change_and_a_second_apply_changes_nothing(inside: Command) -> None:
    first, second = smartpipe("topology", "apply", "--yes", TARGET), inside("topology", "apply", TARGET)
    as_json = inside("topology", "apply", "--yes", TARGET, "--json")

    assert first.stdout.count("] create ") == 4
    assert first.stdout.endswith("4 changes made\n")
    assert second.stdout.endswith("nothing to change; 4 unchanged\n")
    assert json.loads(as_json.stdout)["changes"] == []
    assert {first.returncode, second.returncode, as_json.returncode} == {0}


def test_schema_export_writes_files_and_prints_their_names(tmp_path: Path) -> None:
    result = smartpipe("schema", "export", TARGET, "--directory", str(tmp_path))

    assert result.returncode == 0
    assert {path.name for path in (tmp_path / "job.posted").iterdir()} == {
        "1.0.contract.json",
        "1.0.reader.json",
        "1.0.writer.json",
    }
    assert result.stdout.count("written") == 4


@pytest.mark.parametrize("backend", ["ministack", "moto"])
def test_local_prints_environment_variables_and_stops_its_broker_at_the_end(backend: str) -> None:
    broker = Process("local", "--backend", backend)
    try:
        broker.wait_until(lambda: any(line.startswith("export AWS_SECRET") for line in broker.lines))
        exported = dict(
            line.removeprefix("export ").split("=", 1) for line in broker.lines if line.startswith("export")
        )
        applied = smartpipe("topology", "apply", "--yes", TARGET, **exported)
        children = children_of(broker.pid)
        broker.signal(signal.SIGINT)
        code = broker.wait()
    finally:
        broker.end()

    assert exported["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert applied.returncode == 0
    assert code == 0
    assert len(children) == 1
    until_blocking(lambda: not any(map(is_running, children)))


def test_local_prints_variables_for_a_free_port_and_reports_that_its_broker_has_ended(
    inside: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedBroker, "start", lambda _: None)  # so that no process runs
    monkeypatch.setattr("smartpipe.cli.local.signals_to_handle", list)  # those of this process stay as they are

    as_text, as_json = inside("local"), inside("local", "--json")

    variables = json.loads(as_json.stdout.splitlines()[0])
    found = re.search(r"^export AWS_ENDPOINT_URL=http://127.0.0.1:(\d+)$", as_text.stdout, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= 1_024
    assert all(f"export {name}=" in as_text.stdout for name in variables)
    assert as_text.stderr.startswith("smartpipe: the broker ended unexpectedly with exit code ")
    assert (as_text.returncode, as_json.returncode) == (1, 1)


def test_the_broker_ends_when_its_parent_is_killed() -> None:
    broker = Process("local")
    broker.wait_until(lambda: any(line.startswith("export AWS_SECRET") for line in broker.lines))
    [child] = children_of(broker.pid)

    broker.signal(signal.SIGKILL)
    broker.wait()

    until_blocking(lambda: not is_running(child))


def test_the_broker_listens_on_loopback_only() -> None:
    with EmbeddedBroker() as broker:
        listening = subprocess.run(
            [sys.executable, "-c", LISTENING, str(broker._process.pid if broker._process else 0)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()

    assert listening == [f"127.0.0.1:{broker.port}"]


def test_a_broker_port_in_use_is_reported() -> None:
    with EmbeddedBroker() as broker:
        result = smartpipe("local", "--port", str(broker.port))

    assert result.returncode == 2
    assert f"cannot bind port {broker.port} of 127.0.0.1" in result.stderr


def test_the_command_is_installed_under_its_name() -> None:
    result = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "smartpipe") if (ROOT / ".venv").exists() else "smartpipe", "--version"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert result.stdout.startswith("smartpipe 0.")


LISTENING = """
import os, socket, struct, sys
pid = sys.argv[1]
inodes = set()
for fd in os.listdir(f"/proc/{pid}/fd"):
    link = os.readlink(f"/proc/{pid}/fd/{fd}")
    if link.startswith("socket:["):
        inodes.add(link[8:-1])
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/{pid}/net/{table}").readlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address, port = fields[1].split(":")
            packed = bytes.fromhex(address)
            shown = socket.inet_ntoa(packed[::-1]) if len(packed) == 4 else "[" + packed.hex() + "]"
            print(f"{shown}:{int(port, 16)}")
"""
