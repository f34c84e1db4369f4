"""Brokers by way of a fault proxy, and patience that is short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest
from tenacity import wait_fixed

from tests.support.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from smartpipe import EmbeddedBroker


def _before(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(broker.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield proxy


@pytest.fixture
def fast_proxy(fast_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The default local broker, behind a proxy."""
    yield from _before(fast_broker, monkeypatch)


@pytest.fixture
def each_proxy(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Each broker in turn, by way of a proxy."""
    yield from _before(broker, monkeypatch)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database whose outbox is empty."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("TRUNCATE smartpipe_outbox")
    yield connection
    await connection.execute("TRUNCATE smartpipe_outbox")
    await connection.close()


@pytest.fixture
def no_time_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed polls are tried again soon."""
    monkeypatch.setattr("smartpipe.consumer.receive_health.OUTAGE_WAITS", wait_fixed(0.02))


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are extended every hundredth of their time, however much of it is left."""
    monkeypatch.setattr("smartpipe.consumer.leases.EXTEND_BELOW", 1.0)
    monkeypatch.setattr("smartpipe.consumer.leases.TICKS_PER_TIMEOUT", 100)


@pytest.fixture
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call without time for a retry take 20 s. A busy machine may need more than the second of production."""
    monkeypatch.setattr("smartpipe.batching.resend.MIN_CALL_SECONDS", 20.0)
