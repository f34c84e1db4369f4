"""Claims and the outbox in PostgreSQL: each event is handled once, whenever a worker is killed."""

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
from tests.support.servers import PgBouncer, pgbouncer_program
from tests.support.waiting import until_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smartpipe import EmbeddedBroker
    from tests.support.queues import Queues
    from tests.support.servers import PostgresServer

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


def start(workers: ExitStack, **environment: str) -> Process:
    worker = Process("worker", TARGET, "--host", "127.0.0.1", "--port", "0", **environment)
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


def test_an_event_of_a_worker_killed_between_commit_and_delete_is_handled_once(
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


def test_copies_of_one_event_are_handled_once_by_two_workers(
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


@pytest.mark.skipif(pgbouncer_program() is None, reason="pgbouncer is not installed")
def test_events_are_handled_once_through_a_pooler_in_transaction_mode(
    happened: Path, workers: ExitStack, queues: Queues, postgres_server: PostgresServer
) -> None:
    migrated = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=postgres_server.url)
    assert migrated.returncode == 0, migrated.stderr
    execute(postgres_server.url, "CREATE TABLE IF NOT EXISTS acceptance_effects (name text)")
    pooler = workers.enter_context(PgBouncer(postgres_server, "transaction"))
    with Publisher("test") as publisher:
        publisher.publish_many(EffectWanted(name=str(number)) for number in range(50))
    for copy in queues.take("effects") * 2:
        queues.send("effects", copy["Body"])

    both = [start(workers, SMARTPIPE_IDEMPOTENCY_URL=pooler.url) for _ in range(2)]
    until_blocking(lambda: queues.depth("effects") == (0, 0))
    for worker in both:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0

    rows = execute(postgres_server.url, "SELECT name FROM acceptance_effects")
    assert sorted(int(row["name"]) for row in rows) == list(range(50))


def test_a_missing_table_is_reported_with_the_command_that_creates_it(happened: Path, postgres_url: str) -> None:
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
    assert again.stdout.startswith("nothing to migrate at postgresql://")
    assert "/acceptance_empty" in again.stdout
    assert (first.returncode, again.returncode) == (0, 0)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "no database is set: set SMARTPIPE_IDEMPOTENCY_URL"),
        ("redis://localhost", "only PostgreSQL has tables to migrate"),
        ("mysql://user:secret@host/db", "only PostgreSQL has tables to migrate"),
    ],
)
def test_migrating_a_store_without_tables_is_one_clear_error(url: str, sentence: str) -> None:
    result = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=url)

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert sentence in line
    assert "secret" not in line


def test_a_database_of_claims_is_not_migrated_beside_an_outbox_that_is_none() -> None:
    result = smartpipe(
        "store",
        "migrate",
        SMARTPIPE_IDEMPOTENCY_URL="postgresql://127.0.0.1:9/claims",
        SMARTPIPE_OUTBOX_URL="redis://localhost",
    )

    assert result.returncode == 2
    assert "only PostgreSQL has tables to migrate, but SMARTPIPE_OUTBOX_URL leads to redis://" in result.stderr


def test_a_database_of_the_outbox_is_migrated_beside_claims_in_redis(two_databases: list[str]) -> None:
    done = smartpipe(
        "store",
        "migrate",
        SMARTPIPE_IDEMPOTENCY_URL="redis://localhost",
        SMARTPIPE_OUTBOX_URL=two_databases[1],
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "3 migrations run" in done.stdout


@pytest.fixture
def two_databases(postgres_url: str) -> Iterator[list[str]]:
    """Empty databases of one server."""
    names = ["acceptance_claims", "acceptance_outbox"]
    for name in names:
        execute(postgres_url, f"CREATE DATABASE {name}")
    yield [urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}")) for name in names]
    for name in names:
        execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_the_databases_of_the_claims_and_of_the_outbox_are_both_migrated_and_named(two_databases: list[str]) -> None:
    claims, outbox = two_databases
    urls = {
        "SMARTPIPE_IDEMPOTENCY_URL": claims.replace("postgresql://", "postgresql+psycopg://"),
        "SMARTPIPE_OUTBOX_URL": outbox.replace("postgresql://", "postgresql+asyncpg://"),
        "AWS_REGION": "eu-west-1",
    }

    first, again = smartpipe("store", "migrate", **urls), smartpipe("store", "migrate", "--json", **urls)
    relay = smartpipe("relay", "--once", **urls)

    assert (first.returncode, again.returncode, relay.returncode) == (0, 0, 0), relay.stderr
    assert first.stdout.count("3 migrations run at postgresql:") == 2
    assert list(json.loads(again.stdout).values()) == [[], []]
    assert [url.rpartition("/")[2] for url in json.loads(again.stdout)] == ["acceptance_claims", "acceptance_outbox"]


@pytest.mark.parametrize(
    "claims", ["redis://cache", "valkeys://cache", "unix:///run/redis.sock", "dynamodb://claims", "memory://"]
)
def test_with_claims_elsewhere_the_outbox_is_migrated(two_databases: list[str], claims: str) -> None:
    done = smartpipe("store", "migrate", SMARTPIPE_IDEMPOTENCY_URL=claims, SMARTPIPE_OUTBOX_URL=two_databases[1])

    assert done.returncode == 0, done.stderr
    assert "3 migrations run" in done.stdout


def test_one_database_by_two_spellings_is_migrated_once_and_left_alone_once(two_databases: list[str]) -> None:
    claims = two_databases[0]
    done = smartpipe(
        "store",
        "migrate",
        SMARTPIPE_IDEMPOTENCY_URL=claims.replace("postgresql://", "postgres://"),
        SMARTPIPE_OUTBOX_URL=f"{claims}&application_name=relay"
        if "?" in claims
        else f"{claims}?application_name=relay",
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0001_claims") == 1


def test_a_database_that_cannot_be_reached_does_not_keep_the_other_from_being_migrated(
    two_databases: list[str],
) -> None:
    done = smartpipe(
        "store",
        "migrate",
        SMARTPIPE_IDEMPOTENCY_URL="postgresql://app:s3cr3t@127.0.0.1:9/claims",
        SMARTPIPE_OUTBOX_URL=two_databases[1],
    )

    assert done.returncode == 1
    assert "3 migrations run" in done.stdout
    assert "127.0.0.1" not in done.stdout
    assert done.stderr.startswith("smartpipe: migrate at postgresql://127.0.0.1:9/claims: ")


@pytest.mark.parametrize(
    ("command", "url", "sentence"),
    [
        ("relay", "mysql://user:secret@host/db", "SMARTPIPE_OUTBOX_URL: mysql:// is not PostgreSQL"),
        ("relay", "secret", "SMARTPIPE_OUTBOX_URL: it is not a URL"),
        (
            "relay",
            "postgresql://user:secret/x@host/db",
            "SMARTPIPE_OUTBOX_URL: the URL postgresql://... cannot be read",
        ),
        (
            "migrate",
            "redis://user:secret@host",
            "only PostgreSQL has tables to migrate, but SMARTPIPE_OUTBOX_URL leads",
        ),
        (
            "migrate",
            "postgresql://user:x@db:secret/db",
            "SMARTPIPE_OUTBOX_URL: the URL postgresql://... cannot be read",
        ),
        ("migrate", "postgresql://h/db?statement_cache_size=secret", "SMARTPIPE_OUTBOX_URL: statement_cache_size must"),
    ],
)
def test_a_wrong_url_of_the_outbox_is_reported_with_its_own_setting(command: str, url: str, sentence: str) -> None:
    arguments = ["relay", "--once"] if command == "relay" else ["store", "migrate"]
    result = smartpipe(*arguments, SMARTPIPE_OUTBOX_URL=url, AWS_REGION="eu-west-1")

    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"smartpipe: {sentence}")
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


def test_a_relay_reports_its_state_and_ends_at_sigterm(
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
    assert result.stderr.startswith("smartpipe: no database is set: set SMARTPIPE_OUTBOX_URL")
