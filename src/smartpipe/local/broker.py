"""Start and stop the process of the local broker."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from typing import IO, TYPE_CHECKING, NamedTuple, Self
from urllib.request import ProxyHandler, build_opener

from smartpipe.errors import ConfigError, SmartpipeError

if TYPE_CHECKING:
    from types import TracebackType

HOST = "127.0.0.1"
ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - only if the user asks for it
REGION = "us-east-1"
START_SECONDS = 30.0
STOP_SECONDS = 5.0
# These variables could lead a client, or the name of a queue, to a real account.
REMOVED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "SMARTPIPE_ACCOUNT_ID",
)


class Backend(NamedTuple):
    """A package that provides the broker."""

    package: str
    extra: str
    health_path: str
    environment: dict[str, str]


BACKENDS = {
    # By default, ministack opens an MQTT port.
    "ministack": Backend(
        "ministack",
        "local",
        "/_ministack/health",
        {
            "SERVICES": "sqs,sns,sts,tagging,cloudwatch,dynamodb,s3",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
        },
    ),
    "moto": Backend("moto", "moto", "/moto-api/", {}),
}


class EmbeddedBroker:
    """A broker for development and tests. It holds all data in memory.

    Use it as a context manager. The broker ends with this process, even if this process is killed: the child notices
    that the pipe between them has closed.

    Args:
        backend: ``ministack`` (the default, which is faster) or ``moto``.
        port: The port to listen on; 0 selects a free one.
        host: The IPv4 address to listen on; ``0.0.0.0`` is all addresses of this machine. The broker has no
            authentication: anyone who reaches the address can read and delete its messages.

    Raises:
        ConfigError: The backend is unknown or not installed, the host is not an IPv4 address of this machine, or the
            port is in use.
    """

    def __init__(self, backend: str = "ministack", *, port: int = 0, host: str = HOST) -> None:
        if backend not in BACKENDS:
            msg = f"backend {backend!r} is not one of {', '.join(BACKENDS)}"
            raise ConfigError(msg)
        self.backend = backend
        self._backend = BACKENDS[backend]
        try:
            self.version = version(self._backend.package)
        except PackageNotFoundError:
            msg = f"{self._backend.package} is not installed; run pip install 'smartpipe[{self._backend.extra}]'"
            raise ConfigError(msg) from None
        self.host = _check_host(host)
        self.port = _find_port(host, port)
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The value for ``AWS_ENDPOINT_URL`` on this machine."""
        return f"http://{HOST if self.host == ALL_INTERFACES else self.host}:{self.port}"

    @property
    def is_exposed(self) -> bool:
        """Whether other machines may reach it."""
        return not ipaddress.IPv4Address(self.host).is_loopback

    @property
    def environment(self) -> dict[str, str]:
        """AWS's own variables, which lead every client to this broker. The keys are placeholders."""
        return list_variables(self.endpoint_url)

    def __enter__(self) -> Self:
        """Start the broker, and wait until it responds."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the broker."""
        self.stop()

    def start(self) -> None:
        """Start the child process, and wait up to 30 s until it responds.

        Raises:
            SmartpipeError: The child ended or did not respond. The error has its last line of output.
        """
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_ENDPOINT_URL", "MOTO_"))
        }
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "smartpipe.local.child", self.backend, self.host, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**inherited, **self._backend.environment, "BIND_HOST": self.host, "GATEWAY_PORT": str(self.port)},
            start_new_session=True,  # this process handles a Ctrl-C in the terminal, because clients may still drain
        )
        opener = build_opener(ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with opener.open(self.endpoint_url + self._backend.health_path, timeout=1) as response:
                    if response.status == HTTPStatus.OK and self._process.poll() is None:
                        return
            except (OSError, HTTPException):  # it does not listen yet; URLError is an OSError
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                output = self.last_output()
                self.stop()
                msg = f"the local broker ({self.backend}) did not start on port {self.port}: {output}"
                raise SmartpipeError(msg)
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the child with SIGTERM, and after 5 s with SIGKILL. A second call does nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the child's exit code, and return None if it still runs after *timeout_seconds*."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def last_output(self) -> str:
        """Return the last line that the child printed."""
        if self._output is None:
            return "the broker is not running"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed no output"


def list_variables(endpoint_url: str) -> dict[str, str]:
    """Return AWS's own variables, which lead every client to the broker at this URL. The keys are placeholders."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }


def environment_of(broker: EmbeddedBroker) -> dict[str, str]:
    """Return this process's environment with changes that lead every client to *broker* only."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED_VARIABLES)}
    return {**inherited, **broker.environment}


def is_free(port: int) -> bool:
    """Return whether a broker could listen on *port* of ``127.0.0.1`` now."""
    try:
        return _find_port(HOST, port) == port
    except ConfigError:
        return False


def _check_host(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        msg = f"host {host!r} is not an IPv4 address: use 127.0.0.1, or 0.0.0.0 for all addresses of this machine"
        raise ConfigError(msg) from None


def _find_port(host: str, port: int) -> int:
    """Return *port* if it is free, or any free port for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                msg = f"cannot bind {host}: this machine does not have this address; use 127.0.0.1 or 0.0.0.0"
            else:
                reason = error.strerror or error
                msg = f"cannot bind port {port} of {host}: {reason}; choose another one with --port"
            raise ConfigError(msg) from None
        return int(probe.getsockname()[1])
