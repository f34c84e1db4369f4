"""`smartpipe dev`: broker, topology and workers in one terminal."""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smartpipe import EmbeddedBroker, Event, Topic
from smartpipe.blocking import Publisher
from tests.support.processes import Process, children_of, is_running, smartpipe
from tests.support.terminal import Terminal
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHOP = """
from smartpipe import Event, Service, Topic

class Placed(Event, topic=Topic("placed"), type="dev.placed", version="1.0"):
    name: str

class Paid(Event, topic=Topic("paid"), type="dev.paid", version="1.0"):
    name: str

shop, audit = Service("shop"), Service("order-audit")

@shop.subscribe(Placed)
async def ship(event: Placed) -> None:
    print("shipping", event.name)

@audit.subscribe(Placed)
async def note(event: Placed) -> None:
    print("noted", event.name)
"""
MORE = """
@audit.subscribe(Paid)
async def note_payment(event: Paid) -> None:
    print("paid", event.name)
"""
TARGETS = ("shop:shop", "shop:audit")


class Placed(Event, topic=Topic("placed"), type="dev.placed", version="1.0"):
    name: str


class Paid(Event, topic=Topic("paid"), type="dev.paid", version="1.0"):
    name: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.setenv("SMARTPIPE_PREFIX", "dev-")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def publish(event: Event, lines: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish as from another terminal, with the environment variables that `dev` prints."""
    for line in lines:
        if line.startswith("export "):
            monkeypatch.setenv(*line.removeprefix("export ").split("=", 1))
    with Publisher("test") as publisher:
        publisher.publish(event)


def test_dev_runs_all_services_in_one_terminal_until_ctrl_c(
    project: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(project, "dev", *TARGETS)
    closing.callback(terminal.end)
    terminal.wait_for("ready: all 2 processes")
    publish(Placed(name="ada"), terminal.lines, monkeypatch)
    terminal.wait_for("shipping ada")
    terminal.wait_for("noted ada")
    processes = children_of(terminal.pid)

    terminal.type("\x03")

    assert terminal.wait() == 0, "\n".join(terminal.lines)
    assert terminal.lines[0].startswith("# ministack")
    assert sum(line.startswith("export AWS_") for line in terminal.lines) == 5
    assert "\x1b[36mshop        │ \x1b[0mshipping ada" in terminal.lines
    assert "\x1b[35morder-audit │ \x1b[0mnoted ada" in terminal.lines
    assert not any("stopping hard" in line for line in terminal.lines)
    assert sum("stopped: received 1, handled 1" in line for line in terminal.lines) == 2
    assert len(processes) == 3
    until_blocking(lambda: not any(map(is_running, processes)))


def test_without_a_terminal_lines_are_plain_and_variables_of_other_brokers_are_removed(
    project: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_broker = {
        "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9",
        "AWS_PROFILE": "nope",
        "SMARTPIPE_ACCOUNT_ID": "1" * 12,
    }
    (project / "pyproject.toml").write_text(f"[tool.smartpipe]\nservices = {list(TARGETS)}\n")
    process = Process("dev", "--no-reload", directory=str(project), **other_broker)
    closing.callback(process.end)
    process.wait_until(lambda: any("ready: all 2 processes" in line for line in process.lines))
    publish(Placed(name="ada"), process.lines, monkeypatch)
    process.wait_until(lambda: {"shop        │ shipping ada", "order-audit │ noted ada"} <= set(process.lines))

    process.signal(signal.SIGTERM)

    assert process.wait() == 0
    assert not any("\x1b" in line for line in process.lines)
    printed = [line for line in process.lines if not re.match("# |export ", line)]
    assert all(re.match("(smartpipe  |shop       |order-audit) │ ", line) for line in printed)


def test_after_a_change_the_topology_is_applied_before_the_workers_start(
    project: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process("dev", *TARGETS, directory=str(project))
    closing.callback(process.end)
    process.wait_until(lambda: any("ready: all 2 processes" in line for line in process.lines))

    (project / "shop.py").write_text(SHOP + "def broken(:\n")
    process.wait_until(lambda: any("not starting any process; waiting for a change" in line for line in process.lines))
    (project / "shop.py").write_text(SHOP + MORE)
    process.wait_until(lambda: sum("ready: all 2 processes" in line for line in process.lines) >= 2)
    publish(Paid(name="ada"), process.lines, monkeypatch)

    process.wait_until(lambda: "order-audit │ paid ada" in process.lines)
    assert any(line.endswith("] create subscription dev-paid → dev-order-audit") for line in process.lines)
    process.signal(signal.SIGINT)
    assert process.wait() == 0


def test_when_its_broker_dies_dev_drains_and_reports_it(project: Path, closing: ExitStack) -> None:
    process = Process("dev", "shop:shop", "--no-reload", directory=str(project))
    closing.callback(process.end)
    process.wait_until(lambda: any("ready: shop polls" in line for line in process.lines))
    [broker] = [
        pid for pid in children_of(process.pid) if "smartpipe.local.child" in Path(f"/proc/{pid}/cmdline").read_text()
    ]

    os.kill(broker, signal.SIGKILL)

    assert process.wait() == 1
    assert any("the broker ended unexpectedly with exit code -9" in line for line in process.lines)
    assert any(line.startswith("shop      │ ") and "stopped" in line for line in process.lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no TARGET: name one, such as signup.email_verification:service, or list services in pyproject.toml"),
        (["nowhere:service"], "no module 'nowhere'"),
        (["shop:shop", "--backend", "rabbitmq"], "backend 'rabbitmq' is not one of ministack, moto"),
        (["shop:shop", "--log-level", "loud"], "--log-level=loud: input should be"),
    ],
)
def test_a_configuration_error_is_reported_in_one_line_and_nothing_is_started(
    project: Path, arguments: list[str], sentence: str
) -> None:
    result = smartpipe("dev", *arguments, directory=str(project))

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("smartpipe: ")
    assert sentence in line
    assert result.stdout == ""


def test_a_broker_port_in_use_is_reported_in_one_line(project: Path, ministack: EmbeddedBroker) -> None:
    result = smartpipe("dev", "shop:shop", "--port", str(ministack.port), directory=str(project))

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"smartpipe: cannot bind port {ministack.port} of 127.0.0.1")
