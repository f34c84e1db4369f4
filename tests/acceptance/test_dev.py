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


PRODUCER = """
from shop import Placed
from smartpipe import Service

api = Service("api", publishes=[Placed])
"""
FAILING = """
from shop import Placed
from smartpipe import Delivery, RetryPolicy, Service

greeter = Service("greeter", retry=RetryPolicy(attempts=2, base_seconds=0.1))

def greeting_for(language: str) -> str:
    return {"de": "Hallo"}[language]

@greeter.subscribe(Placed, idempotent=True)
async def greet(event: Placed, delivery: Delivery) -> None:
    print(greeting_for(event.name))
"""


def start_dev(project: Path, closing: ExitStack, *arguments: str, **environment: str) -> Process:
    process = Process("dev", *arguments, directory=str(project), **environment)
    closing.callback(process.end)
    return process


def test_a_service_that_is_added_to_pyproject_gets_a_worker(
    project: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "producer.py").write_text(PRODUCER)
    (project / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["shop:shop"]\n')
    process = start_dev(project, closing)
    process.wait_until(lambda: any("ready: shop polls" in line for line in process.lines))

    (project / "pyproject.toml").write_text(
        '[tool.smartpipe]\nservices = ["shop:shop", "shop:audit", "producer:api"]\n'
    )
    process.wait_until(lambda: any("ready: all 2 processes" in line for line in process.lines))
    publish(Placed(name="ada"), process.lines, monkeypatch)

    process.wait_until(lambda: {"shop        │ shipping ada", "order-audit │ noted ada"} <= set(process.lines))
    assert any("new services: order-audit, api" in line for line in process.lines)


def test_the_port_of_the_broker_is_the_same_each_time_and_another_one_if_it_is_taken(
    project: Path, closing: ExitStack
) -> None:
    def exported(process: Process) -> str:
        process.wait_until(lambda: any(line.startswith("export AWS_ENDPOINT_URL") for line in process.lines))
        return next(line for line in process.lines if line.startswith("export AWS_ENDPOINT_URL"))

    first = start_dev(project, closing, "shop:shop", "--no-reload")
    port = exported(first)
    beside = start_dev(project, closing, "shop:shop", "--no-reload")
    other_port = exported(beside)
    for process in (first, beside):
        process.signal(signal.SIGINT)
        process.wait()
    again = start_dev(project, closing, "shop:shop", "--no-reload")

    assert exported(again) == port != other_port
    assert any("the one of this directory, is in use: the broker uses port" in line for line in beside.lines)


def test_dotenv_is_read_the_environment_wins_and_programs_get_both(project: Path, closing: ExitStack) -> None:
    (project / ".env").write_text(
        "FROM_FILE='of the file'\nFROM_BOTH=of the file\nAWS_ENDPOINT_URL=http://127.0.0.1:9\n"
    )
    program = (
        "python -c \"import os; print(os.environ['FROM_FILE'], '+', os.environ['FROM_BOTH'], "
        "'+', os.environ['AWS_ENDPOINT_URL'])\""
    )
    process = start_dev(project, closing, "shop:shop", "--run", program, FROM_BOTH="of the environment")
    process.wait_until(lambda: any("ready: shop polls" in line for line in process.lines))
    endpoint = next(line for line in process.lines if line.startswith("export AWS_ENDPOINT_URL")).partition("=")[2]

    expected = f"of the file + of the environment + {endpoint}"
    process.wait_until(lambda: f"python    │ {expected}" in process.lines)
    (project / ".env").write_text("FROM_FILE=changed\n")
    process.wait_until(lambda: f"python    │ changed + of the environment + {endpoint}" in process.lines)

    assert any("read from .env: AWS_ENDPOINT_URL, FROM_FILE" in line for line in process.lines)
    assert any("process python has ended with exit code 0" in line for line in process.lines)


FAILS_WHEN_IT_STOPS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("running", flush=True)
time.sleep(60)
"""


def test_a_program_stops_with_everything_else_and_a_failing_one_is_restarted(project: Path, closing: ExitStack) -> None:
    (project / "crash.py").write_text("print('crashing'); raise SystemExit(3)")
    (project / "fail.py").write_text(FAILS_WHEN_IT_STOPS)
    server = "python -m http.server 0 --bind 127.0.0.1"
    programs = [word for program in (server, "python crash.py", "python fail.py") for word in ("--run", program)]
    process = start_dev(project, closing, "shop:shop", "--no-reload", *programs)
    process.wait_until(lambda: sum("python-2  │ crashing" in line for line in process.lines) >= 2)
    process.wait_until(lambda: any("python-3  │ running" in line for line in process.lines))
    process.wait_until(lambda: any("python    │ Serving HTTP" in line for line in process.lines))
    children = children_of(process.pid)

    process.signal(signal.SIGTERM)

    assert process.wait() == 0, process.lines
    until_blocking(lambda: not any(map(is_running, children)))


def test_events_are_lines_and_the_first_failure_shows_the_users_part_of_the_traceback(
    project: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "greetings.py").write_text(FAILING)
    process = start_dev(project, closing, "greetings:greeter", "shop:audit", "--no-reload", "--one-process")
    process.wait_until(lambda: any("ready: greeter polls" in line for line in process.lines))
    process.wait_until(lambda: any("ready: order-audit polls" in line for line in process.lines))
    publish(Placed(name="en"), process.lines, monkeypatch)
    process.wait_until(lambda: any("Dead-lettered (retries-exhausted)" in line for line in process.lines))

    text = "\n".join(process.lines)
    first, _, dead_lettered = text.partition("Handler failed, will retry")[2].partition("Dead-lettered")
    assert f'File "{project}/greetings.py", line 8, in greeting_for' in first
    assert any(line.endswith("KeyError: 'en'") for line in first.splitlines())
    assert "site-packages" not in first
    assert "/smartpipe/consumer/" not in text
    assert "Traceback" not in dead_lettered, "it is the same traceback"
    assert any(re.search(r"info    handled dev.placed by shop.note in \d+ ms", line) for line in process.lines)
    assert any("idempotent handlers use memory://" in line for line in process.lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["shop:shop", "--run", "no-such-program app:app"], "there is no program 'no-such-program'"),
        (["shop:shop", "--run", "  "], "--run is empty"),
        (["shop:shop", "--run", "a 'b"], "is not a command line: No closing quotation"),
        (["shop:shop", "--relay"], "--relay needs a database: set SMARTPIPE_OUTBOX_URL"),
        (["shop:shop", "shop:rival"], "queue 'shop' is claimed by two services"),
    ],
)
def test_wrong_programs_and_services_are_reported_before_anything_starts(
    project: Path, arguments: list[str], sentence: str
) -> None:
    with (project / "shop.py").open("a") as source:
        source.write("rival = Service('rival', queue='shop')\nrival.subscribe(Placed)(note)\n")

    result = smartpipe("dev", *arguments, directory=str(project), SMARTPIPE_OUTBOX_URL="")

    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stdout == ""


def test_dev_runs_a_relay_of_the_outbox(project: Path, closing: ExitStack, postgres_url: str) -> None:
    (project / ".env").write_text(f"SMARTPIPE_OUTBOX_URL={postgres_url}\n")
    process = start_dev(project, closing, "shop:shop", "--relay", "--no-reload")
    process.wait_until(lambda: any("ready: all 2 processes" in line for line in process.lines))
    assert any(line.startswith("relay     │ ") and "relaying the outbox" in line for line in process.lines)

    process.signal(signal.SIGINT)

    assert process.wait() == 0, process.lines
    assert any(line.startswith("relay     │ ") and "stopped: published" in line for line in process.lines)


def test_dev_without_a_worker_runs_until_a_signal(project: Path, closing: ExitStack) -> None:
    (project / "producer.py").write_text(PRODUCER)
    process = start_dev(project, closing, "producer:api", "--no-reload")
    process.wait_until(lambda: any("change made" in line for line in process.lines))

    process.signal(signal.SIGINT)

    assert process.wait() == 0
