"""``delivery.transaction()`` in a MemoryBroker without PostgreSQL: on a transaction that the test provides."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from smartpipe import ConfigError, Delivery, RetryPolicy, Service
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.idempotency.stores.postgres import PostgresStore
from smartpipe.testing import MemoryBroker
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class FakeConnection:
    """Keeps the statements of transactions that were committed."""

    def __init__(self, *, failures: int = 0) -> None:
        self.committed: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._statements: list[str] = []
        self._failures = failures

    async def execute(self, statement: str) -> None:
        self._statements.append(statement)

    @asynccontextmanager
    async def transaction(self, *arguments: Any) -> AsyncIterator[FakeConnection]:
        self.arguments.append(arguments)
        self._statements.clear()
        yield self
        if self._failures:
            self._failures -= 1
            raise ConnectionError("the commit failed")
        self.committed += self._statements


def make_service(*arguments: Any, error: Exception | None = None) -> Service:
    service = Service("mailer", retry=RetryPolicy(attempts=3, base_seconds=0))

    @service.subscribe(UserSignedUp, idempotent=True)
    async def work(event: UserSignedUp, delivery: Delivery) -> None:
        async with delivery.transaction(*arguments) as connection:
            await connection.execute(event.name)
            if error is not None:
                raise error

    return service


@pytest.mark.parametrize("arguments", [(), ("the factory of sessions",)])
async def test_a_fake_transaction_gets_the_arguments_and_the_event_is_handled_once(arguments: tuple[Any, ...]) -> None:
    fake = FakeConnection()

    async with MemoryBroker(make_service(*arguments), transaction=fake.transaction) as broker:
        for _ in range(3):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()

        assert len(broker.handled(UserSignedUp)) == 3
    assert fake.committed == ["Ada"]
    assert fake.arguments == [arguments]


async def test_a_handler_is_retried_if_the_commit_fails() -> None:
    fake = FakeConnection(failures=2)

    async with MemoryBroker(make_service(), transaction=fake.transaction) as broker:
        await broker.publish(ADA)
        await broker.drain()

        assert [str(record.error) for record in broker.retried()] == ["the commit failed"] * 2
        broker.assert_handled(UserSignedUp, times=1)
    assert fake.committed == ["Ada"]


async def test_a_failure_in_the_block_rolls_back() -> None:
    fake = FakeConnection()

    async with MemoryBroker(make_service(error=ValueError("no")), transaction=fake.transaction) as broker:
        await broker.publish(ADA)
        await broker.drain()

        assert broker.assert_dead_lettered(UserSignedUp).reason == "no"
    assert fake.committed == []


async def test_a_session_factory_of_sqlite_serves_as_the_transaction() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions = async_sessionmaker(engine)
    service = Service("mailer")

    @service.subscribe(UserSignedUp, idempotent=True)
    async def work(event: UserSignedUp, delivery: Delivery) -> None:
        async with delivery.transaction(sessions) as session:
            await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": event.name})

    async with sessions.begin() as session:
        await session.execute(text("CREATE TABLE effects (name text)"))
    async with MemoryBroker(service, transaction=lambda factory: factory.begin()) as broker:
        for _ in range(2):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()
        broker.assert_nothing_dead_lettered()
    async with sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM effects")) == 1
    await engine.dispose()


async def test_without_postgresql_and_without_a_fake_the_error_names_both_remedies() -> None:
    async with MemoryBroker(make_service()) as broker:
        await broker.publish(ADA)
        await broker.drain()

        reason = broker.assert_dead_lettered(UserSignedUp).reason
    assert "MemoryBroker(idempotency_url=" in reason
    assert "MemoryBroker(transaction=" in reason


async def test_a_store_that_is_passed_is_used_and_closed() -> None:
    class Watched(MemoryStore):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1
            await super().aclose()

    store, service = Watched(), Service("mailer")
    handled: list[str] = []

    @service.subscribe(UserSignedUp, idempotent=True)
    async def work(event: UserSignedUp) -> None:
        handled.append(event.name)

    async with MemoryBroker(service, store=store) as broker:
        for _ in range(2):
            await broker.publish(ADA, event_id="event-1")
            await broker.drain()

    assert handled == ["Ada"]
    assert store.closed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": MemoryStore(), "idempotency_url": "memory://"}, "set one of them"),
        ({"store": MemoryStore(), "transaction": FakeConnection().transaction}, "set one of them"),
        ({"store": PostgresStore("postgresql://localhost/x")}, r"store=...\): .* add virtual=False"),
        ({"idempotency_url": "postgresql://localhost/x"}, r"idempotency_url=...\): .* add virtual=False"),
    ],
    ids=["store and URL", "store and transaction", "virtual store", "virtual URL"],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryBroker(make_service(), **arguments)
