"""How often the PostgreSQL store calls its database: for expired claims, and after a failure."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest

from smartpipe.errors import StoreError
from smartpipe.idempotency.store import Claim
from smartpipe.idempotency.stores.postgres import PURGE_ROWS, PURGE_SECONDS, PostgresStore
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class PurgingStore(PostgresStore):
    """Records its purges, which delete the given numbers of rows one after the other, and take *seconds* each."""

    def __init__(self, *rows: int, seconds: float = 0.0) -> None:
        super().__init__("postgresql://localhost/shop")
        self.rows = list(rows)
        self.seconds = seconds
        self.purged_at: list[float] = []
        self.down = False

    async def purge(self, limit: int = PURGE_ROWS) -> int:
        self.purged_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.down:
            raise StoreError("the store is down")
        return self.rows.pop(0) if self.rows else 0


def claim_for(seconds: int, store: PurgingStore) -> list[float]:
    """Claim once a second, and return the times of the purges."""

    async def main() -> None:
        for _ in range(seconds):
            store._purge_if_due()
            await asyncio.sleep(1)
        await store.aclose()

    run_virtually(main())
    return store.purged_at


def test_expired_claims_are_deleted_once_a_minute_and_no_more_often() -> None:
    assert claim_for(601, PurgingStore()) == [PURGE_SECONDS * number for number in range(1, 11)]


def test_a_purge_continues_while_it_finds_as_many_rows_as_it_may_delete() -> None:
    store = PurgingStore(PURGE_ROWS, PURGE_ROWS, PURGE_ROWS - 1, PURGE_ROWS)

    assert claim_for(130, store) == [60, 60, 60, 120, 120]


def test_a_purge_that_takes_longer_than_a_minute_does_not_run_twice() -> None:
    assert claim_for(601, PurgingStore(seconds=150)) == [60, 210, 360, 510]


def test_a_purge_that_fails_is_logged_and_repeated_a_minute_later(caplog: pytest.LogCaptureFixture) -> None:
    store = PurgingStore()
    store.down = True

    with caplog.at_level(logging.WARNING, "smartpipe.idempotency"):
        assert claim_for(181, store) == [60, 120, 180]

    assert len(caplog.records) == 3
    assert "Cannot delete expired claims" in caplog.text


class Pool:
    """A pool whose connections raise the given errors, one each, and then answer."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[Pool]:  # noqa: ASYNC109 - as in asyncpg
        assert timeout > 0
        yield self

    async def fetch(self, *_: Any, timeout: float) -> list[Any]:  # noqa: ASYNC109
        assert timeout > 0
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return []

    async def close(self) -> None: ...


LOST = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


@pytest.mark.parametrize(
    ("errors", "calls", "fails"),
    [
        ([], 1, False),
        ([LOST], 2, False),  # a connection that the server has closed meanwhile
        ([LOST, LOST], 2, True),
        ([asyncpg.UndefinedTableError("no such table")], 1, True),
    ],
)
async def test_a_call_is_repeated_once_on_a_new_connection_and_only_if_its_connection_was_lost(
    errors: list[Exception], calls: int, fails: bool
) -> None:
    store, pool = PostgresStore("postgresql://localhost/shop"), Pool(*errors)
    store._claim_pool = cast("asyncpg.Pool", pool)

    with pytest.raises(StoreError) if fails else nullcontext():
        await store.release([Claim("key", "token", 30, 60)])

    assert pool.calls == calls
