"""The options of the commands: their defaults, their limits, and the values that the code of a command gets."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import typer
import typer.main

from smartpipe.cli import dlq_app
from smartpipe.cli.app import app
from smartpipe.cli.bench import BenchOptions
from smartpipe.cli.dev.project import DevOptions
from smartpipe.cli.redrive import RedriveOptions
from smartpipe.cli.topology_app import complete_targets
from smartpipe.dlq.messages import Selection
from smartpipe.monitoring.rules import AlertOptions
from smartpipe.version import __version__

BENCH = dict.fromkeys(
    (
        *("events", "size_bytes", "queues", "concurrency", "processes", "producers", "rate_per_second", "warmup"),
        "patience_seconds",
    )
)
WORKER = dict.fromkeys(
    (
        *("processes", "concurrency", "drain_seconds", "wait_seconds", "protect_task"),
        *("host", "port", "verify", "log_level", "log_format"),
    )
)
RELAY = dict.fromkeys(("host", "port", "log_level", "log_format"))

WORKER_LINE = (
    "worker a:b c:d --processes 2 --concurrency 3 --drain-seconds 4.5 --wait-seconds 6 --protect-task --host :: "
    "--port 0 --verify off --log-level debug --log-format json --reload"
)
BENCH_LINE = (
    "bench --events 1 --size 2 --queues 3 --concurrency 4 --processes 5 --producers 6 --rate 7.5 --warmup 8 "
    "--patience 9.5 --backend moto --endpoint aws --latency 1.5 --plot x.svg --yes --json"
)
REDRIVE_LINE = (
    "dlq redrive a:b --queue c --type d --reason e --id f --id g --limit 1 --rate 0.1 --force --dry-run --yes --json"
)
PURGE_LINE = (
    "dlq purge a:b --queue c --type d --reason e --reason f --id g --older-than-days 0.5 --limit 1 --dry-run "
    "--yes --json"
)


COMMAND = typer.main.get_command(app)


class Outcome(NamedTuple):
    code: object
    output: str


def invoke(line: str) -> Outcome:
    """Run a command line; typer's CliRunner would build all commands again for each."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as ended:
        COMMAND.main(shlex.split(line), prog_name="smartpipe")
    return Outcome(ended.value.code, output.getvalue())


@pytest.mark.parametrize(
    ("line", "function", "arguments", "options"),
    [
        ("worker", "supervise.run_worker", ([], WORKER), {"reload": False}),
        (
            WORKER_LINE,
            "supervise.run_worker",
            (
                ["a:b", "c:d"],
                WORKER
                | {
                    "processes": 2,
                    "concurrency": 3,
                    "drain_seconds": 4.5,
                    "wait_seconds": 6,
                    "protect_task": True,
                    "host": "::",
                }
                | {"port": 0, "verify": "off", "log_level": "debug", "log_format": "json"},
            ),
            {"reload": True},
        ),
        (
            "worker --supervised /x",
            "worker.run",
            ([], WORKER),
            {"process": None, "siblings": 1, "socket": Path("/x"), "development": False},
        ),
        (
            "worker a:b --supervised /x --siblings 3 --process 2 --development",
            "worker.run",
            (["a:b"], WORKER),
            {"process": 2, "siblings": 3, "socket": Path("/x"), "development": True},
        ),
        ("schema export", "schema.export.run_export", ([], Path("schemas")), {"as_json": False}),
        ("schema export a --directory b --json", "schema.export.run_export", (["a"], Path("b")), {"as_json": True}),
        ("relay", "relay.run", (RELAY,), {"once": False, "socket": None}),
        (
            "relay --once --host :: --port 0 --log-level error --log-format text --supervised /x",
            "relay.run",
            ({"host": "::", "port": 0, "log_level": "error", "log_format": "text"},),
            {"once": True, "socket": Path("/x")},
        ),
        ("store migrate", "store.run_migrate", (), {"as_json": False, "forget_old_claims": False}),
        (
            "store migrate --json --forget-old-claims",
            "store.run_migrate",
            (),
            {"as_json": True, "forget_old_claims": True},
        ),
        ("store migrate --sql", "store.print_sql", (), {"as_json": False, "forget_old_claims": False}),
        (
            "store migrate --sql --json --forget-old-claims",
            "store.print_sql",
            (),
            {"as_json": True, "forget_old_claims": True},
        ),
        ("new shop", "new.run.run_new", ("shop", "service"), {}),
        ("new shop --template api+worker", "new.run.run_new", ("shop", "api+worker"), {}),
        ("local", "local.run", ("ministack", "127.0.0.1", 0), {"as_json": False}),
        (
            "local --host 0.0.0.0 --port 65535 --backend moto --json",
            "local.run",
            ("moto", "0.0.0.0", 65_535),
            {"as_json": True},
        ),
        ("dev", "dev.run.run", ([], DevOptions("ministack", None, None, None, False, (), False)), {}),
        (
            "dev a:b --relay --run 'c d' --run e --one-process --port 65535 --backend moto --reload --log-level debug",
            "dev.run.run",
            (["a:b"], DevOptions("moto", 65_535, True, "debug", True, ("c d", "e"), True)),
            {},
        ),
        ("dev --no-reload --port 0", "dev.run.run", ([], DevOptions(port=0, reload=False)), {}),
        ("dev --describe", "dev.services.print_services", ([],), {}),
        ("dev --describe a:b", "dev.services.print_services", (["a:b"],), {}),
        ("bench", "bench.run_bench", (BENCH, BenchOptions(None, None, None, None, yes=False, as_json=False)), {}),
        (
            BENCH_LINE,
            "bench.run_bench",
            (
                {"events": 1, "size_bytes": 2, "queues": 3, "concurrency": 4, "processes": 5, "producers": 6}
                | {"rate_per_second": 7.5, "warmup": 8, "patience_seconds": 9.5},
                BenchOptions("moto", "aws", Path("x.svg"), 1.5, yes=True, as_json=True),
            ),
            {},
        ),
        ("topology plan", "topology.run_plan", ([],), {"every": False, "as_json": False}),
        ("topology plan a:b --all --json", "topology.run_plan", (["a:b"],), {"every": True, "as_json": True}),
        ("topology apply", "topology.run_apply", ([],), {"yes": False, "as_json": False}),
        ("topology apply a:b --yes --json", "topology.run_apply", (["a:b"],), {"yes": True, "as_json": True}),
        (
            "topology destroy",
            "topology.run_destroy",
            ([],),
            {"orphaned": False, "even_if_not_empty": False, "yes": False, "as_json": False},
        ),
        (
            "topology destroy a:b --orphaned --even-if-not-empty --yes --json",
            "topology.run_destroy",
            (["a:b"],),
            {"orphaned": True, "even_if_not_empty": True, "yes": True, "as_json": True},
        ),
        ("topology show", "show.run_show", ([],), {"as_json": False}),
        ("topology show a:b --json", "show.run_show", (["a:b"],), {"as_json": True}),
        ("topology export --format dot", "export.run_export", ([], "dot", None), {"alarms": False}),
        (
            "topology export a:b --format x --output y --alarms",
            "export.run_export",
            (["a:b"], "x", Path("y")),
            {"alarms": True},
        ),
        ("telemetry dashboards", "telemetry.files.run_dashboards", ([], "grafana", Path("dashboards"), []), {}),
        (
            "telemetry dashboards a:b --format x --directory y --label c=d --label e=f",
            "telemetry.files.run_dashboards",
            (["a:b"], "x", Path("y"), ["c=d", "e=f"]),
            {},
        ),
        ("telemetry alerts --format x", "telemetry.files.run_alerts", ([], "x", None, AlertOptions(), []), {}),
        (
            "telemetry alerts a:b --format x --output y --promise 1 --slow-handler 2 --runbooks z --label c=d",
            "telemetry.files.run_alerts",
            (["a:b"], "x", Path("y"), AlertOptions(1, 2, "z"), ["c=d"]),
            {},
        ),
        ("dlq list", "dlq.run_list", ([],), {"as_json": False}),
        ("dlq list a:b --json", "dlq.run_list", (["a:b"],), {"as_json": True}),
        ("dlq peek", "dlq.run_peek", ([], None, Selection(limit=10)), {"as_json": False}),
        (
            "dlq peek a:b --queue c --type d --type e --reason f --id g --limit 1 --json",
            "dlq.run_peek",
            (["a:b"], "c", Selection(types=("d", "e"), reasons=("f",), ids=("g",), limit=1)),
            {"as_json": True},
        ),
        (
            "dlq redrive",
            "redrive.run_redrive",
            ([], None, Selection(), RedriveOptions(None, force=False, dry_run=False, yes=False, as_json=False)),
            {},
        ),
        (
            REDRIVE_LINE,
            "redrive.run_redrive",
            (
                ["a:b"],
                "c",
                Selection(types=("d",), reasons=("e",), ids=("f", "g"), limit=1),
                RedriveOptions(0.1, force=True, dry_run=True, yes=True, as_json=True),
            ),
            {},
        ),
        ("dlq redrive --rate 10000", "redrive.run_redrive", ([], None, Selection(), RedriveOptions(10_000)), {}),
        (
            "dlq purge --queue a",
            "redrive.run_purge",
            ([], "a", Selection(), RedriveOptions(None, force=False, dry_run=False, yes=False, as_json=False)),
            {},
        ),
        (
            PURGE_LINE,
            "redrive.run_purge",
            (
                ["a:b"],
                "c",
                Selection(types=("d",), reasons=("e", "f"), ids=("g",), sent_before=1_000_000.0 - 43_200, limit=1),
                RedriveOptions(dry_run=True, yes=True, as_json=True),
            ),
            {},
        ),
        (
            "dlq purge --queue a --older-than-days 0",
            "redrive.run_purge",
            ([], "a", Selection(sent_before=1_000_000.0), RedriveOptions()),
            {},
        ),
    ],
)
def test_a_command_gets_its_options_and_their_defaults(
    line: str, function: str, arguments: tuple[Any, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def run(*arguments: Any, **options: Any) -> None:
        calls.append((arguments, options))
        raise typer.Exit(7)

    monkeypatch.setattr(f"smartpipe.cli.{function}", run)
    monkeypatch.setattr(dlq_app, "time", SimpleNamespace(time=lambda: 1_000_000.0))

    assert invoke(line).code == 7
    assert calls == [(arguments, options)]


@pytest.mark.parametrize(
    "line",
    [
        "local --port=-1",
        "local --port=65536",
        "dev --port=-1",
        "dev --port=65536",
        "dlq peek --limit=0",
        "dlq redrive --limit=0",
        "dlq redrive --rate=0.09",
        "dlq redrive --rate=10000.1",
        "dlq purge --queue=a --limit=0",
        "dlq purge --queue=a --older-than-days=-0.1",
        "publish order.placed --count=0",
        "publish order.placed --count=1000000001",
    ],
)
def test_a_value_outside_of_its_limits_is_a_wrong_command_line(line: str) -> None:
    result = invoke(line)

    assert result.code == 2
    assert f"Invalid value for '{line.rpartition(' ')[2].partition('=')[0]}'" in result.output


@pytest.mark.parametrize(
    ("line", "option"),
    [("dlq purge", "--queue"), ("topology export", "--format"), ("telemetry alerts", "--format")],
)
def test_a_required_option_has_no_default(line: str, option: str) -> None:
    result = invoke(line)

    assert result.code == 2
    assert f"Missing option '{option}'" in result.output


@pytest.mark.parametrize("code", [0, 3])
def test_local_ends_with_the_code_of_its_run(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.cli.local.run", lambda *_, **__: code)

    assert invoke("local").code == code


def test_the_version_is_printed_without_a_command() -> None:
    result = invoke("--version")

    assert (result.code, result.output) == (0, f"smartpipe {__version__}\n")


@pytest.mark.parametrize("group", ["", "topology", "dlq", "schema", "store"])
def test_a_group_without_a_command_prints_its_help(group: str) -> None:
    assert invoke(group).output == invoke(f"{group} --help").output == invoke(f"{group} -h").output


@pytest.mark.parametrize(
    ("command", "hidden"),
    [("worker", ("--process ", "--supervised", "--development")), ("relay", ("--supervised",)), ("dev", ("--desc",))],
)
def test_the_help_leaves_out_the_options_of_our_own_processes(command: str, hidden: tuple[str, ...]) -> None:
    text = invoke(f"{command} --help").output

    assert "--log-level" in text
    assert not any(option in text for option in hidden)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("worker", "If you name several, they run together in one process."),
        ("dlq list", "services in [tool.smartpipe]"),
    ],
)
def test_the_help_describes_a_target_below_the_options(command: str, sentence: str) -> None:
    above, _, below = invoke(f"{command} --help").output.partition("--help")

    assert "TARGET is" not in above
    assert "Arguments:" not in above
    assert sentence in " ".join(below.split())


def test_a_list_of_groups_has_their_whole_descriptions() -> None:
    text = " ".join(invoke("--help").output.split())

    assert "Create, compare and delete the topics, queues and subscriptions that services declare. Run it apart" in text


def test_a_list_of_commands_has_their_whole_descriptions() -> None:
    text = " ".join(invoke("dlq --help").output.split())

    assert "Show dead-letter messages, and return them to the queue. SQS counts a receive, and hides them mean" in text


@pytest.mark.parametrize(
    ("content", "completed"),
    [('[tool.smartpipe]\nservices = ["a:b", "c:d"]\n', ["a:b", "c:d"]), ("", []), ("no TOML", [])],
)
def test_a_shell_completes_the_configured_services_if_there_are_any(
    content: str, completed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(content)

    assert complete_targets() == completed
