"""The waits of a relay, in virtual time: how often it asks its database when idle, in an outage, and after one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from smartpipe.message import OutgoingMessage
from smartpipe.outbox.backlog import Backlog
from smartpipe.outbox.relay import CLEAN_UP_EVERY_SECONDS, Relay, RelayOptions
from smartpipe.outbox.rows import WaitingRow, read_row
from smartpipe.outbox.statements import CLEAN_UP, LOCK_LANES
from smartpipe.publisher.publish_many import STOPPED
from tests.support.fakes import FakeTransport, refused, throttled
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


def make_row(number: int, *, attempts: int = 0) -> WaitingRow:
    return WaitingRow(number, f"event{number}", None, "topic:users", attempts, OutgoingMessage(str(number), 1, {}))


def deliver(transport: FakeTransport, *rows: WaitingRow) -> list[str]:
    """Publish the rows in one request, and return the event ids of those that failed."""

    async def main() -> list[str]:
        relay = Relay("postgresql://localhost/shop", transport)
        failed = await relay._deliver(list(rows))
        await relay.aclose()
        return [row.event_id for row, _ in failed]

    return run_virtually(main())


def bodies(transport: FakeTransport) -> list[list[str]]:
    return [[message.body for message in entries] for _, _, entries, _ in transport.calls]


def test_a_single_row_that_sns_refuses_is_sent_once() -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(0)])

    assert deliver(transport, make_row(1)) == ["event1"]
    assert bodies(transport) == [["1"]]


def test_the_rows_of_a_request_that_is_refused_as_a_whole_are_sent_once_more_each() -> None:
    transport = FakeTransport()
    transport.script["publish"] += [[refused(0), refused(1), refused(2)], [], [refused(0)], []]

    assert deliver(transport, make_row(1), make_row(2), make_row(3)) == ["event2"]
    assert bodies(transport) == [["1", "2", "3"], ["1"], ["2"], ["3"]]


def test_a_refused_row_beside_a_throttled_one_is_not_sent_again() -> None:
    transport = FakeTransport()
    transport.script["publish"] += [[refused(0), throttled(1)], *[[throttled(0)] for _ in range(1_000)]]

    assert sorted(deliver(transport, make_row(1), make_row(2))) == ["event1", "event2"]
    assert sum("1" in request for request in bodies(transport)) == 1


@pytest.mark.parametrize(
    ("attempts", "seconds", "parked"),
    [(0, 2, False), (1, 4, False), (7, 256, False), (8, 300, False), (9, 300, True), (500, 300, True)],
)
def test_the_waits_of_a_refused_row_double_up_to_five_minutes_until_it_is_parked(
    attempts: int, seconds: float, parked: bool
) -> None:
    relay = Relay("postgresql://localhost/shop", FakeTransport(), RelayOptions(attempts=10))
    waiting, bad, throttled_row, good = (
        make_row(1),
        make_row(2, attempts=attempts),
        make_row(3, attempts=4),
        make_row(4),
    )
    failures = {
        1: waiting.make_failure(STOPPED),
        2: bad.make_failure(refused(0)),
        3: throttled_row.make_failure(throttled(0)),
    }

    found = relay._failed_rows([waiting, bad, throttled_row, good], failures)

    assert [(row[0], row[1], row[3], row[4]) for row in found] == [
        (2, attempts + 1, seconds, parked),
        (3, 4, 16, False),
    ]


@pytest.mark.parametrize(
    ("destination", "group", "expected"),
    [
        ("topic:ledger.fifo", None, "topic:ledger.fifo|a"),
        ("queue:ledger.fifo", None, "queue:ledger.fifo|a"),
        ("topic:ledger.fifo", "their own", "their own"),
        ("topic:ledger", None, None),  # the group of a standard queue does not order anything
    ],
)
def test_rows_of_a_fifo_destination_have_an_ordered_group_even_if_the_column_is_empty(
    destination: str, group: str | None, expected: str | None
) -> None:
    row = {
        "id": 1, "event_id": "e", "destination": destination, "ordered_group": group, "attempts": 0, "body": "{}",
        "attributes": "{}", "group_id": "a", "deduplication_id": "1", "delay_seconds": 0, "payload": None,
        "payload_bytes": 0,
    }  # fmt: skip

    assert read_row(row).ordered_group == expected


@pytest.mark.parametrize("first_down", [False, True])
def test_each_outage_of_the_backlog_is_logged_once(
    first_down: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, queries, failures, opened, most = False, 0, 0, 0, 0
    connections: list[Connection] = []

    @asynccontextmanager
    async def connect(*_: Any, **__: Any) -> AsyncIterator[Connection]:
        nonlocal opened, most
        opened += 1
        most = max(most, opened)
        connections.append(Connection())
        try:
            yield connections[-1]
        finally:
            opened -= 1

    async def read(_: Any) -> Backlog:
        nonlocal queries, failures
        queries += 1
        failures += down
        if down:
            raise ConnectionError("nobody listens")
        return Backlog(1, 0, 0.0)

    monkeypatch.setattr("smartpipe.outbox.backlog.read_backlog", read)
    monkeypatch.setattr("smartpipe.idempotency.stores.database.DatabaseUrl.connect", connect)

    async def main() -> list[float]:
        nonlocal down
        relay, ages = RelayUnderTest(), list[float]()
        for down in (first_down, True, False, True, False):  # noqa: B007
            age_seconds = 1_000.0
            for _ in range(100):  # a scrape each second
                await asyncio.sleep(1)
                reading = await relay.backlog_reader.read()
                age_seconds = 1_000.0 if reading is None else reading.age_seconds
            ages.append(age_seconds)
            connections[-1].closed = True  # the server has closed it
        await relay.aclose()
        return ages

    with caplog.at_level(logging.WARNING, "smartpipe.relay"):
        ages = run_virtually(main())

    assert len(caplog.records) == 2
    assert [age < 6 for age in ages] == [not first_down, False, True, False, True]
    assert 90 <= queries <= 101  # one in five seconds
    assert (opened, most) == (0, 1)  # each connection is closed before the next one is opened
    assert len(connections) >= failures  # and no query uses a connection on which one has failed
