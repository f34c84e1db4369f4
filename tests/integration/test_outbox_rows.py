"""A row of the outbox is what anybody wrote: the relay publishes it, or parks it with a reason and goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe.envelope.pointer import write_pointer
from smartpipe.errors import TransportError
from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.message import Payload
from smartpipe.outbox import Outbox, Relay, RelayOptions
from smartpipe.outbox.rows import MAX_CACHED_LENGTH, MAX_PAYLOAD_BYTES, UnreadableRow, read_row
from tests.support.events import ADA, Paid
from tests.support.fakes import FakeTransport, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from smartpipe.message import Failure, OutgoingMessage

OUTBOX = Outbox("shop")
GOOD = {"event_id": "good", "lane": 1, "destination": "topic:users", "body": "{}", "size_bytes": 2, "attributes": "{}"}
FIFO = {
    "destination": "topic:ledger.fifo",
    "ordered_group": "topic:ledger.fifo|a",
    "group_id": "a",
    "deduplication_id": "1",
}


async def insert(database: asyncpg.Connection, **columns: Any) -> None:
    row = {**GOOD, **columns}
    names, places = ", ".join(row), ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await database.execute(f"INSERT INTO smartpipe_outbox ({names}) VALUES ({places})", *row.values())


async def parked(database: asyncpg.Connection) -> dict[str, str]:
    rows = await database.fetch("SELECT event_id, error FROM smartpipe_outbox WHERE parked_at IS NOT NULL")
    return {row["event_id"]: row["error"] for row in rows}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"attributes": "[]"}, "attributes are not a JSON object"),
        ({"attributes": "null"}, "attributes are not a JSON object"),
        ({"attributes": "7"}, "attributes are not a JSON object"),
        ({"attributes": '"text"'}, "attributes are not JSON, or are nested too deeply"),
        ({"attributes": '"[1]"'}, "attributes are not a JSON object"),
        ({"attributes": '{"type": "order.placed"}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["String"]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["String", "a", "b"]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["String", 1]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["String", {"a": [1]}]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["String", ""]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["Text", "a"]}'}, "attribute 'type' is not"),
        ({"attributes": '{"type": ["Binary", "a"]}'}, "attribute 'type' is not"),
        ({"attributes": '{"a b": ["String", "a"]}'}, "attribute 'a b' is not"),
        ({"attributes": json.dumps({f"a{n}": ["String", "x"] for n in range(11)})}, "there are 11 attributes"),
        ({"attributes": json.dumps("[" * 20_000 + "]" * 20_000)}, "attributes are not JSON, or are nested too deeply"),
        ({"attributes": f'{{"a": {"9" * 5_000}}}'}, "attributes are not JSON, or are nested too deeply"),
        (
            {"attributes": json.dumps({"a": ["String", "x" * MAX_MESSAGE_BYTES]})},
            "attributes have more than 1,048,576 bytes",
        ),
        ({"destination": "users"}, "destination is neither"),
        ({"destination": ""}, "destination is neither"),
        ({"destination": "topic:"}, "destination is neither"),
        ({"destination": "queue:"}, "destination is neither"),
        ({"destination": "table:users"}, "destination is neither"),
        ({"destination": "topic:no such\nname"}, "destination is neither"),
        ({"destination": "topic:arn:aws:sns"}, "destination is neither"),
        ({"destination": "queue:arn:aws:sns:eu-west-1:123456789012:users"}, "destination is neither"),
        ({"destination": "queue:" + "x" * 300}, "destination is neither"),
        ({"body": ""}, "body is empty"),
        ({"body": "a\x01b"}, "characters that SNS and SQS do not accept"),
        ({"body": "x" * (MAX_MESSAGE_BYTES + 1)}, "body has 1,048,577 bytes"),
        ({"delay_seconds": -5, "destination": "queue:mailer"}, "delay_seconds=-5"),
        ({"delay_seconds": 901, "destination": "queue:mailer"}, "delay_seconds=901"),
        ({"delay_seconds": 5}, "only standard queues can delay"),
        ({**FIFO, "group_id": None}, "group_id is missing"),
        ({**FIFO, "group_id": "a b"}, "group_id is not"),
        ({**FIFO, "group_id": "x" * 129}, "group_id is not"),
        ({**FIFO, "deduplication_id": None}, "deduplication_id is missing"),
        ({**FIFO, "deduplication_id": ""}, "deduplication_id is not"),
        ({"payload": "{}"}, "the body does not point to S3"),
        ({"destination": "topic:" + "x" * 10_000_000}, "destination is neither"),
        ({**FIFO, "group_id": "x" * 10_000_000}, "group_id is not"),
        ({"lane": 64}, "lane 64 is not one of 0 to 63"),
        ({"lane": -1}, "lane -1 is not one of 0 to 63"),
    ],
)
async def test_a_row_that_cannot_be_read_is_parked_with_the_reason_and_the_others_are_published(
    database: asyncpg.Connection, postgres_url: str, columns: dict[str, Any], reason: str
) -> None:
    transport = FakeTransport()
    await insert(database, event_id="before")
    await insert(database, **{"event_id": "bad", **columns})
    await insert(database, event_id="behind", **{"lane": 1, **(FIFO if "group_id" in columns else {})})

    left = await Relay(postgres_url, transport).drain()

    assert (left.waiting, left.parked, len(transport.entries("publish"))) == (0, 1, 2)
    [(event_id, error)] = (await parked(database)).items()
    assert event_id == "bad"
    assert error.startswith("UnreadableRow: ")
    assert reason in error


@pytest.mark.parametrize(("length", "is_kept"), [(MAX_CACHED_LENGTH, True), (MAX_CACHED_LENGTH + 1, False)])
def test_attributes_that_were_read_are_kept_for_later_rows_only_if_they_are_short(length: int, is_kept: bool) -> None:
    frame = '{"type": ["String", ""]}'
    row = {
        **GOOD, "id": 1, "ordered_group": None, "attempts": 0, "group_id": None, "deduplication_id": None,
        "delay_seconds": 0, "payload": None, "payload_bytes": 0,
        "attributes": frame.replace('""', f'"{"x" * (length - len(frame))}"'),
    }  # fmt: skip

    first, second = (read_row(row).message.attributes for _ in range(2))

    assert first == second
    assert (first is second) is is_kept


def test_a_payload_that_postgresql_could_not_send_is_not_read() -> None:
    row = {**GOOD, "group_id": None, "deduplication_id": None, "delay_seconds": 0}

    with pytest.raises(UnreadableRow, match="payload has 536,870,913 bytes"):
        read_row({**row, "payload": None, "payload_bytes": MAX_PAYLOAD_BYTES + 1})

    longest = {
        **row, "id": 1, "ordered_group": None, "attempts": 0, "body": write_pointer("bucket", "key"),
        "payload": "text", "payload_bytes": MAX_PAYLOAD_BYTES,
    }  # fmt: skip
    assert read_row(longest).message.payload == Payload("bucket", "key", "text")


async def test_a_row_with_the_most_attempts_that_a_row_can_have_is_parked_when_sns_refuses_it(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = FakeTransport()
    transport.script["publish"].append([refused(0)])
    await insert(database, attempts=2_147_483_647)

    left = await Relay(postgres_url, transport).drain()

    assert (left.waiting, left.parked) == (0, 1)
    assert await database.fetchval("SELECT attempts FROM smartpipe_outbox") == 2_147_483_647


@pytest.mark.parametrize(
    "columns",
    [
        {"size_bytes": -1},
        {"size_bytes": 2_000_000_000},
        {"lane": 5},  # not the one that its id leads to
        {"attempts": 2_147_483_647},
        {"attempts": -3},
        {"event_id": ""},
        {"event_id": "e" * 10_000},
        {"event_id": "good"},  # twice
        {"group_id": "tenant", "deduplication_id": "x"},
        {**FIFO, "ordered_group": None},
        {"attributes": '{"type": ["String.label", "a"], "n": ["Number", "1"]}'},
        {"destination": "topic:arn:aws:sns:eu-west-1:123456789012:users"},
        {"destination": "topic:" + "x" * 256},
    ],
)
async def test_an_odd_row_that_can_be_published_is_published(
    database: asyncpg.Connection, postgres_url: str, columns: dict[str, Any]
) -> None:
    transport = FakeTransport()
    await insert(database)
    await insert(database, **columns)

    assert await Relay(postgres_url, transport).drain() == (0, 0, 0.0)
    assert len(transport.entries("publish")) == 2


async def test_attributes_that_were_encoded_twice_are_read_as_they_were_meant(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = FakeTransport()
    await insert(database, attributes=json.dumps(json.dumps({"type": ["String", "order.placed"]})))

    assert await Relay(postgres_url, transport).drain() == (0, 0, 0.0)

    [message] = transport.entries("publish")
    assert message.attributes == {"type": ("String", "order.placed")}


async def test_the_events_of_a_key_keep_their_order_around_a_row_of_it_that_cannot_be_read(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    transport = FakeTransport()
    async with database.transaction():
        for number in range(4):
            await OUTBOX.publish(Paid(account="a", number=number), connection=database)
    await database.execute(
        "UPDATE smartpipe_outbox SET attributes = '[]' WHERE id = (SELECT min(id) + 1 FROM smartpipe_outbox)"
    )

    await Relay(postgres_url, transport).drain()

    assert [json.loads(message.body)["data"]["number"] for message in transport.entries("publish")] == [0, 2, 3]
    assert len(await parked(database)) == 1


class Strict(FakeTransport):
    """Refuses the whole request for one body, as SNS does for an entry that it cannot read; or fails in its own way."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault
        self.taken: list[str] = []

    async def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[Failure]:
        if any(message.body == "poison" for message in messages):
            raise self.fault
        self.taken += [message.body for message in messages]
        return []


@pytest.mark.parametrize(
    "fault",
    [
        TransportError("InvalidParameterValue", "Invalid \0parameter \ud83e", retryable=False),
        ValueError("of the transport"),
        KeyError("of the transport"),
        TypeError(),
    ],
)
async def test_a_row_for_which_a_whole_request_is_refused_harms_no_other(
    database: asyncpg.Connection, postgres_url: str, fault: Exception
) -> None:
    transport = Strict(fault)
    for number in range(15):
        await insert(database, event_id=str(number), body="poison" if number == 4 else str(number))

    left = await Relay(postgres_url, transport, RelayOptions(attempts=1)).drain()

    assert (left.waiting, left.parked) == (0, 1)
    assert sorted(transport.taken, key=int) == [str(number) for number in range(15) if number != 4]
    assert list(await parked(database)) == ["4"]


async def test_a_row_that_was_written_at_no_time_does_not_hide_the_backlog(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    await insert(database)
    await database.execute("UPDATE smartpipe_outbox SET created_at = '-infinity', next_try_at = 'infinity'")

    left = await Relay(postgres_url, FakeTransport()).drain()

    assert left == (1, 0, 0.0)


async def test_what_another_application_wrote_into_the_table_of_lanes_is_overlooked(
    database: asyncpg.Connection, postgres_url: str
) -> None:
    await database.execute("INSERT INTO smartpipe_outbox_lanes VALUES (-7), (900)")
    try:
        async with database.transaction():
            await OUTBOX.publish(ADA, connection=database)
        assert await Relay(postgres_url, FakeTransport()).drain() == (0, 0, 0.0)
    finally:
        await database.execute("DELETE FROM smartpipe_outbox_lanes WHERE lane NOT BETWEEN 0 AND 63")
