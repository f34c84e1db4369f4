"""The outbox in a real PostgreSQL: events are published if, and only if, the transaction committed."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from smartpipe import ConfigError, Event, EventTooLarge
from smartpipe.errors import TransportError
from smartpipe.keys import sqs_id
from smartpipe.message import Failure
from smartpipe.outbox import Outbox, Relay, RelayOptions
from tests.support.events import ADA, Note, OrderPlaced, Paid
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

OUTBOX = Outbox("shop")


def ids(transport: FakeTransport, verb: str = "publish") -> list[str]:
    """The event ids that were sent, in order, however often."""
    return [json.loads(message.body)["id"] for message in transport.entries(verb)]


@asynccontextmanager
async def relaying(url: str, transport: FakeTransport, **options: Any) -> AsyncIterator[Relay]:
    relay = Relay(url, transport, RelayOptions(**{"poll_seconds": 3_600, **options}))
    running = asyncio.create_task(relay.run())
    await until(lambda: not relay.failing or running.done())
    yield relay
    relay.stop()
    await running


async def test_what_commits_is_published_at_once_and_what_rolls_back_never(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = FakeTransport()
    async with relaying(postgres_url, transport) as relay:
        async with database.transaction():
            committed = await OUTBOX.publish(ADA, connection=database)
            await asyncio.sleep(0.1)
            assert ids(transport) == []
        rolled_back = database.transaction()
        await rolled_back.start()
        await OUTBOX.publish(ADA, connection=database)
        await rolled_back.rollback()
        await until(lambda: relay.published)

    assert ids(transport) == [committed]
    assert await relay.backlog() == (0, 0, 0.0)


async def test_an_event_arrives_as_a_publisher_would_have_sent_it(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = FakeTransport()
    paid = Paid(account="Jürgen's", number=7)
    first = await OUTBOX.publish(paid, connection=database, attributes={"tenant": "acme"}, autocommit=True)
    second = await OUTBOX.publish(ADA, connection=database, queue="mailer", delay_seconds=5, autocommit=True)

    await Relay(postgres_url, transport).drain()

    [(_, topic, [message], _)] = [call for call in transport.calls if call[0] == "publish"]
    [(_, queue, [sent], _)] = [call for call in transport.calls if call[0] == "send"]
    assert (topic, queue) == ("ledger.fifo", "mailer")
    assert (json.loads(message.body)["id"], message.deduplication_id) == (first, first)
    assert json.loads(message.body)["data"] == {"account": "Jürgen's", "number": 7}
    assert message.attributes["tenant"] == ("String", "acme")
    assert message.group_id == sqs_id("Jürgen's")  # SQS would refuse the name as it is
    assert (json.loads(sent.body)["id"], sent.delay_seconds) == (second, 5)


async def test_sqlalchemy_writes_it_into_its_own_transactions(database: asyncpg.Connection, postgres_url: str) -> None:
    engine = create_async_engine(postgres_url.replace("postgresql://", "postgresql+asyncpg://"))
    transport = FakeTransport()
    async with engine.begin() as connection:
        one = await OUTBOX.publish(ADA, connection=connection)
    async with AsyncSession(engine) as session, session.begin():
        two = await OUTBOX.publish(ADA, connection=session)
    async with AsyncSession(engine) as session:
        await OUTBOX.publish(ADA, connection=session)
        await session.rollback()
    await engine.dispose()

    await Relay(postgres_url, transport).drain()

    assert sorted(ids(transport)) == sorted([one, two])


def test_blocking_sqlalchemy_does_too(postgres_url: str) -> None:
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    transport = FakeTransport()
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE smartpipe_outbox")
        one = OUTBOX.publish_blocking(ADA, connection=connection)
    with Session(engine) as session, session.begin():
        two = OUTBOX.publish_blocking(ADA, connection=session)
    engine.dispose()

    asyncio.run(Relay(postgres_url, transport).drain())

    assert sorted(ids(transport)) == sorted([one, two])


@pytest.mark.parametrize("connection", [None, object(), "postgresql://"])
async def test_what_is_no_connection_is_refused(connection: object) -> None:
    with pytest.raises(ConfigError, match="pass the asyncpg Connection"):
        await OUTBOX.publish(ADA, connection=connection)  # type: ignore[arg-type]


async def test_what_can_never_be_published_is_refused_before_it_is_written(database: asyncpg.Connection) -> None:
    with pytest.raises(EventTooLarge):
        await OUTBOX.publish(Note(text="x" * 3_000), connection=database)

    assert await database.fetchval("SELECT count(*) FROM smartpipe_outbox") == 0


async def write(database: asyncpg.Connection, *events: Event) -> list[str]:
    async with database.transaction():
        return [await OUTBOX.publish(event, connection=database) for event in events]


async def test_fault_48_relays_share_the_work_publish_each_row_once_and_keep_the_order_of_each_key(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    events = [Paid(account=str(number % 7), number=number) for number in range(300)]
    written = await write(database, *events)
    transport = FakeTransport()

    relays = [Relay(postgres_url, transport, RelayOptions(rows=20, lanes=2)) for _ in range(3)]
    while await database.fetchval("SELECT count(*) FROM smartpipe_outbox WHERE published_at IS NULL"):
        await asyncio.gather(*(relay.drain() for relay in relays))

    assert sorted(ids(transport)) == sorted(written)
    numbers = [json.loads(message.body)["data"] for message in transport.entries("publish")]
    for account in range(7):
        own = [data["number"] for data in numbers if data["account"] == str(account)]
        assert own == sorted(own)


async def test_fault_48_what_a_relay_had_not_marked_when_it_died_is_published_again_with_the_same_id(
    database: asyncpg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = await write(database, *(OrderPlaced(order_id=str(number)) for number in range(25)))
    transport = FakeTransport()

    async def die(*_: object) -> None:
        raise ConnectionResetError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Relay, "_mark_failed", die)
        with pytest.raises(Exception, match="killed"):
            await Relay(postgres_url, transport).drain()
    await Relay(postgres_url, transport).drain()

    assert sorted(ids(transport)) == sorted([*written, *written])


class Refusing(FakeTransport):
    """Refuses some events for good, or all for the moment."""

    def __init__(self) -> None:
        super().__init__()
        self.poison: set[int] = set()
        self.outage: TransportError | None = None

    async def publish(self, topic: str, messages: Any) -> list[Failure]:
        if self.outage is not None:
            raise self.outage
        await super().publish(topic, messages)
        return [
            Failure(position, "InvalidParameter", "poison", retryable=False)
            for position, message in enumerate(messages)
            if json.loads(message.body)["data"].get("number") in self.poison
        ]


async def test_fault_48_a_poison_row_is_parked_with_its_error_and_holds_up_its_own_key_until_then(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = Refusing()
    transport.poison = {1}
    written = await write(
        database, *(Paid(account=account, number=n) for n in range(3) for account in "ab" if n or account == "a")
    )
    relay = Relay(postgres_url, transport, RelayOptions(attempts=2))

    await relay.drain()
    waiting = {
        row["event_id"]
        for row in await database.fetch("SELECT event_id FROM smartpipe_outbox WHERE published_at IS NULL")
    }
    await database.execute("UPDATE smartpipe_outbox SET next_try_at = now() WHERE published_at IS NULL")
    left = await relay.drain()

    assert waiting == set(written[1:])  # a1 and b1 are poison, a2 and b2 wait behind them
    assert left.parked == 2
    rows = await database.fetch("SELECT error FROM smartpipe_outbox WHERE parked_at IS NOT NULL")
    assert {row["error"] for row in rows} == {"InvalidParameter: poison"}
    await relay.drain()
    assert await database.fetchval("SELECT count(*) FROM smartpipe_outbox WHERE published_at IS NOT NULL") == 3


@pytest.mark.parametrize(
    ("code", "retryable"),
    [("ThrottlingException", True), ("AccessDenied", False), ("NotFound", False), ("SSLError", False)],
)
async def test_what_is_no_rows_fault_parks_nothing_however_long(
    database: asyncpg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch, code: str, retryable: bool
) -> None:
    monkeypatch.setattr("smartpipe.outbox.relay.DELIVER_SECONDS", 0)
    transport = Refusing()
    transport.outage = TransportError(code, "no", retryable=retryable)
    written = await write(database, *(OrderPlaced(order_id=str(number)) for number in range(12)))
    relay = Relay(postgres_url, transport, RelayOptions(attempts=1))
    for _ in range(3):
        await relay.drain()
        await database.execute("UPDATE smartpipe_outbox SET next_try_at = now()")
    transport.outage = None

    left = await relay.drain()

    assert left == (0, 0, 0.0)
    assert sorted(ids(transport)) == sorted(written)


async def test_what_has_been_published_is_cleaned_up_after_its_retention(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    await write(database, ADA, ADA)
    await Relay(postgres_url, FakeTransport()).drain()
    await database.execute("UPDATE smartpipe_outbox SET published_at = now() - interval '2 hours'")
    await write(database, ADA)

    async with relaying(postgres_url, FakeTransport(), retention_seconds=3_600):
        async with asyncio.timeout(40):
            while await database.fetchval("SELECT count(*), pg_sleep(0.02) FROM smartpipe_outbox") != 1:
                continue

    assert await database.fetchval("SELECT published_at IS NOT NULL FROM smartpipe_outbox")


async def test_a_role_with_a_stricter_isolation_level_changes_nothing(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    await database.execute("ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'serializable'")
    try:
        written = await write(database, *(Paid(account=str(number % 3), number=number) for number in range(90)))
        transport = FakeTransport()
        relays = [Relay(postgres_url, transport, RelayOptions(rows=10, lanes=2)) for _ in range(3)]
        while await database.fetchval("SELECT count(*) FROM smartpipe_outbox WHERE published_at IS NULL"):
            await asyncio.gather(*(relay.drain() for relay in relays))
    finally:
        await database.execute("ALTER ROLE CURRENT_USER RESET default_transaction_isolation")

    assert sorted(ids(transport)) == sorted(written)


async def test_a_relay_outlives_its_connections(database: asyncpg.Connection, postgres_url: str) -> None:
    transport = FakeTransport()
    async with relaying(postgres_url, transport) as relay:
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND query LIKE '%smartpipe_outbox%'"
        )
        [event_id] = await write(database, ADA)
        await until(lambda: relay.published)

    assert set(ids(transport)) == {event_id}


async def test_a_database_without_the_table_is_told_with_the_command_that_mends_it(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    await database.execute("DELETE FROM smartpipe_migrations WHERE name = '0002_outbox'")
    try:
        with pytest.raises(ConfigError, match="lacks 0002_outbox: run smartpipe store migrate"):
            await Relay(postgres_url, FakeTransport()).drain()
    finally:
        await database.execute("INSERT INTO smartpipe_migrations (name) VALUES ('0002_outbox')")


def test_options_out_of_range_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        RelayOptions(rows=0, lanes=65, attempts=0)

    assert len(caught.value.problems) == 3


async def test_a_backlog_of_large_events_is_read_by_and_by(
    database: asyncpg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://outbox")
    monkeypatch.setattr("smartpipe.outbox.relay.MAX_BYTES", 1_000_000)
    outbox, transport = Outbox("shop"), FakeTransport()
    large = OrderPlaced(order_id="x" * 600_000)
    sent = [await outbox.publish(large, connection=database, autocommit=True) for _ in range(5)]
    relay = Relay(postgres_url, transport, RelayOptions(lanes=64))

    taken = [(await relay.publish_batch(database))[0] for _ in range(4)]

    assert taken == [2, 2, 1, 0]
    keys = [message.payload.key for message in transport.entries("publish") if message.payload]
    assert [key.partition("/")[0] for key in keys] == sent


class Missing(FakeTransport):
    """A transport without the queue ``gone``."""

    async def send(self, queue: str, messages: Any) -> list[Failure]:
        if queue == "gone":
            raise TransportError("QueueDoesNotExist", "no", retryable=False)
        return await super().send(queue, messages)


async def test_rows_for_a_missing_queue_hold_up_no_rows_for_others_even_if_they_fill_a_batch(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = Missing()
    async with database.transaction():
        for _ in range(45):
            await OUTBOX.publish(ADA, connection=database, queue="gone")
    async with relaying(postgres_url, transport, rows=10, lanes=64, poll_seconds=1.5) as relay:
        await asyncio.sleep(2)  # its rows are due again before the next batch
        for number in range(1, 4):
            async with database.transaction():
                published = [await OUTBOX.publish(ADA, connection=database) for _ in range(15)]
            await until(lambda count=15 * number: relay.published == count)  # type: ignore[misc]
            assert sorted(ids(transport)[-15:]) == sorted(published)
        assert (await relay.backlog()).parked == 0
    assert await database.fetchval("SELECT count(*) FROM smartpipe_outbox WHERE published_at IS NULL") == 45


async def test_a_drain_ends_although_rows_for_a_missing_queue_are_due_again_and_publishes_the_others(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    class Slow(Missing):
        async def send(self, queue: str, messages: Any) -> list[Failure]:
            await asyncio.sleep(0.6)
            return await super().send(queue, messages)

    transport = Slow()
    async with database.transaction():
        for _ in range(40):
            await OUTBOX.publish(ADA, connection=database, queue="gone")
        published = [await OUTBOX.publish(ADA, connection=database) for _ in range(15)]

    async with asyncio.timeout(30):
        backlog = await Relay(postgres_url, transport, RelayOptions(rows=10, lanes=64)).drain()

    assert backlog.waiting == 40
    assert sorted(ids(transport)) == sorted(published)
