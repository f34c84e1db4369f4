"""The first example of the documents: wherever its worker or its relay is killed, everything has happened once."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from smartpipe import Service
from smartpipe.blocking import Publisher
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.testing import provision
from tests.support.processes import ROOT, Process, smartpipe
from tests.support.proxy import Fault, FaultProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues
    from tests.support.servers import PostgresServer

EXAMPLES = ROOT / "examples" / "howto"
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


@pytest.fixture(scope="module", params=["one_transaction", "session_transaction"])
def example(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each example: on a connection of asyncpg, and on a session of SQLAlchemy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module(request.param)
        del sys.modules[request.param]


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


def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("table", ["charges", "smartpipe_outbox"])
def test_a_worker_that_is_killed_at_the_effect_or_at_the_event_leaves_neither(shop: Shop, table: str) -> None:
    worker = shop.start_worker()
    shop.locks.execute(f"BEGIN; LOCK TABLE {table}")
    shop.place_order()
    shop.wait_until_stuck(worker, f"INSERT INTO {table}")

    kill(worker)
    shop.locks.execute("ROLLBACK")

    shop.finish()


def test_a_worker_that_is_killed_at_the_completion_leaves_neither_effect_nor_event(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.locks.execute("BEGIN; LOCK TABLE smartpipe_outbox")
    shop.place_order()
    shop.wait_until_stuck(worker, "INSERT INTO smartpipe_outbox")
    shop.database.execute("BEGIN; SELECT FROM smartpipe_claims FOR UPDATE")
    shop.locks.execute("ROLLBACK")
    worker.wait_until(lambda: shop.locks.value(WAITING, "%UPDATE smartpipe_claims%"))

    kill(worker)
    shop.database.execute("ROLLBACK")

    shop.finish()


def test_a_worker_that_is_killed_between_its_commit_and_the_delete_leaves_one_of_each(shop: Shop) -> None:
    lost = shop.proxy.add(Fault("DeleteMessageBatch", drop="request"))
    worker = shop.start_worker()
    shop.place_order()
    worker.wait_until(lambda: lost.hits)
    assert shop.database.column("SELECT order_id FROM charges") == ["1"]

    kill(worker)
    shop.proxy.faults.remove(lost)

    shop.finish()


def test_a_relay_that_is_killed_when_sns_has_taken_the_event_publishes_it_again_under_one_id(shop: Shop) -> None:
    worker = shop.start_worker()
    shop.place_order()
    worker.wait_until(lambda: shop.database.value("SELECT count(*) FROM smartpipe_outbox"))
    worker.signal(signal.SIGTERM)
    worker.wait()
    stalled = shop.proxy.add(Fault("PublishBatch", drop="reply"))
    relay = shop.start("relay")
    relay.wait_until(lambda: stalled.hits)

    kill(relay)
    shop.proxy.faults.remove(stalled)

    relayed = smartpipe("relay", "--once")
    assert relayed.returncode == 0, relayed.stderr
    shop.check()
