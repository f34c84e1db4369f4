"""The first example of the documents, with its topology, its database, and a queue that gets what it publishes."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import asyncpg

from smartpipe.blocking import Publisher
from tests.support.examples import EXAMPLES
from tests.support.processes import Process, smartpipe

if TYPE_CHECKING:
    from contextlib import ExitStack
    from types import ModuleType

    from tests.support.proxy import FaultProxy
    from tests.support.queues import Queues

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE $1"


class Session:
    """A connection of the test's own, on which it may hold locks."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._connection: asyncpg.Connection = runner.run(asyncpg.connect(url))

    def execute(self, statement: str) -> None:
        self._runner.run(self._connection.execute(statement))

    def value(self, statement: str, *arguments: Any) -> Any:
        return self._runner.run(self._connection.fetchval(statement, *arguments))

    def column(self, statement: str) -> list[Any]:
        return [row[0] for row in self._runner.run(self._connection.fetch(statement))]

    def close(self) -> None:
        self._runner.run(self._connection.close())


class Shop:
    """The example with its topology, its database and a queue that gets what it publishes."""

    def __init__(self, url: str, module: ModuleType, proxy: FaultProxy, queues: Queues, stack: ExitStack) -> None:
        self.proxy = proxy
        self._module = module
        self._queues = queues
        self._stack = stack
        runner = stack.enter_context(asyncio.Runner())
        self.database, self.locks = Session(url, runner), Session(url, runner)
        for session in (self.database, self.locks):
            stack.callback(session.close)

    def place_order(self) -> None:
        with Publisher("shop") as publisher:
            publisher.publish(self._module.OrderPlaced(order_id="1", cents=4200))

    def start(self, *command: str) -> Process:
        process = Process(*command, "--host", "127.0.0.1", "--port", "0", directory=str(EXAMPLES))
        self._stack.callback(process.end)
        process.wait_until(lambda: process.logged("ready") or process.logged("relaying the outbox"))
        return process

    def start_worker(self) -> Process:
        return self.start("worker", f"{self._module.__name__}:service")

    def wait_until_stuck(self, worker: Process, statement: str) -> None:
        """Wait until *worker* waits for a lock with this statement."""
        worker.wait_until(lambda: self.database.value(WAITING, f"%{statement}%"))

    def finish(self) -> None:
        """Let another worker do what is left, and a relay publish; then check that everything has happened once."""
        worker = self.start_worker()
        worker.wait_until(lambda: self._queues.depth("billing") == (0, 0))
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        relayed = smartpipe("relay", "--once")
        assert relayed.returncode == 0, relayed.stderr
        self.check()

    def check(self) -> None:
        assert self.database.column("SELECT order_id FROM charges") == ["1"]
        written = self.database.column("SELECT event_id FROM smartpipe_outbox")
        assert len(written) == 1
        assert {json.loads(message["Body"])["id"] for message in self._queues.take("reports")} == set(written)
        assert self.database.column("SELECT state FROM smartpipe_claims") == ["completed"]
        assert self._queues.depth("billing-dlq") == (0, 0)


def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.wait()
