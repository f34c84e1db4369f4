from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import ExitStack
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from smartpipe import Service
from smartpipe.blocking import Publisher
from smartpipe.cli import main
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.testing import provision
from tests.acceptance import services
from tests.acceptance.guarantee_services import SERVICES
from tests.acceptance.guarantees import Guaranteed
from tests.acceptance.services import JobPosted
from tests.acceptance.transaction_shop import Shop
from tests.support.examples import import_example
from tests.support.processes import Process
from tests.support.proxy import FaultProxy
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues
    from tests.support.servers import PostgresServer

TARGET = "tests.acceptance.services:service"

Command: TypeAlias = Callable[..., CompletedProcess[str]]


class Jobs:
    """The jobs service as its users run it: provisioned, and with workers in processes of their own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._file = directory / "happened"
        self._stack = stack

    def start_worker(self, *flags: str, **environment: str) -> Process:
        """Start one more worker, and return when it is ready."""
        worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", *flags, **environment)
        self._stack.callback(worker.end)
        worker.wait_until(lambda: worker.logged("ready"))
        return worker

    def post(self, *names: str, seconds: float = 0.0) -> None:
        with Publisher("test") as publisher:
            publisher.publish_many(JobPosted(name=name, seconds=seconds) for name in names)

    @property
    def happened(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []

    def count(self, what: str) -> int:
        return sum(line.startswith(what) for line in self.happened)

    def wait_for(self, what: str, count: int = 1) -> None:
        until_blocking(lambda: self.count(what) >= count)


@pytest.fixture(autouse=True)
def _what_killed_supervisors_leave_is_removed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True) as directory:  # short enough for sockets
        monkeypatch.setenv("TMPDIR", directory)
        yield


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, for what needs neither signals nor a terminal: it spares a start."""

    def run(*arguments: str, **environment: str) -> CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["smartpipe", *arguments])
            patch.setenv("COLUMNS", "120")  # as without a terminal: the test runner's own processes say 80
            for name, value in environment.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        return CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def jobs(fast_broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    asyncio.run(provision(services.service))
    with ExitStack() as stack:
        yield Jobs(tmp_path, stack)


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    with import_example(getattr(request, "param", "one_transaction")) as module:
        yield module


@pytest.fixture
def shop(
    fast_broker: EmbeddedBroker,
    postgres_server: PostgresServer,
    queues: Queues,
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres_server.database())
        asyncio.run(migrate(url))
        proxy = stack.enter_context(FaultProxy(fast_broker.endpoint_url))
        reports = Service("reports")

        @reports.subscribe(example.OrderCharged)
        async def report(_: Any) -> None: ...

        asyncio.run(provision(example.service, reports))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", url)
        monkeypatch.setenv("SMARTPIPE_OUTBOX_URL", url)
        monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
        found = Shop(url, example, proxy, queues, stack)
        found.database.execute("CREATE TABLE charges (order_id text, cents integer)")
        yield found


@pytest.fixture
def guaranteed(
    fast_broker: EmbeddedBroker, queues: Queues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Guaranteed]:
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    asyncio.run(provision(*SERVICES))
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(fast_broker.endpoint_url))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield Guaranteed(proxy, queues, tmp_path, stack)
