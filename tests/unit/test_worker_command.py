"""The command `smartpipe worker`: one process, or a supervisor with several. No process is started."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import ConfigError
from smartpipe.cli import supervise
from smartpipe.cli import worker as command
from smartpipe.cli.worker import is_terminal, load_settings, load_worker_services
from smartpipe.errors import TopologyError
from smartpipe.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.telemetry.resource import ProcessResource

MODULE = """
from tests.support import exported
archive, mailer, again = exported.archive(), exported.mailer(), exported.archive()
"""


class Working:
    """Replaces workers, supervisors and their transport, and records what happens."""

    def __init__(self) -> None:
        self.happened: list[Any] = []
        self.drifts: list[str] = []
        self.code = 0
        self.terminals: list[object] = []

    async def check_credentials(self) -> None:
        self.happened.append("credentials")

    async def verify(self, service: Any, session: Any) -> list[str]:
        assert session.check_credentials == self.check_credentials
        self.happened.append(("verify", service.name))
        return self.drifts

    def make(self, kind: str) -> Any:
        """Return a class of workers, or of groups of them."""
        found = self

        class Worker:
            def __init__(self, services: Any, transport: Any, settings: WorkerSettings, **options: Any) -> None:
                self._services = services if kind == "group" else [services]
                self._verify = options["verify"]
                found.happened.append((kind, [one.name for one in self._services], options["socket"]))

            def stop(self, _: str) -> None:
                found.happened.append("stop")

            def kill(self, _: str) -> None:
                found.happened.append("kill")

            async def run(self) -> int:
                checks = map(self._verify, self._services) if kind == "group" else [self._verify]
                for check in checks:
                    if check is not None:
                        await check()
                return found.code

        return Worker

    def configure(self, *args: Any, resource: ProcessResource, **options: Any) -> None:
        assert not resource.problem
        self.happened.append((*args, options))

    def supervisor(self, commands: Any, **options: Any) -> Any:
        async def run() -> int:
            self.happened.append(("supervisor", commands, options))
            return self.code

        calls = {name: lambda _, name=name: self.happened.append(name) for name in ("stop", "stop_hard", "kill")}
        return SimpleNamespace(run=run, **calls)


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Working:
    found = Working()

    @contextmanager
    def handle(name: str, *calls: Any) -> Iterator[None]:
        found.happened.append(name)
        for call in calls:
            call("SIGTERM")
        yield

    def end(code: int) -> None:
        raise SystemExit(code)

    transport = SimpleNamespace(session=SimpleNamespace(check_credentials=found.check_credentials))
    (tmp_path / "worker_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "worker_shop", raising=False)
    monkeypatch.setattr("smartpipe.transports.open.create_aws_transport", lambda _: transport)
    monkeypatch.setattr("smartpipe.topology.aws.verify.verify", found.verify)
    monkeypatch.setattr("smartpipe.worker.supervisor.Supervisor", found.supervisor)
    monkeypatch.setattr("smartpipe.worker.supervisor.SourceWatcher", lambda directory: ("watcher", directory))
    for module in (command, supervise):
        monkeypatch.setattr(module, "configure", found.configure)
        monkeypatch.setattr(module, "raise_file_limit", lambda: found.happened.append("file limit"))
        monkeypatch.setattr(module, "exit_now", end)
        monkeypatch.setattr(module, "on_stop", lambda *calls: handle("signals", *calls))
        monkeypatch.setattr(module, "is_terminal", lambda *streams: bool({*streams} & {*found.terminals}))
    monkeypatch.setattr(command, "on_supervisor", lambda *calls: handle("supervised", *calls))
    monkeypatch.setattr(command, "show_handler_calls", lambda: found.happened.append("handler calls"))
    monkeypatch.setattr(command, "tune_garbage_collector", lambda: found.happened.append("tuned"))
    monkeypatch.setattr(command, "Worker", found.make("worker"))
    monkeypatch.setattr(command, "WorkerGroup", found.make("group"))
    return found


def run(*targets: str, flags: dict[str, Any] | None = None, **options: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        command.run(targets, flags or {}, **options)
    return int(str(ended.value.code))


def run_worker(*targets: str, reload: bool = False, **flags: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        supervise.run_worker(targets, flags, reload=reload)
    return int(str(ended.value.code))


def test_a_worker_checks_the_topology_and_ends_with_its_exit_code(
    working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    working.code = 3
    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        assert run("worker_shop:archive", flags={"log_level": "error", "log_format": "text"}) == 3

    assert working.happened == [
        ("error", "text", {"process": None}),
        "file limit",
        "credentials",
        ("worker", ["archive"], None),
        "tuned",
        "signals",
        "stop",
        "kill",
        ("verify", "archive"),
    ]
    assert caplog.messages == [f"starting: service archive, process {os.getpid()}"]


def test_a_supervised_worker_has_a_number_and_a_socket_and_other_signals(working: Working) -> None:
    assert run("worker_shop:archive", process=2, socket=Path("/x")) == 0

    assert working.happened[0] == ("info", "auto", {"process": 2})
    assert working.happened[3] == ("worker", ["archive"], Path("/x"))
    assert working.happened[5] == "supervised"


def test_several_services_run_as_a_group_that_checks_each(working: Working, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "smartpipe.worker"):
        run("worker_shop:archive", "worker_shop:mailer", socket=Path("/x"))

    assert ("group", ["archive", "mailer"], Path("/x")) in working.happened
    assert working.happened[-2:] == [("verify", "archive"), ("verify", "mailer")]
    assert caplog.messages == [f"starting: service archive, mailer, process {os.getpid()}"]


@pytest.mark.parametrize("targets", [["worker_shop:archive"], ["worker_shop:archive", "worker_shop:mailer"]])
def test_the_check_of_the_topology_can_be_off(working: Working, targets: list[str]) -> None:
    run(*targets, flags={"verify": "off"})

    assert not any(one[0] == "verify" for one in working.happened)


def test_a_resource_that_differs_is_logged(working: Working, caplog: pytest.LogCaptureFixture) -> None:
    working.drifts = ["update queue a", "update queue b"]

    assert run("worker_shop:archive") == 0

    assert caplog.messages == [
        f"A resource differs from its declaration; `smartpipe topology apply` would {drift}" for drift in working.drifts
    ]


def test_with_a_strict_check_a_resource_that_differs_ends_the_worker(working: Working) -> None:
    assert run("worker_shop:archive", flags={"verify": "strict"}) == 0

    working.drifts = ["update queue a", "update queue b"]
    with pytest.raises(TopologyError) as raised:
        command.run(["worker_shop:archive"], {"verify": "strict"})

    assert str(raised.value).splitlines() == [
        "differs: update queue a",
        "differs: update queue b",
        "SMARTPIPE_VERIFY=strict permits no difference: run `smartpipe topology apply`",
    ]


@pytest.mark.parametrize(("socket", "logged"), [(None, 1), (Path("/x"), 0)])
def test_misspelt_settings_are_logged_once_for_all_processes(
    working: Working,
    socket: Path | None,
    logged: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFX", "x")

    run("worker_shop:archive", socket=socket)

    assert working.happened
    assert len(caplog.messages) == logged


@pytest.mark.parametrize(
    ("development", "terminal", "shown"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_handler_calls_are_shown_on_a_terminal_or_in_development(
    working: Working, development: bool, terminal: bool, shown: bool
) -> None:
    working.terminals = [sys.stdout] if terminal else []

    run("worker_shop:archive", development=development)

    assert ("handler calls" in working.happened) == shown


@pytest.mark.usefixtures("working")
def test_a_service_that_is_named_twice_runs_once() -> None:
    assert len(load_worker_services(["worker_shop:archive", "worker_shop:archive"])) == 1


@pytest.mark.usefixtures("working")
def test_several_services_run_in_one_process_only_if_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.smartpipe]\nservices = ["worker_shop:archive", "worker_shop:mailer"]\n'
    )

    with pytest.raises(ConfigError, match=r"pyproject.toml lists archive, mailer: name the one to run as TARGET\. If"):
        load_worker_services([])
    assert len(load_worker_services(["worker_shop:archive", "worker_shop:mailer"])) == 2

    (tmp_path / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["worker_shop:archive"]\n')
    assert len(load_worker_services([])) == 1


@pytest.mark.usefixtures("working")
def test_two_services_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="archive"):
        load_worker_services(["worker_shop:archive", "worker_shop:again"])


def test_wrong_settings_of_the_worker_and_of_aws_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFIX", "a b")

    with pytest.raises(ConfigError) as raised:
        load_settings(WorkerSettings, {"concurrency": 0})

    assert [error.split(":")[0] for error in raised.value.problems] == ["--concurrency=0", "SMARTPIPE_PREFIX=a b"]


def test_one_of_several_streams_can_be_a_terminal() -> None:
    terminal: Any = SimpleNamespace(isatty=lambda: True)
    file: Any = SimpleNamespace(isatty=lambda: False)

    assert [is_terminal(file), is_terminal(file, terminal), is_terminal()] == [False, True, False]


def test_one_process_needs_no_supervisor(working: Working, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert run_worker("worker_shop:archive") == 0

    assert ("worker", ["archive"], None) in working.happened
    assert caplog.messages == [f"starting: service archive, process {os.getpid()}"]


@pytest.mark.parametrize(
    ("processes", "reload", "numbers"), [(1, True, [None]), (2, False, ["1", "2"]), (3, True, ["1", "2", "3"])]
)
def test_a_supervisor_runs_several_processes_or_restarts_one_when_sources_change(
    working: Working,
    processes: int,
    reload: bool,
    numbers: list[str | None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    working.code = 4
    flags = {"host": "::1", "port": 81, "drain_seconds": 30.0, "log_level": "info", "processes": processes}
    with caplog.at_level(logging.INFO):
        assert run_worker("worker_shop:archive", reload=reload, **flags) == 4

    configured, limit, *signals, (_, commands, options) = working.happened
    assert (configured, limit) == (("info", "auto", {}), "file limit")
    assert signals == ["signals", "stop", "stop_hard", "kill"]
    assert options["drain_seconds"] == 30.0
    assert options["liveness_seconds"] == 300.0
    assert options["address"] == ("::1", 81)
    assert options["same_service"] is True
    assert options["watcher"] == (("watcher", tmp_path) if reload else None)
    assert [one.name for one in commands] == [str(number) for number in range(1, processes + 1)]
    for one, number in zip(commands, numbers, strict=True):
        words = one.arguments
        assert words[:2] == ("worker", "worker_shop:archive")
        assert ("--wait-seconds" in words) == reload
        numbered = ("--siblings", str(processes), "--process", number)
        assert words[-4:] == numbered if number else "--process" not in words
    plural = "process" if processes == 1 else "processes"
    assert caplog.messages == [f"starting: service archive, {processes} {plural}, supervisor {os.getpid()}"]


def test_a_supervisor_logs_misspelt_and_doubtful_settings(
    working: Working, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SMARTPIPE_PREFX", "x")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", "memory://")

    run_worker("worker_shop:archive", processes=2)

    assert working.happened
    assert [message.split()[0] for message in caplog.messages] == ["SMARTPIPE_PREFX", "idempotency_url=memory://"]


def test_children_get_the_services_of_pyproject_by_their_names(working: Working, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.smartpipe]\nservices = ["worker_shop:archive"]\n')

    run_worker(processes=2)

    _, [first, _], _ = working.happened[-1]
    assert first.arguments[:2] == ("worker", "worker_shop:archive")


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_on_a_terminal_polls_are_short(working: Working, stream: str) -> None:
    working.terminals = [getattr(sys, stream)]

    run_worker("worker_shop:archive", processes=2)

    _, [first, _], _ = working.happened[-1]
    assert "--wait-seconds 1" in " ".join(first.arguments)
