"""One transaction of a relay on a fake database: the rows that it publishes and marks, and its waits in an outage."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from asyncpg import InsufficientPrivilegeError

from smartpipe import StoreError, TransportError
from smartpipe.errors import PublishFailure
from smartpipe.message import Failure
from smartpipe.outbox.backlog import Backlog
from smartpipe.outbox.relay import (
    CLEAN_UP_ROWS,
    ENVIRONMENT_ERRORS,
    MAX_ATTEMPTS,
    MAX_BYTES,
    Relay,
    RelayOptions,
    _is_poison,
)
from smartpipe.outbox.statements import (
    CLEAN_UP,
    LOCK_LANES,
    MARK_FAILED,
    MARK_PUBLISHED,
    PARK_UNREACHABLE,
    WAITING_ROWS,
)
from smartpipe.payload_offload import PayloadOffload
from tests.support.events import ADA
from tests.support.fakes import UNREACHABLE, FakeTransport, refused, throttled
from tests.support.virtual_time import run_virtually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

POLL_SECONDS = 7.0


def make_record(number: int, destination: str = "topic:users", **columns: Any) -> dict[str, Any]:
    return {
        "id": number, "event_id": f"e{number}", "destination": destination, "ordered_group": None, "attempts": 0,
        "body": str(number), "body_bytes": 1, "attributes": "{}", "group_id": None, "deduplication_id": None,
        "delay_seconds": 0, "payload": None, "payload_bytes": 0, "bytes": 1, **columns,
    }  # fmt: skip


def make_paid(number: int, group: str = "a") -> dict[str, Any]:
    return make_record(number, "topic:ledger.fifo", group_id=group, deduplication_id=str(number))


class Database:
    """A database with these rows and lanes. It records the statements and what they got."""

    def __init__(self, *records: dict[str, Any], lanes: int = 3) -> None:
        self.records, self.lanes = list(records), lanes
        self.published: list[int] = []
        self.failed: list[tuple[Any, ...]] = []
        self.asked: dict[str, tuple[Any, ...]] = {}
        self.counts: Counter[str] = Counter()
        self.unreachable: list[dict[str, str]] = []
        self.forbidden = False

    @asynccontextmanager
    async def transaction(self, *, isolation: str) -> AsyncIterator[None]:
        yield

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        self.asked[statement] = values
        self.counts[statement] += 1
        if statement == LOCK_LANES:
            return [{"lane": lane} for lane in range(self.lanes)]
        if statement == PARK_UNREACHABLE:
            return self.unreachable
        records, self.records = self.records, []
        return records

    async def execute(self, statement: str, *values: Any) -> None:
        self.asked[statement] = values
        self.counts[statement] += 1
        if statement == CLEAN_UP and self.forbidden:
            raise InsufficientPrivilegeError("permission denied")
        if statement == MARK_PUBLISHED:
            self.published += values[0]
        elif statement == MARK_FAILED:
            self.failed += zip(*values, strict=True)


class Relaying:
    def __init__(self, *records: dict[str, Any], lanes: int = 3) -> None:
        self.database, self.transport = Database(*records, lanes=lanes), FakeTransport()
        options = RelayOptions(rows=50, lanes=5, poll_seconds=POLL_SECONDS)
        self.relay = Relay("postgresql://localhost/shop", self.transport, options)

    async def publish(self) -> tuple[int, float]:
        return await self.relay.publish_batch(cast("asyncpg.Connection", self.database))


def test_rows_are_published_marked_and_counted() -> None:
    async def main() -> None:
        relaying = Relaying(*(make_record(number) for number in range(12)), make_record(20, "queue:mailer"))
        assert await relaying.publish() == (13, 0)
        calls = [(verb, name, len(entries)) for verb, name, entries, _ in relaying.transport.calls]
        assert calls == [("publish", "users", 10), ("publish", "users", 2), ("send", "mailer", 1)]
        assert sorted(relaying.database.published) == [*range(12), 20]
        assert (relaying.relay.published, relaying.database.failed) == (13, [])
        assert relaying.database.asked[LOCK_LANES] == (5,)
        assert relaying.database.asked[WAITING_ROWS] == ([0, 1, 2], 50, MAX_BYTES, [])

        relaying.database.records.append(make_record(30))
        assert await relaying.publish() == (1, 0)
        assert relaying.relay.published == 14
        assert await relaying.publish() == (0, 0)

    run_virtually(main())


def test_without_a_free_lane_no_row_is_read() -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1), lanes=0)
        assert await relaying.publish() == (0, 0)
        assert list(relaying.database.asked) == [LOCK_LANES]
        assert relaying.transport.calls == []

    run_virtually(main())


@pytest.mark.parametrize(
    ("failures", "wait_seconds"),
    [
        ([throttled(0), throttled(1)], POLL_SECONDS),  # an outage
        ([Failure(0, "AccessDenied", "no", retryable=False), throttled(1)], POLL_SECONDS),
        ([throttled(0)], 0),  # one was published
        ([refused(0), throttled(1)], 0),  # one was refused, so AWS answers
        ([refused(0)], 0),
    ],
)
def test_a_relay_waits_if_nothing_was_published_and_no_row_is_to_blame(
    failures: list[Failure], wait_seconds: float
) -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1), make_record(2))
        codes = {failure.position: failure for failure in failures}
        again = [codes[position]._replace(position=0) for position in codes if codes[position].retryable]
        relaying.transport.script["publish"].append(failures)
        relaying.transport.script["publish"].extend([again_of(again) for _ in range(1_000)])
        assert await relaying.publish() == (2, wait_seconds)
        assert len(relaying.database.published) == 2 - len(failures)
        assert len(relaying.database.failed) == len(failures)
        assert asyncio.get_running_loop().time() <= 10  # a lock of lanes is not held for longer

    run_virtually(main())


def again_of(failures: list[Failure]) -> list[Failure]:
    """Return the failures of the entries that are sent again, by their new positions."""
    return [failure._replace(position=position) for position, failure in enumerate(failures)]


def test_a_group_stops_at_its_first_failure_and_its_other_rows_wait_without_an_attempt() -> None:
    async def main() -> None:
        relaying = Relaying(make_paid(1), make_paid(2), make_paid(3, "b"), make_paid(4))
        relaying.transport.script["publish"].append([refused(0)])
        assert await relaying.publish() == (4, 0)
        assert relaying.database.published == [3]
        assert [row[:2] for row in relaying.database.failed] == [(1, 1)]
        sent = [[entry.body for entry in entries] for _, _, entries, _ in relaying.transport.calls]
        assert sent == [["1"], ["3"]]

    run_virtually(main())


def test_a_row_that_cannot_be_read_is_parked_and_the_others_are_published(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1, body=""), make_record(2), make_record(3, attributes="[]", attempts=4))
        assert await relaying.publish() == (3, 0)
        assert relaying.database.published == [2]
        assert relaying.database.failed == [
            (1, 0, "UnreadableRow: body is empty", 0, True),
            (3, 4, "UnreadableRow: attributes are not a JSON object", 0, True),
        ]

        only = Relaying(make_record(1, body=""))
        assert await only.publish() == (1, 0)  # no outage: nothing was sent
        assert only.transport.calls == []

    run_virtually(main())
    assert caplog.messages[0] == "Cannot read event e1, parking it: body is empty"


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("x"), TypeError("x"), ZeroDivisionError(), StoreError("x")]
)
def test_an_error_of_a_transport_about_the_contents_of_a_row_is_its_failure(error: Exception) -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1))
        relaying.transport.script["publish"].append(error)
        assert await relaying.publish() == (1, 0)
        [(number, attempts, text, seconds, parked)] = relaying.database.failed
        assert (number, attempts, seconds, parked) == (1, 1, 2, False)
        assert text == f"{type(error).__name__}: {error}"

    run_virtually(main())


def test_the_errors_of_a_transport_itself_are_repeated_if_they_are_temporary() -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1))
        relaying.transport.script["publish"].extend([UNREACHABLE, TransportError("Throttled", "x", retryable=True)])
        assert await relaying.publish() == (1, 0)
        assert relaying.database.published == [1]
        assert len(relaying.transport.calls) == 3

    run_virtually(main())


@pytest.mark.parametrize(
    ("code", "retryable", "poison"),
    [
        ("InvalidParameter", False, True),
        ("InvalidParameter", True, False),
        *((code, False, False) for code in sorted(ENVIRONMENT_ERRORS)),
    ],
)
def test_a_row_is_to_blame_for_a_permanent_failure_that_is_not_one_of_the_environment(
    code: str, retryable: bool, poison: bool
) -> None:
    assert _is_poison(PublishFailure(ADA, "e", code, "detail", retryable)) == poison


def test_attempts_stay_within_their_column_and_outages_are_not_attempts() -> None:
    async def main() -> None:
        relaying = Relaying(make_record(1, attempts=MAX_ATTEMPTS), make_record(2, attempts=0))
        denied = Failure(1, "AccessDenied", "no", retryable=False)
        relaying.transport.script["publish"].append([refused(0), denied])
        await relaying.publish()
        assert [(row[0], row[1], row[3], row[4]) for row in relaying.database.failed] == [
            (1, MAX_ATTEMPTS, 300, True),
            (2, 0, 1, False),
        ]

    run_virtually(main())


def test_the_backlog_is_read_once_in_five_seconds_and_a_slow_query_is_waited_for_for_three(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries: list[float] = []
    seconds = 0.0

    class Open:
        def is_closed(self) -> bool:
            return False

    @asynccontextmanager
    async def connect(*_: Any, **__: Any) -> AsyncIterator[Open]:
        yield Open()

    async def read(_: Any) -> Backlog:
        queries.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
        return Backlog(len(queries), 0, 1.5)

    monkeypatch.setattr("smartpipe.outbox.backlog.read_backlog", read)
    monkeypatch.setattr("smartpipe.idempotency.stores.database.DatabaseUrl.connect", connect)

    async def main() -> None:
        nonlocal seconds
        relay, clock = Relaying().relay, asyncio.get_running_loop().time
        for _ in range(3):
            assert await relay.backlog() == Backlog(1, 0, 1.5)
            await asyncio.sleep(1.5)
        assert queries == [0]
        await asyncio.sleep(0.5)  # five seconds after the end of the query
        assert await relay.backlog() == Backlog(2, 0, 1.5)
        assert queries == [0, 5]

        await asyncio.sleep(5)
        seconds, began = 4.0, clock()
        readings = await asyncio.gather(*(relay.backlog_reader.read() for _ in range(9)))
        assert {reading.backlog.waiting for reading in readings if reading is not None} == {2}
        assert {reading.age_seconds for reading in readings if reading is not None} == {8}
        assert (clock() - began, len(queries)) == (3, 3)  # all waited for one query, and then got the last result
        await asyncio.sleep(1.5)
        assert await relay.backlog() == Backlog(3, 0, 1.5)

        await asyncio.sleep(6)
        seconds = 1_000.0
        waiting = asyncio.create_task(relay.backlog())
        await asyncio.sleep(1)
        began = clock()
        await relay.aclose()
        await relay.aclose()
        assert clock() == began
        assert await waiting == Backlog(3, 0, 1.5)

    run_virtually(main())


def test_a_backlog_that_was_never_read_is_an_error_that_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connect(*_: Any, **__: Any) -> AsyncIterator[None]:
        raise ConnectionError("nobody listens")
        yield

    monkeypatch.setattr("smartpipe.idempotency.stores.database.DatabaseUrl.connect", connect)

    async def main() -> None:
        relay = Relaying().relay
        with pytest.raises(StoreError, match="backlog at .*localhost.*: no answer"):
            await relay.backlog()
        await relay.aclose()

    run_virtually(main())


class DrainingRelay(Relay):
    """A relay whose connection is the fake database."""

    def __init__(self, database: Database) -> None:
        super().__init__("postgresql://localhost/shop", FakeTransport(), RelayOptions(retention_seconds=77))
        self.database = database

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection | None]]:
        yield cast("asyncpg.Connection", self.database), None


def test_a_drain_parks_the_rows_in_lanes_that_do_not_exist_and_publishes_until_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read(_: Any) -> Backlog:
        return Backlog(0, 2, 0.0)

    monkeypatch.setattr("smartpipe.outbox.relay.read_backlog", read)

    async def main() -> None:
        database = Database(make_record(1))
        database.unreachable = [{"event_id": "lost"}]
        relay = DrainingRelay(database)
        assert await relay.drain() == Backlog(0, 2, 0.0)
        assert relay.published == 1
        await relay.aclose()

    run_virtually(main())
    assert caplog.messages == ["Cannot publish event lost, parking it: its lane does not exist"]
    assert "lane NOT BETWEEN 0 AND 63 AND" in PARK_UNREACHABLE
    assert "is not one of 0 to 63'" in PARK_UNREACHABLE


def test_a_running_relay_cleans_up_each_minute_and_warns_once_if_it_may_not(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        database = Database()
        database.forbidden = True
        relay = DrainingRelay(database)
        running = asyncio.create_task(relay.run())
        await asyncio.sleep(200)
        assert database.counts[CLEAN_UP] == database.counts[PARK_UNREACHABLE] == 4
        assert database.asked[CLEAN_UP] == (77, CLEAN_UP_ROWS)
        relay.stop()
        await running
        await relay.aclose()

    run_virtually(main())
    warnings = [message for message in caplog.messages if message.startswith("Cannot delete published events")]
    assert len(warnings) == 1


async def test_a_relay_closes_its_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []

    async def close(payloads: PayloadOffload) -> None:
        closed.append(payloads)

    monkeypatch.setattr(PayloadOffload, "aclose", close)
    relay = Relaying().relay
    await relay.aclose()

    assert closed == [relay._payloads]


@pytest.mark.parametrize(
    ("count", "failures", "blocked"),
    [
        (50, [TransportError("NotFound", "no", retryable=False)] * 5, ["topic:users"]),
        (49, [TransportError("NotFound", "no", retryable=False)] * 5, []),  # there are no rows behind them
        (50, [TransportError("NotFound", "no", retryable=False)] * 4, []),  # some were published
        (50, [TransportError("InvalidParameter", "no", retryable=False)] * 55, []),  # they wait for longer each time
    ],
)
def test_the_batch_after_a_full_one_leaves_out_the_destinations_for_which_nothing_was_published(
    count: int, failures: list[TransportError], blocked: list[str]
) -> None:
    async def main() -> None:
        relaying = Relaying(*(make_record(number) for number in range(count)))
        relaying.transport.script["publish"].extend(failures)
        await relaying.publish()
        relaying.database.records.append(make_record(60, "queue:mailer"))
        assert await relaying.publish() == (1, 0)
        assert relaying.database.asked[WAITING_ROWS][3] == blocked
        relaying.database.records.append(make_record(61))
        assert await relaying.publish() == (1, 0)
        assert relaying.database.asked[WAITING_ROWS][3] == []

    run_virtually(main())


def test_a_relay_waits_if_only_blocked_destinations_have_rows() -> None:
    async def main() -> None:
        relaying = Relaying(*(make_record(number) for number in range(50)))
        failure = TransportError("NotFound", "no", retryable=False)
        relaying.transport.script["publish"].extend([failure] * 10)
        assert await relaying.publish() == (50, 0)
        fetched = relaying.database.counts[WAITING_ROWS]
        relaying.relay._blocked = frozenset({"topic:users"})
        assert await relaying.publish() == (0, 0)
        assert relaying.database.counts[WAITING_ROWS] == fetched + 2

    run_virtually(main())
