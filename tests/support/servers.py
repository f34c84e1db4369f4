"""The testing kit's servers, which these tests also freeze, and PgBouncer in front of one."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

import psutil

from smartpipe.testing import servers
from smartpipe.testing.servers import as_unprivileged_user
from tests.support.planted import PLANTED


class Server(servers.Server):
    """A context manager that runs a server. Inside, a test may stop, start and freeze it."""

    def stop(self) -> None:
        """Stop the server without waiting for clients."""
        self.thaw()
        super().stop()

    def freeze(self) -> None:
        """Suspend the server: it still accepts connections, but does not respond."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # a child process of the server that has ended meanwhile
                process.suspend()

    def thaw(self) -> None:
        """Continue the server."""
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


class PostgresServer(servers.PostgresServer, Server):
    """PostgreSQL with a password in its URL, to check that it is never printed. The server trusts all local users."""

    def prepare(self) -> None:
        super().prepare()
        self.url = self.url.replace("postgres@", f"postgres:{PLANTED}@")


class RedisServer(servers.RedisServer, Server):
    """Redis or Valkey."""


class PgBouncer(Server):
    """Debian's PgBouncer in front of a PostgresServer.

    Args:
        mode: ``transaction``, ``session`` or ``statement``.
    """

    def __init__(self, postgres: PostgresServer, mode: str) -> None:
        super().__init__()
        self._postgres = postgres
        self._mode = mode

    def prepare(self) -> None:
        """Write the configuration for a user other than root, because PgBouncer refuses to run as root."""
        self.user = as_unprivileged_user()
        if self.user:
            os.chown(self.directory, self.user["user"], self.user["group"])
        (self.directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self._postgres.directory} user=postgres\n"
            f"[pgbouncer]\nlisten_port = 5432\nunix_socket_dir = {self.directory}\nauth_type = any\n"
            f"pool_mode = {self._mode}\nserver_round_robin = 1\nmax_client_conn = 200\n"
            # In session mode, each client needs its own connection. In the other modes, clients share four in turn.
            f"default_pool_size = {60 if self._mode == 'session' else 4}\n"
        )
        self.url = self._postgres.url.replace(str(self._postgres.directory), str(self.directory))

    def command(self) -> list[str]:
        return [str(pgbouncer_program()), "pgbouncer.ini"]

    def answers(self) -> bool:
        return self._postgres.is_ready(self.directory)


def pgbouncer_program() -> str | None:
    """Return the path of PgBouncer. Debian installs it in a directory that only root has in its PATH."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
