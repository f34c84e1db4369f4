"""The processes that `smartpipe dev` runs: their command lines, their environments and their names."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.cli.dev import project as dev_project
from smartpipe.cli.dev.project import DevOptions, Project
from smartpipe.cli.dev.services import DeclaredService, describe_services, print_services
from smartpipe.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

BILLING = DeclaredService("shop:billing", "billing", handles=True, idempotent=False)
AUDIT = DeclaredService("shop:audit", "audit", handles=True, idempotent=True)
PORTAL = DeclaredService("shop:portal", "portal", handles=False, idempotent=False)
ENVIRONMENT = {"AWS_REGION": "us-east-1"}
DEFAULT_FLAGS = ("--log-format", "text", "--wait-seconds", "1", "--processes", "1", "--development")
MODULE = """
print("imported")
from tests.support import exported
portal, archive, cinema = exported.portal(), exported.archive(), exported.cinema()
again = exported.archive()
"""


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the arguments of each call that configures the log; the log of the tests stays as it is."""
    calls: list[Any] = []
    monkeypatch.setattr(dev_project, "configure", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(dev_project, "has_colours", lambda: False)
    for name in ("SMARTPIPE_IDEMPOTENCY_URL", "SMARTPIPE_OUTBOX_URL", "SMARTPIPE_WAIT_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def make(options: DevOptions | None = None, services: Sequence[DeclaredService] = (BILLING,), **flags: Any) -> Project:
    project = Project(options or DevOptions(), WorkerSettings.load(**flags))
    project.update(services)
    return project


def test_by_default_dev_runs_the_services_only() -> None:
    assert DevOptions() == DevOptions("ministack", None, None, None, False, (), False)


def test_each_service_with_handlers_gets_a_worker() -> None:
    commands = make(services=[BILLING, PORTAL, AUDIT]).build_commands(ENVIRONMENT)

    assert [(one.name, one.arguments[:2], one.prefix, one.external) for one in commands] == [
        ("billing", ("worker", "shop:billing"), "billing   │ ", False),
        ("audit", ("worker", "shop:audit"), "audit     │ ", False),
    ]
    assert sorted(commands[0].arguments[2:]) == sorted(DEFAULT_FLAGS)
    assert commands[0].arguments[-1] == "--development"


def test_workers_get_the_log_level_and_the_users_wait() -> None:
    [command] = make(DevOptions(log_level="debug"), wait_seconds=7).build_commands(ENVIRONMENT)

    assert sorted(command.arguments[2:]) == sorted(
        ("--log-level", "debug", "--log-format", "text", "--wait-seconds", "7", "--processes", "1", "--development")
    )


@pytest.mark.parametrize(
    ("services", "names", "targets"),
    [
        ([BILLING, PORTAL, AUDIT], ["worker"], ("shop:billing", "shop:audit")),
        ([PORTAL], [], None),
    ],
)
def test_all_services_can_run_in_one_process(
    services: list[DeclaredService], names: list[str], targets: tuple[str, ...] | None
) -> None:
    commands = make(DevOptions(one_process=True), services).build_commands(ENVIRONMENT)

    assert [one.name for one in commands] == names
    if targets is not None:
        assert commands[0].arguments[1:3] == targets


@pytest.mark.parametrize(
    ("services", "url", "used"),
    [
        ([BILLING], None, False),
        ([BILLING, AUDIT], None, True),
        ([BILLING, AUDIT], "", True),
        ([BILLING, AUDIT], "redis://localhost", False),
    ],
)
def test_idempotent_handlers_use_a_store_in_memory_if_none_is_set(
    services: list[DeclaredService],
    url: str | None,
    used: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if url is not None:
        monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", url)
    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        commands = make(services=services).build_commands(ENVIRONMENT)

    store = {"SMARTPIPE_IDEMPOTENCY_URL": "memory://"} if used else {}
    assert [one.environment for one in commands] == [ENVIRONMENT | store] * len(services)
    assert ("SMARTPIPE_IDEMPOTENCY_URL is not set: idempotent handlers use memory://" in caplog.text) == used


def test_the_topology_of_all_services_is_applied_without_a_question() -> None:
    command = make(services=[BILLING, PORTAL]).build_provision_command(ENVIRONMENT)

    assert command == (
        "topology",
        ("topology", "apply", "--yes", "shop:billing", "shop:portal"),
        ENVIRONMENT,
        "smartpipe │ ",
        False,
    )


def test_a_relay_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--relay needs a database: set SMARTPIPE_OUTBOX_URL"):
        make(DevOptions(relay=True))

    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://localhost/shop")
    commands = make(DevOptions(relay=True), log_level="warning").build_commands(ENVIRONMENT)

    assert [one.name for one in commands] == ["billing", "relay"]
    assert commands[1] == (
        "relay",
        ("relay", "--log-format", "text", "--log-level", "warning"),
        ENVIRONMENT,
        "relay     │ ",
        False,
    )


def test_without_the_option_no_relay_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://localhost/shop")

    assert [one.name for one in make().build_commands(ENVIRONMENT)] == ["billing"]


def test_a_relay_and_programs_have_names_that_no_service_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", "postgresql://localhost/shop")
    python = Path(sys.executable).name
    services = [BILLING._replace(name="relay"), AUDIT._replace(name=f"{python}-2")]
    options = DevOptions(relay=True, programs=[f"{python} -m one", f"{python} -m two 'a b'"])

    commands = make(options, services).build_commands(ENVIRONMENT)

    assert [one.name for one in commands] == ["relay", f"{python}-2", "relay-2", python, f"{python}-3"]
    assert [one.external for one in commands] == [False, False, False, True, True]
    assert [one.arguments[1:] for one in commands[3:]] == [("-m", "one"), ("-m", "two", "a b")]
    assert commands[3].arguments[0] == str(Path(sys.executable).parent / python)


def test_the_output_of_programs_is_not_buffered_unless_the_environment_says_so() -> None:
    project = make(DevOptions(programs=[Path(sys.executable).name]))

    assert project.build_commands(ENVIRONMENT)[-1].environment == ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    own = {"PYTHONUNBUFFERED": ""}
    assert project.build_commands(own)[-1].environment == own


def test_a_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "serve"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"/nowhere{os.pathsep}{tmp_path}")

    [_, command] = make(DevOptions(programs=["serve it"])).build_commands(ENVIRONMENT)

    assert (command.name, command.arguments) == ("serve", (str(program), "it"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "--run is empty: name a program, as in --run 'uvicorn app:app'"),
        ("  ", "--run is empty: name a program, as in --run 'uvicorn app:app'"),
        ("'a", """--run "'a" is not a command line: No closing quotation"""),
        (
            "no-program --x",
            "--run 'no-program --x': there is no program 'no-program' in this virtual environment or on the PATH",
        ),
    ],
)
def test_a_program_that_cannot_be_run_is_an_error(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make(DevOptions(programs=[text]))

    assert str(raised.value) == error


def test_the_log_is_configured_when_the_width_of_the_names_changes(configured: list[Any]) -> None:
    project = make(log_level="warning")
    assert project.own_prefix == "smartpipe │ "

    project.update([AUDIT])
    project.update([BILLING._replace(name="a-longer-name")])

    assert project.own_prefix == "smartpipe     │ "
    assert configured == [
        (("warning", "text"), {"prefix": "smartpipe │ "}),
        (("warning", "text"), {"prefix": "smartpipe     │ "}),
    ]


def test_services_that_are_new_since_the_last_time_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        project = make(services=[BILLING])
        project.update([BILLING])
        project.update([PORTAL, BILLING, BILLING._replace(name="third")])
        project.update([BILLING])

    assert caplog.messages == ["new services: portal, third"]


@pytest.fixture
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev_shop.py").write_text(MODULE)
    (tmp_path / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["dev_shop:archive"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dev_shop", raising=False)


@pytest.mark.usefixtures("_shop")
def test_services_are_described_by_what_their_processes_depend_on() -> None:
    assert describe_services(["dev_shop:portal", "dev_shop:archive"]) == [
        ("dev_shop:portal", "portal", False, False),
        ("dev_shop:archive", "archive", True, False),
    ]
    assert [one.target for one in describe_services([])] == ["dev_shop:archive"]


@pytest.mark.usefixtures("_shop")
def test_services_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="archive"):
        describe_services(["dev_shop:archive", "dev_shop:again"])


@pytest.mark.usefixtures("_shop")
def test_the_description_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_services(["dev_shop:archive"])

    out, err = capsys.readouterr()
    assert json.loads(out) == [["dev_shop:archive", "archive", True, False]]
    assert err == "imported\n"
