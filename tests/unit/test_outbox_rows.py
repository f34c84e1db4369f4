"""Rows of the outbox: how an event becomes one, and which rows become messages again."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest

from smartpipe import ConfigError, Event, Queue
from smartpipe.envelope.pointer import write_pointer
from smartpipe.limits import MAX_MESSAGE_BYTES
from smartpipe.message import Attribute, Failure, Payload, size_bytes
from smartpipe.outbox import Outbox, RelayOptions
from smartpipe.outbox.alembic import TABLES, include_object
from smartpipe.outbox.rows import (
    LANES,
    MAX_PAYLOAD_BYTES,
    UnreadableRow,
    document_of,
    insert_statement,
    read_row,
    row_of,
    storable_text,
)
from smartpipe.publisher.prepare import Publication, prepare
from tests.support.events import ADA, Paid

GOOD: dict[str, Any] = {
    "id": 1, "event_id": "e", "destination": "queue:mailer", "ordered_group": None, "attempts": 3, "body": "{}",
    "body_bytes": 2, "attributes": '{"type": ["String", "x"]}', "group_id": None, "deduplication_id": None,
    "delay_seconds": 0, "payload": None, "payload_bytes": 0,
}  # fmt: skip
FIFO = {"destination": "queue:ledger.fifo", "group_id": "a", "deduplication_id": "1"}


def test_a_row_becomes_a_message_with_everything_that_the_event_had() -> None:
    row = read_row(GOOD | FIFO | {"destination": "topic:arn:aws:sns:eu-west-1:123456789012:ledger.fifo"})

    assert (row.id, row.event_id, row.attempts, row.for_topic) == (1, "e", 3, True)
    assert row.name == "arn:aws:sns:eu-west-1:123456789012:ledger.fifo"
    assert row.ordered_group == f"{row.destination}|a"
    assert row.message.attributes == {"type": Attribute("String", "x")}
    assert row.message.size_bytes == size_bytes("{}", row.message.attributes)
    assert (row.message.group_id, row.message.deduplication_id, row.message.payload) == ("a", "1", None)
    assert not read_row(GOOD).for_topic
    assert read_row(GOOD).name == "mailer"

    failure = row.make_failure(Failure(7, "Throttled", "slow down", retryable=True))
    assert failure.event is row  # type: ignore[comparison-overlap]
    assert (failure.event_id, failure.code, failure.detail, failure.retryable) == ("e", "Throttled", "slow down", True)


@pytest.mark.parametrize(
    "columns",
    [
        {"delay_seconds": 900},
        {"group_id": "g" * 128},
        FIFO | {"deduplication_id": "d" * 128},
        {"destination": "queue:" + "q" * 80},
        {"attributes": json.dumps({f"a{n}": ["String", "x"] for n in range(10)})},
        {"attributes": json.dumps({"n": ["Number." + "x" * 249, "1"]})},
        {"attributes": "{}"},
        {"payload": "text", "body": write_pointer("bucket", "key"), "payload_bytes": MAX_PAYLOAD_BYTES},
        {"body": "\u20ac\t\n\ud7ff\U0010ffff"},
    ],
    ids=lambda columns: next(reversed(columns)),
)
def test_a_row_at_a_limit_can_be_published(columns: dict[str, Any]) -> None:
    row = read_row(GOOD | columns)

    assert row.message.body == columns.get("body", "{}")
    assert row.message.delay_seconds == columns.get("delay_seconds", 0)
    if "payload" in columns:
        assert row.message.payload == Payload("bucket", "key", "text")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"delay_seconds": 901}, "delay_seconds=901 is outside of 0 to 900"),
        ({"delay_seconds": -1}, "delay_seconds=-1 is outside of 0 to 900"),
        ({"delay_seconds": 1, "destination": "topic:users"}, "delay_seconds=1: only standard queues can delay"),
        (FIFO | {"delay_seconds": 1}, "delay_seconds=1: only standard queues can delay"),
        ({"group_id": "g" * 129}, "group_id is not 1 to 128 letters, digits"),
        ({"group_id": ""}, "group_id is not 1 to 128 letters, digits"),
        (FIFO | {"group_id": None}, "group_id is missing, but a FIFO topic or queue requires it"),
        (FIFO | {"deduplication_id": None}, "deduplication_id is missing"),
        (FIFO | {"deduplication_id": "a b"}, "deduplication_id is not 1 to 128 letters, digits"),
        ({"destination": "queue:" + "q" * 81}, "destination is neither topic:NAME nor queue:NAME: "),
        ({"destination": "other:mailer"}, "destination is neither topic:NAME nor queue:NAME$"),
        ({"body": None, "body_bytes": 2_000_000}, "body has 2,000,000 bytes; SNS and SQS accept at most 1,048,576"),
        ({"body": ""}, "body is empty"),
        ({"body": "\x00"}, "body has characters that SNS and SQS do not accept"),
        ({"body": "\ufffe"}, "body has characters that SNS and SQS do not accept"),
        ({"attributes": None}, f"attributes have more than {MAX_MESSAGE_BYTES:,} bytes"),
        ({"attributes": json.dumps({f"a{n}": ["String", "x"] for n in range(11)})}, "there are 11 attributes; a"),
        ({"attributes": json.dumps({"n": ["Number." + "x" * 250, "1"]})}, "attribute 'n' is not"),
        ({"attributes": json.dumps({"n" * 300: ["String", "1"]})}, f"attribute '{'n' * 100}' is not"),
        ({"payload": "text"}, "there is a payload, but the body does not point to S3"),
        ({"payload_bytes": MAX_PAYLOAD_BYTES + 1}, "payload has 536,870,913 bytes; the maximum is 536,870,912"),
    ],
)
def test_a_row_beyond_a_limit_is_unreadable_and_the_reason_names_the_column(
    columns: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnreadableRow, match=reason):
        read_row(GOOD | columns)


def test_events_of_one_key_share_a_lane_and_all_others_are_distributed() -> None:
    def rows(count: int, event: Event) -> list[dict[str, Any]]:
        return [row_of(prepare(Publication(event), source="s")) for _ in range(count)]

    ordered = [*rows(50, Paid(account="a")), *rows(50, Paid(account="b"))]
    others = rows(2_000, ADA)

    assert len({row["lane"] for row in ordered[:50]}) == len({row["lane"] for row in ordered[50:]}) == 1
    assert {row["ordered_group"] for row in ordered} == {"topic:ledger.fifo|a", "topic:ledger.fifo|b"}
    assert {row["lane"] for row in others} == set(range(LANES))
    assert {row["ordered_group"] for row in others} == {None}


def test_a_row_has_the_values_of_its_message() -> None:
    prepared = prepare(Publication(ADA, {"tenant": "a"}, Queue("mailer"), 7.5), source="s")

    row = row_of(prepared)

    assert (row["event_id"], row["destination"], row["body"]) == (
        prepared.event_id,
        "queue:mailer",
        prepared.message.body,
    )
    assert (row["size_bytes"], row["delay_seconds"], row["payload"]) == (prepared.message.size_bytes, 8, None)
    assert row["attributes"] == {"type": ["String", "member.signed_up"], "tenant": ["String", "a"]}


def test_a_document_is_the_row_and_its_statement_names_every_column() -> None:
    row = row_of(prepare(Publication(ADA, {"tenant": "\u20ac"}), source="s"))

    assert json.loads(b64decode(document_of(row)).decode()) == row
    statement = insert_statement("$1")
    names = ", ".join(row)
    assert statement.startswith(f"INSERT INTO smartpipe_outbox ({names}) SELECT {names} FROM ")
    assert "decode($1, 'base64')" in statement
    assert all(f"{name} " in statement.partition(" AS event (")[2] for name in row)


@pytest.mark.parametrize(
    ("text", "stored"),
    [("x" * 2_000, "x" * 2_000), ("x" * 2_001, "x" * 2_000), ("a\0b\0", "ab"), ("\ud800!", "?!"), ("\u20ac", "\u20ac")],
)
def test_an_error_is_stored_as_text_that_postgresql_takes(text: str, stored: str) -> None:
    assert storable_text(text) == stored


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "beyond"),
    [
        ("rows", 1, 10_000, (0, 10_001)),
        ("lanes", 1, 64, (0, 65)),
        ("attempts", 1, 1_000, (0, 1_001)),
        ("poll_seconds", 0.1, 3_600, (0.09, 3_600.1)),
        ("retention_seconds", 0, 31_536_000, (-1, 31_536_001)),
    ],
)
def test_an_option_of_the_relay_is_accepted_within_its_range(
    name: str, lowest: float, highest: float, beyond: tuple[float, float]
) -> None:
    for value in (lowest, highest):
        options: dict[str, Any] = {name: value}
        assert getattr(RelayOptions(**options), name) == value
    for value in beyond:
        options = {name: value}
        with pytest.raises(ConfigError, match=f"RelayOptions: {name}={value} is outside of {lowest:,} to {highest:,}"):
            RelayOptions(**options)


def test_a_relay_takes_half_of_the_lanes_ten_attempts_and_a_day_of_retention_by_default() -> None:
    options = RelayOptions()

    assert (options.rows, options.lanes, options.attempts) == (1_000, 32, 10)
    assert (options.poll_seconds, options.retention_seconds) == (5, 86_400)


def test_alembic_leaves_the_tables_of_smartpipe_out_and_compares_everything_else() -> None:
    assert [include_object(None, name, "table", False, None) for name in sorted(TABLES)] == [False] * len(TABLES)
    assert include_object(None, "orders", "table", False, None)
    assert include_object(None, "smartpipe_outbox", "column", False, None)
    assert include_object(None, None, "schema", True, None)


@pytest.mark.parametrize("connection", [object(), None, "postgresql://localhost"])
async def test_an_object_that_is_no_connection_is_refused_with_those_that_are(connection: Any) -> None:
    outbox, kind = Outbox("shop"), type(connection).__name__

    with pytest.raises(ConfigError, match=rf"this {kind} cannot be used; pass the asyncpg Connection, the SQLAlchemy"):
        await outbox.publish(ADA, connection=connection)
    with pytest.raises(ConfigError, match=rf"this {kind} cannot be used; pass the SQLAlchemy Connection or Session"):
        outbox.publish_blocking(ADA, connection=connection)
