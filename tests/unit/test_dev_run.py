"""What `smartpipe dev` starts, in which order, and how it ends. The broker and all processes are replaced."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.cli.dev import run as dev_run
from smartpipe.cli.dev.environment import DotEnv
from smartpipe.cli.dev.project import DevOptions
from smartpipe.cli.dev.services import DeclaredService, describe_current_services
from smartpipe.errors import SmartpipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN_PORT = 25_000
SERVICES = [DeclaredService("shop:billing", "billing", handles=True, idempotent=False)]
MORE_SERVICES = [*SERVICES, DeclaredService("shop:audit", "audit", handles=True, idempotent=False)]


class Dev:
    """Replaces everything that `smartpipe dev` starts, and records what happens."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.supervisors: list[Any] = []
        self.free = self.watches = True
        self.coloured = False
        self.code = 0
        self.provision_codes = [0]
        self.starts = 1
        self.broker_codes: list[int | None] = []
        self.current: list[DeclaredService] | None = MORE_SERVICES
        self.on_start: Any = lambda: None
        dev = self

        class Broker:
            version, last = "1", "it printed this"

            def __init__(self, backend: str, *, port: int) -> None:
                self.backend, self.port = backend, port or 4_242
                self.endpoint_url = f"http://127.0.0.1:{self.port}"
                self.environment = {"AWS_ENDPOINT_URL": self.endpoint_url}
                dev.happened.append(("broker", backend, port))

            def start(self) -> None:
                dev.happened.append("broker starts")

            def stop(self) -> None:
                dev.happened.append("broker stops")

            def wait(self, seconds: float) -> int | None:
                assert seconds == 0
                return dev.broker_codes.pop(0) if dev.broker_codes else None

            def last_output(self) -> str:
                return self.last

        self.broker = Broker

    async def run_command(self, command: Any) -> int:
        self.happened.append((command.arguments, command.environment))
        return self.provision_codes.pop(0) if len(self.provision_codes) > 1 else self.provision_codes[0]

    async def describe_current_services(self, targets: Any, prefix: str) -> list[DeclaredService] | None:
        self.happened.append(("describe", targets, prefix))
        return self.current


class Supervisor:
    """Prepares some starts, and runs no process."""

    def __init__(self, dev: Dev, commands: Any, **options: Any) -> None:
        self._dev = dev
        self.commands, self.options = commands, options
        self.stopped = asyncio.Event()
        dev.supervisors.append(self)

    def stop(self, reason: str = "") -> None:
        self._dev.happened.append(("stop", reason))
        self.stopped.set()

    def stop_hard(self, reason: str = "") -> None: ...

    def kill(self, reason: str = "") -> None: ...

    async def run(self) -> int:
        for _ in range(self._dev.starts):
            code = await self.options["prepare"]()
            if code:
                return int(code)
            self._dev.happened.append([one.name for one in self.commands])
        if self._dev.broker_codes:
            await self.stopped.wait()
        return self._dev.code


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dev]:
    dev = Dev()
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev_run, "EmbeddedBroker", dev.broker)
    monkeypatch.setattr(dev_run, "Supervisor", partial(Supervisor, dev))
    monkeypatch.setattr(dev_run, "SourceWatcher", lambda directory, also: ("watcher", directory, also))
    monkeypatch.setattr(dev_run, "describe_services", lambda _: SERVICES)
    monkeypatch.setattr(dev_run, "describe_current_services", dev.describe_current_services)
    monkeypatch.setattr(dev_run, "run_command", dev.run_command)
    monkeypatch.setattr(dev_run, "choose_port", lambda _: OWN_PORT)
    monkeypatch.setattr(dev_run, "is_free", lambda port: port != OWN_PORT or dev.free)
    monkeypatch.setattr(dev_run, "can_watch", lambda: dev.watches)
    monkeypatch.setattr(dev_run, "has_colours", lambda: dev.coloured)
    monkeypatch.setattr(dev_run, "raise_file_limit", lambda: dev.happened.append("file limit"))
    monkeypatch.setattr("smartpipe.cli.dev.project.configure", lambda *_, **__: None)
    monkeypatch.setattr(dev_run, "BROKER_CHECK_SECONDS", 0.001)
    monkeypatch.setattr(dev_run, "exit_now", raise_exit)
    yield dev
    os.environ.clear()
    os.environ.update(before)


def raise_exit(code: int) -> None:
    raise SystemExit(code)


def run(options: DevOptions | None = None) -> int:
    with pytest.raises(SystemExit) as ended:
        dev_run.run(["shop:billing"], options or DevOptions())
    return int(str(ended.value.code))


def provisioned_with(dev: Dev) -> list[dict[str, str]]:
    """Return the environments of the commands that apply the topology."""
    return [one[1] for one in dev.happened if isinstance(one, tuple) and isinstance(one[0], tuple)]


def test_the_broker_starts_first_then_the_topology_is_applied_and_the_broker_stops_last(
    dev: Dev, capsys: pytest.CaptureFixture[str]
) -> None:
    dev.code = 3

    assert run() == 3

    [environment] = provisioned_with(dev)
    assert dev.happened == [
        ("broker", "ministack", OWN_PORT),
        "file limit",
        "broker starts",
        (("topology", "apply", "--yes", "shop:billing"), environment),
        ["billing"],
        "broker stops",
    ]
    assert environment["AWS_ENDPOINT_URL"] == f"http://127.0.0.1:{OWN_PORT}"
    assert f"export AWS_ENDPOINT_URL=http://127.0.0.1:{OWN_PORT}\n" in capsys.readouterr().out


@pytest.mark.parametrize("coloured", [False, True])
def test_processes_have_colours_if_the_terminal_has(dev: Dev, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    dev.coloured = coloured

    run()

    [environment] = provisioned_with(dev)
    assert environment.get("FORCE_COLOR") == ("1" if coloured else None)


@pytest.mark.parametrize(
    ("port", "free", "used"), [(None, True, OWN_PORT), (None, False, 0), (0, True, 0), (80, True, 80), (80, False, 80)]
)
def test_the_port_is_that_of_the_directory_unless_it_is_taken_or_the_user_names_one(
    dev: Dev, port: int | None, free: bool, used: int, caplog: pytest.LogCaptureFixture
) -> None:
    dev.free = free

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run(DevOptions("moto", port))

    assert dev.happened[0] == ("broker", "moto", used)
    told = f"port {OWN_PORT}, the one of this directory, is in use: the broker uses port 4242" in caplog.messages
    assert told == (port is None and not free)


@pytest.mark.parametrize(
    ("reload", "watches", "watching", "told"),
    [
        (None, True, True, False),
        (None, False, False, True),
        (True, False, True, False),
        (False, True, False, False),
        (False, False, False, False),
    ],
)
def test_sources_are_watched_if_watchfiles_is_installed_or_as_the_user_wishes(
    dev: Dev,
    reload: bool | None,
    watches: bool,
    watching: bool,
    told: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dev.watches = watches

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run(DevOptions(reload=reload))

    [supervisor] = dev.supervisors
    assert supervisor.options["watcher"] == (("watcher", tmp_path, (".env",)) if watching else None)
    assert ("changes of the sources will not be detected" in caplog.text) == told


def test_a_supervisor_has_the_settings_of_a_worker(dev: Dev, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_DRAIN_SECONDS", "9")
    monkeypatch.setenv("SMARTPIPE_LIVENESS_SECONDS", "45")

    run()

    [supervisor] = dev.supervisors
    assert (supervisor.options["drain_seconds"], supervisor.options["liveness_seconds"]) == (9.0, 45.0)


def test_variables_of_the_file_and_misspelt_settings_are_logged(
    dev: Dev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("SHOP_A=1\nSHOP_B=2\n")
    monkeypatch.setenv("SMARTPIPE_PREFX", "x")

    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run()

    assert caplog.messages == [
        "SMARTPIPE_PREFX is not a setting of smartpipe and is ignored; did you mean SMARTPIPE_PREFIX?",
        "read from .env: SHOP_A, SHOP_B",
    ]
    assert provisioned_with(dev)[0]["SHOP_A"] == "1"


def test_without_a_file_no_variables_are_logged(dev: Dev, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "smartpipe.supervisor"):
        run()

    assert dev.happened
    assert caplog.messages == []


def test_each_further_start_reads_the_file_and_the_services_again(
    dev: Dev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev.starts = 2
    loaded = 0
    load = DotEnv.load

    def load_other(dotenv: Any) -> list[str]:
        nonlocal loaded
        loaded += 1
        (tmp_path / ".env").write_text(f"SHOP_ROUND={loaded}\n")
        return load(dotenv)

    monkeypatch.setattr(DotEnv, "load", load_other)

    assert run() == 0

    assert [one["SHOP_ROUND"] for one in provisioned_with(dev)] == ["1", "2"]
    assert [one for one in dev.happened if isinstance(one, list)] == [["billing"], ["billing", "audit"]]
    assert ("describe", ["shop:billing"], "smartpipe │ ") in dev.happened


@pytest.mark.parametrize("fault", ["file", "services"])
def test_a_file_or_services_that_cannot_be_read_prevent_a_restart(
    dev: Dev, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dev.starts = 2
    if fault == "services":
        dev.current = None
    else:
        results: list[Any] = [[], ConfigError(["first", "second"])]

        def load(_: Any) -> Any:
            result = results.pop(0)
            if isinstance(result, ConfigError):
                raise result
            return result

        monkeypatch.setattr(DotEnv, "load", load)

    with caplog.at_level(logging.ERROR, "smartpipe.supervisor"):
        assert run() == 2

    assert len(provisioned_with(dev)) == 1
    assert caplog.messages == (["first", "second"] if fault == "file" else [])


def test_a_topology_that_cannot_be_applied_starts_no_process(dev: Dev) -> None:
    dev.provision_codes = [4]

    assert run() == 4

    assert dev.supervisors[0].commands == []
    assert dev.happened[-1] == "broker stops"


def test_if_the_broker_ends_everything_drains_and_the_error_has_its_output(dev: Dev) -> None:
    dev.broker_codes = [None, None, 0]

    with pytest.raises(SmartpipeError) as raised:
        dev_run.run(["shop:billing"], DevOptions())

    assert str(raised.value) == "the broker ended unexpectedly with exit code 0: it printed this"
    assert dev.happened[-2:] == [("stop", "the broker has ended"), "broker stops"]


class Child:
    """A process that describes services."""

    def __init__(self, code: int, output: bytes, errors: bytes) -> None:
        self.returncode: int | None = None
        self.code, self.output, self.errors = code, output, errors
        self.killed = self.waited = False
        self.hangs = False

    async def communicate(self) -> tuple[bytes, bytes]:
        if self.hangs:
            await asyncio.sleep(3_600)
        self.returncode = self.code
        return self.output, self.errors

    def kill(self) -> None:
        self.killed = True

    async def wait(self) -> int:
        self.waited = True
        return -9


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The process that is started to describe services, the way it is started, and the lines that are printed."""
    found = SimpleNamespace(child=None, words=(), options={}, lines=[])

    async def start(*words: str, **options: Any) -> Child:
        found.words, found.options = words, options
        assert isinstance(found.child, Child)
        return found.child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr("smartpipe.cli.dev.services.standard_output", lambda: SimpleNamespace(write=found.lines.append))
    return found


async def test_current_services_are_described_by_a_new_process(started: SimpleNamespace) -> None:
    started.child = Child(0, b'[["shop:billing", "billing", true, false]]', b"a warning\nwithout an end")

    assert await describe_current_services(["shop:billing"], "> ") == SERVICES

    assert started.words[1:] == ("-m", "smartpipe", "dev", "--describe", "shop:billing")
    assert started.options["start_new_session"]
    assert started.lines == ["> a warning\n", "> without an end\n"]
    assert not started.child.killed


async def test_services_that_cannot_be_imported_are_none_and_the_reason_is_printed(started: SimpleNamespace) -> None:
    started.child = Child(2, b"", b"no module\n")

    assert await describe_current_services([], "> ") is None

    assert started.lines == ["> no module\n"]


async def test_the_process_that_describes_services_ends_with_a_cancelled_call(started: SimpleNamespace) -> None:
    started.child = Child(0, b"", b"")
    started.child.hangs = True
    describing = asyncio.create_task(describe_current_services([], ""))
    await asyncio.sleep(0)

    describing.cancel()
    await asyncio.wait([describing])

    assert describing.cancelled()
    assert (started.child.killed, started.child.waited) == (True, True)
