"""What a relay's metrics cost its database: one connection, one query at a time, once in five seconds."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest

from smartpipe.cli.relay import RelayReport
from smartpipe.errors import StoreError
from smartpipe.outbox import Outbox, Relay
from smartpipe.worker.health import HealthServer
from tests.support.events import ADA
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import PostgresServer

REQUESTS = 300


@pytest.fixture
async def relay(postgres_server: PostgresServer, postgres_url: str) -> AsyncIterator[Relay]:
    relay = Relay(postgres_url, FakeTransport())
    yield relay
    postgres_server.thaw()
    await relay.aclose()


async def scrape(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        assert answer.status == 200
        return await answer.text()


def gauge(metrics: str, name: str) -> float | None:
    found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else None


async def test_three_hundred_scrapes_at_once_are_one_query_on_one_connection(
    relay: Relay, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    connected: list[Any] = []
    connect, fetchrow = asyncpg.connect, asyncpg.Connection.fetchrow

    async def counted(*args: Any, **options: Any) -> Any:
        connected.append(args)
        return await connect(*args, **options)

    async def slow(connection: Any, query: str, *args: Any, **options: Any) -> Any:
        asked.append(query)
        await connection.execute("SELECT pg_sleep(0.3)")
        return await fetchrow(connection, query, *args, **options)

    monkeypatch.setattr("asyncpg.connect", counted)
    monkeypatch.setattr("asyncpg.Connection.fetchrow", slow)
    report = RelayReport(relay, FakeTransport())
    async with (
        HealthServer(report, "127.0.0.1", 0) as health,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        # The port takes 32 at once.
        scrapes = (scrape(session, f"{health.url}/metrics") for _ in range(30))
        answers = await asyncio.gather(*scrapes, *(report.metrics() for _ in range(REQUESTS)))
        answers += [await scrape(session, f"{health.url}/metrics") for _ in range(20)]
        for path in ("livez", "readyz"):
            async with session.get(f"{health.url}/{path}") as answer:
                assert answer.status in {200, 503}

    assert {gauge(answer, "smartpipe_outbox_waiting") for answer in answers} == {0.0}
    assert (len(connected), len(asked)) == (1, 1)


async def test_after_five_seconds_the_database_is_asked_again_on_the_same_connection(
    relay: Relay, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.outbox.backlog.FRESH_SECONDS", 0.0)
    report = RelayReport(relay, FakeTransport())
    assert gauge(await report.metrics(), "smartpipe_outbox_waiting") == 0
    first = relay.backlog_reader._connection
    connection = await asyncpg.connect(postgres_url)
    async with connection.transaction():
        await Outbox("shop").publish(ADA, connection=connection)

    assert gauge(await report.metrics(), "smartpipe_outbox_waiting") == 1
    assert relay.backlog_reader._connection is first
    await connection.execute("TRUNCATE smartpipe_outbox")
    await connection.close()


async def test_a_client_that_goes_away_takes_no_answer_from_the_others(relay: Relay) -> None:
    hasty = asyncio.create_task(relay.backlog_reader.read())
    patient = asyncio.create_task(relay.backlog_reader.read())
    await asyncio.sleep(0)
    hasty.cancel()

    seen = await patient

    assert seen is not None
    assert seen.backlog == (0, 0, 0.0)


async def test_while_the_database_is_away_the_last_answer_is_given_with_its_age_and_logged_once(
    relay: Relay,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    report = RelayReport(relay, FakeTransport())
    assert gauge(await report.metrics(), "smartpipe_outbox_backlog_age_seconds") is not None
    monkeypatch.setattr("smartpipe.outbox.backlog.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("smartpipe.outbox.backlog.QUERY_SECONDS", 0.2)

    with caplog.at_level(logging.WARNING, "smartpipe.relay"):
        postgres_server.stop()
        try:
            answers = [await report.metrics() for _ in range(3)]
        finally:
            postgres_server.start()
        ages = [gauge(answer, "smartpipe_outbox_backlog_age_seconds") for answer in answers]
        assert [gauge(answer, "smartpipe_outbox_waiting") for answer in answers] == [0, 0, 0]
        assert ages == sorted(ages, key=lambda age: age or 0)
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith("Cannot read the backlog of the outbox, retrying")

    await until(lambda: relay.backlog_reader._query is None)
    for limit in ("QUERY_SECONDS", "WAIT_SECONDS"):
        monkeypatch.setattr(f"smartpipe.outbox.backlog.{limit}", 30.0)
    age = gauge(await report.metrics(), "smartpipe_outbox_backlog_age_seconds")
    assert age is not None
    assert age <= max(other or 0 for other in ages)


async def test_a_relay_that_has_not_reached_its_database_reports_for_how_long() -> None:
    relay = Relay("postgresql://127.0.0.1:9/shop", FakeTransport())
    report = RelayReport(relay, FakeTransport())
    try:
        first, second = [gauge(await report.metrics(), "smartpipe_outbox_backlog_age_seconds") for _ in range(2)]
    finally:
        await relay.aclose()

    assert first is not None
    assert second is not None
    assert 0 < first < second


async def test_a_frozen_database_holds_up_no_scrape_for_long(
    relay: Relay, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartpipe.outbox.backlog.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("smartpipe.outbox.backlog.QUERY_SECONDS", 600.0)
    postgres_server.freeze()

    answers = await asyncio.gather(*(RelayReport(relay, FakeTransport()).metrics() for _ in range(10)))

    assert not relay.backlog_reader._query.done()  # type: ignore[union-attr]
    assert [gauge(answer, "smartpipe_outbox_published_total") for answer in answers] == [0] * 10
    assert {gauge(answer, "smartpipe_outbox_waiting") for answer in answers} == {None}
    with pytest.raises(StoreError, match="no answer"):
        await relay.backlog()
