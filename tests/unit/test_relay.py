"""The waits of a relay, in virtual time: how often it asks its database when idle, in an outage, and after one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe.outbox.relay import CLEAN_UP_EVERY_SECONDS, Relay, RelayOptions
from smartpipe.outbox.statements import CLEAN_UP, LOCK_LANES
from tests.support.fakes import FakeTransport
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg

POLL_SECONDS = 5.0


class Connection:
    """A connection to an outbox without rows. It records its statements with their times."""

    def __init__(self) -> None:
        self.statements: list[tuple[float, str]] = []
        self.notify: Callable[..., None] = lambda *_: None
        self.closed = False

    @asynccontextmanager
    async def transaction(self, *, isolation: str) -> AsyncIterator[None]:
        assert isolation == "read_committed"
        yield

    async def fetch(self, statement: str, *_: Any) -> list[Any]:
        self.statements.append((asyncio.get_running_loop().time(), statement))
        return []

    async def execute(self, statement: str, *_: Any) -> None:
        await self.fetch(statement)

    async def add_listener(self, _channel: str, notify: Callable[..., None]) -> None:
        self.notify = notify

    def add_termination_listener(self, _: Any) -> None: ...

    def is_closed(self) -> bool:
        return self.closed

    def times_of(self, statement: str) -> list[float]:
        return [time for time, found in self.statements if found == statement]


class RelayUnderTest(Relay):
    """A relay whose database is a fake, and unreachable while ``down``."""

    def __init__(self) -> None:
        super().__init__("postgresql://localhost/shop", FakeTransport(), RelayOptions(poll_seconds=POLL_SECONDS))
        self.connection = Connection()
        self.down = False
        self.attempts: list[float] = []
        self.batches: list[tuple[int, float]] = []

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection | None]]:
        self.attempts.append(asyncio.get_running_loop().time())
        if self.down:
            raise ConnectionError("nobody listens")
        connection = cast("asyncpg.Connection", self.connection)
        yield connection, connection

    async def publish_batch(self, connection: asyncpg.Connection) -> tuple[int, float]:
        result = await super().publish_batch(connection)
        if self.down:
            raise ConnectionError("the connection was closed")
        return self.batches.pop(0) if self.batches else result


def run_for(seconds: float, relay: RelayUnderTest, *steps: tuple[float, Callable[[], object]]) -> RelayUnderTest:
    """Run *relay* for that time, and make the calls of *steps* at their times."""

    async def main() -> None:
        running = asyncio.create_task(relay.run())
        loop = asyncio.get_running_loop()
        for at, step in steps:
            loop.call_at(at, step)
        await asyncio.sleep(seconds)
        relay.stop()
        await running
        await relay.aclose()

    run_virtually(main())
    return relay


def test_an_idle_relay_asks_its_database_once_in_each_poll_interval() -> None:
    relay = run_for(601, RelayUnderTest())

    assert relay.connection.times_of(LOCK_LANES) == [POLL_SECONDS * number for number in range(121)]
    assert relay.connection.times_of(CLEAN_UP) == [CLEAN_UP_EVERY_SECONDS * number for number in range(11)]
    assert len(relay.attempts) == 1


def test_a_relay_continues_immediately_after_a_batch_and_waits_while_aws_is_unreachable() -> None:
    relay = RelayUnderTest()
    relay.batches = [(1_000, 0.0), (3, 0.0), (0, 0.0), (10, 2.0), (10, 2.0)]

    run_for(20, relay)

    assert relay.connection.times_of(LOCK_LANES) == [0, 0, 0, 5, 7, 9, 14, 19]


def test_a_notification_wakes_a_relay_once() -> None:
    relay = RelayUnderTest()

    run_for(12, relay, (1, lambda: relay.connection.notify()), (2, lambda: relay.connection.notify()))

    assert relay.connection.times_of(LOCK_LANES) == [0, 1, 2, 7]


def test_a_relay_whose_database_is_unreachable_tries_seldom_logs_each_attempt_and_is_not_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = RelayUnderTest()
    relay.down = True

    with caplog.at_level(logging.ERROR, "smartpipe.relay"):
        run_for(3_600, relay)

    assert 100 <= len(relay.attempts) <= 700  # up to 30 s apart, at random
    assert len(caplog.records) == len(relay.attempts)
    assert relay.failing


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_a_relay_is_ready_after_each_outage_and_begins_each_with_short_waits(round_: int) -> None:
    relay, ready = RelayUnderTest(), list[bool]()

    def set_down(down: bool) -> Callable[[], None]:
        return lambda: setattr(relay, "down", down)

    steps: list[tuple[float, Callable[[], object]]] = []
    for number in range(round_):
        start = 2_000.0 * number
        steps += [(start + 1, set_down(True)), (start + 1_000, lambda: ready.append(not relay.failing))]
        steps += [(start + 1_001, set_down(False)), (start + 1_999, lambda: ready.append(not relay.failing))]
    run_for(2_000.0 * round_, relay, *steps)

    assert ready == [False, True] * round_
    for number in range(round_):
        start = 2_000.0 * number
        in_outage = [time for time in relay.attempts if start + 1 <= time < start + 1_001]
        assert sum(time < start + 20 for time in in_outage) >= 3  # soon after the first failure
        assert len(in_outage) < 200


def test_a_relay_connects_again_if_its_connection_for_listen_is_closed() -> None:
    relay = RelayUnderTest()

    def reopen() -> None:
        relay.connection = Connection()

    run_for(30, relay, (1, lambda: setattr(relay.connection, "closed", True)), (1.1, reopen))

    assert len(relay.attempts) == 2
    assert not relay.failing
