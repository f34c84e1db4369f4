"""Effects in PostgreSQL happen once, whenever a worker is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import asyncpg
import pytest

from smartpipe.blocking import Publisher
from smartpipe.outbox import Outbox
from tests.acceptance.services import EffectWanted
from tests.support.processes import Process, http_status, smartpipe
from tests.support.proxy import Fault, FaultProxy
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues

TARGET = "tests.acceptance.services:effects"


@pytest.fixture
def happened(
    fast_broker: EmbeddedBroker, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The file that handlers write into; topology and tables are there."""
    monkeypatch.setenv("ACCEPTANCE_DIR", str(tmp_path))
    monkeypatch.setenv("ACCEPTANCE_LEASE", "4")
    monkeypatch.setenv("SMARTPIPE_WAIT_SECONDS", "1")
    monkeypatch.setenv("SMARTPIPE_IDEMPOTENCY_URL", postgres_url)
    execute(postgres_url, "DROP TABLE IF EXISTS acceptance_effects; CREATE TABLE acceptance_effects (name text)")
    applied = smartpipe("topology", "apply", "--yes", TARGET)
    assert applied.returncode == 0, applied.stderr
    file = tmp_path / "happened"
    file.touch()
    yield file
    execute(postgres_url, "DROP TABLE acceptance_effects")


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(workers: ExitStack) -> Process:
    worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0")
    workers.callback(worker.end)
    worker.wait_until(lambda: worker.logged("ready"))
    return worker


def execute(url: str, statement: str) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            if statement.startswith("SELECT"):
                return await connection.fetch(statement)
            await connection.execute(statement)
            return []
        finally:
            await connection.close()

    return asyncio.run(run())


def test_a_worker_that_is_killed_between_commit_and_delete_leaves_one_effect(
    happened: Path, workers: ExitStack, queues: Queues, postgres_url: str
) -> None:
    first = start(workers)
    with Publisher("test") as publisher:
        publisher.publish(EffectWanted(name="one", seconds=300))
    first.wait_until(lambda: "committed one" in happened.read_text())

    first.signal(signal.SIGKILL)
    first.wait()
    second = start(workers)
    second.wait_until(lambda: queues.depth("effects") == (0, 0))

    [row] = execute(postgres_url, "SELECT name FROM acceptance_effects")
    assert row["name"] == "one"
    assert happened.read_text().count("begun one") == 1
    assert queues.depth("effects-dlq") == (0, 0)


def test_copies_of_one_event_have_one_effect_among_two_workers(
    happened: Path, workers: ExitStack, queues: Queues, postgres_url: str
) -> None:
    with Publisher("test") as publisher:
        publisher.publish_many(EffectWanted(name=str(number)) for number in range(20))
    copies = queues.take("effects")
    for copy in copies * 3:
        queues.send("effects", copy["Body"])

    first, second = start(workers), start(workers)
    until_blocking(lambda: queues.depth("effects") == (0, 0))
    for worker in (first, second):
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0

    rows = execute(postgres_url, "SELECT name FROM acceptance_effects")
    assert sorted(int(row["name"]) for row in rows) == list(range(20))


def test_a_table_that_is_not_migrated_is_told_with_the_command_that_mends_it(happened: Path, postgres_url: str) -> None:
    execute(postgres_url, "CREATE DATABASE acceptance_empty")
    empty = urlunsplit(urlsplit(postgres_url)._replace(path="/acceptance_empty"))
    try:
        refused = smartpipe("worker", TARGET, "--port", "0", SMARTPIPE_IDEMPOTENCY_URL=empty)
        first = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=empty)
        again = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=empty)
    finally:
        execute(postgres_url, "DROP DATABASE acceptance_empty WITH (FORCE)")

    assert refused.returncode == 2
    assert "run smartpipe store migrate" in refused.stderr
    assert "3 migrations run" in first.stdout
    assert again.stdout == "nothing to migrate\n"
    assert (first.returncode, again.returncode) == (0, 0)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "which database? Set SMARTPIPE_IDEMPOTENCY_URL"),
        ("redis://localhost", "only PostgreSQL has tables to migrate"),
        ("mysql://user:secret@host/db", "only PostgreSQL has tables to migrate"),
    ],
)
def test_migrating_what_has_no_tables_is_one_clear_line(url: str, sentence: str) -> None:
    result = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=url)

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert sentence in line
    assert "secret" not in line


def test_fault_48_a_relay_that_is_killed_while_it_publishes_skips_nothing(
    happened: Path, workers: ExitStack, queues: Queues, postgres_url: str, fast_broker: EmbeddedBroker
) -> None:
    execute(postgres_url, "TRUNCATE smartpipe_outbox")
    written = set(asyncio.run(write(postgres_url, 60)))
    with FaultProxy(fast_broker.endpoint_url) as proxy:
        environment = {"AWS_ENDPOINT_URL": proxy.endpoint_url, "SMARTPIPE_OUTBOX_URL": postgres_url}
        hanging = proxy.add(Fault("PublishBatch", skip=2, delay_seconds=60))
        relay = Process("relay", "--host", "127.0.0.1", "--port", "0", **environment)
        workers.callback(relay.end)
        relay.wait_until(lambda: hanging.hits and proxy.operations().count("PublishBatch") >= 3)
        relay.signal(signal.SIGKILL)
        relay.wait()
    again = smartpipe("relay", "--once", SMARTPIPE_OUTBOX_URL=postgres_url)

    assert again.returncode == 0, again.stderr
    arrived = [json.loads(message["Body"])["id"] for message in queues.take("effects")]
    assert set(arrived) == written
    assert len(arrived) > len(written)  # what had been published and not marked came twice, with the same ids
    assert execute(postgres_url, "SELECT FROM smartpipe_outbox WHERE published_at IS NULL") == []


async def write(url: str, count: int) -> list[str]:
    connection = await asyncpg.connect(url)
    outbox = Outbox("test")
    async with connection.transaction():
        ids = [await outbox.publish(EffectWanted(name=str(n)), connection=connection) for n in range(count)]
    await connection.close()
    return ids


def test_a_relay_tells_how_it_fares_and_ends_at_sigterm(
    happened: Path, workers: ExitStack, queues: Queues, postgres_url: str
) -> None:
    execute(postgres_url, "TRUNCATE smartpipe_outbox")
    relay = Process("relay", "--host", "127.0.0.1", "--port", "0", SMARTPIPE_OUTBOX_URL=postgres_url)
    workers.callback(relay.end)
    relay.wait_until(lambda: relay.logged("relaying the outbox"))
    serving = relay.logged("serving")
    assert serving is not None
    asyncio.run(write(postgres_url, 3))
    relay.wait_until(lambda: http_status(f"{serving['url']}/readyz")[1]["published"] == 3)
    with urlopen(f"{serving['url']}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()

    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0

    assert "smartpipe_outbox_published_total 3" in metrics
    assert "smartpipe_outbox_waiting 0" in metrics
    assert "smartpipe_outbox_lag_seconds 0" in metrics
    assert "smartpipe_requests_resent_total 0" in metrics


def test_a_relay_without_a_database_is_one_clear_line() -> None:
    result = smartpipe("relay")

    assert result.returncode == 2
    assert result.stderr.startswith("smartpipe: which database? Set SMARTPIPE_OUTBOX_URL")
