from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe.cli.dlq import describe
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.dlq.messages import NO_REASON, Selection, existed_before, preview, read_message
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.compression import compress
from smartpipe.envelope.pointer import write_pointer
from smartpipe.message import Attribute, Message
from tests.support.bodies import body_of
from tests.support.events import ADA
from tests.support.forgeries import FORGED, UNREADABLE

ENVELOPE = wrap(ADA, source="portal")
EXHAUSTED = {"kind": "retries-exhausted", "error_type": "builtins.ConnectionError", "message": "the Bank is closed"}


def message(body: str | None = None, reason: object = None, sent_at: float | None = 1_000.0) -> Message:
    value = reason if isinstance(reason, str) else json.dumps(reason)
    attributes = {REASON_ATTRIBUTE: Attribute("String", value)} if reason is not None else {}
    return Message("m1", "r1", encode(ENVELOPE) if body is None else body, attributes=attributes, sent_at=sent_at)


def test_a_dead_letter_message_has_its_event_and_its_reason() -> None:
    dead_letter = read_message(message(reason=EXHAUSTED))

    assert (dead_letter.event_id, dead_letter.event_type, dead_letter.source) == (
        ENVELOPE.id,
        "member.signed_up",
        "portal",
    )
    assert json.loads(preview(dead_letter.message, 1_000))["name"] == "Ada"
    assert (dead_letter.kind, dead_letter.error) == ("retries-exhausted", "ConnectionError: the Bank is closed")


def test_an_event_in_an_sns_notification_is_read_too() -> None:
    fields = {"Type": "Notification", "MessageId": "n", "TopicArn": "arn", "Message": encode(ENVELOPE)}

    assert read_message(message(json.dumps(fields))).event_id == ENVELOPE.id


def test_a_compressed_event_is_read_and_of_one_in_s3_the_id_and_the_type() -> None:
    encoding = {"content-encoding": Attribute("String", "gzip")}
    size = {"ExtendedPayloadSize": Attribute("Number", "9"), "type": Attribute("String", "member.signed_up")}

    squeezed = read_message(message(compress(encode(ENVELOPE), "gzip"))._replace(attributes=encoding))
    away = read_message(message(write_pointer("bucket", f"staging/{ENVELOPE.id}"))._replace(attributes=size))
    broken = read_message(message("no gzip")._replace(attributes=encoding))

    assert (squeezed.event_id, json.loads(preview(squeezed.message, 1_000))["name"]) == (ENVELOPE.id, "Ada")
    assert (away.event_id, away.event_type) == (ENVELOPE.id, "member.signed_up")
    assert preview(away.message, 1_000) == away.message.body
    assert broken.name == "m1"


BINARY_MODE = {
    "ce-id": "7", "ce-source": "/shop", "ce-type": "com.example/order:placed", "ce-dataversion": "2.1",
}  # fmt: skip


@pytest.mark.parametrize("form", ["direct", "wrapped", "compressed", "pointer"])
def test_an_event_in_binary_mode_is_named_by_its_attributes_and_not_by_its_data(form: str) -> None:
    attributes = {name: Attribute("String", value) for name, value in BINARY_MODE.items()}
    body = json.dumps({"id": "customer-7", "type": "premium", "data": "of the customer"})
    found = message(body)._replace(attributes=attributes)
    if form == "wrapped":
        written = {name: {"Type": "String", "Value": value} for name, value in BINARY_MODE.items()}
        fields = {"Type": "Notification", "MessageId": "n", "TopicArn": "arn", "Message": body}
        found = message(json.dumps({**fields, "MessageAttributes": written}))
    if form == "compressed":
        more = {"content-encoding": Attribute("String", "gzip")}
        found = message(compress(body, "gzip"))._replace(attributes={**attributes, **more})
    if form == "pointer":
        more = {"ExtendedPayloadSize": Attribute("Number", "9")}
        found = message(write_pointer("bucket", "any"))._replace(attributes={**attributes, **more})

    dead = read_message(found)

    assert (dead.event_id, dead.event_type, dead.source, dead.version) == (
        "7",
        "com.example/order:placed",
        "/shop",
        "2.1",
    )
    assert preview(found, 1_000) == found.body


def test_an_event_in_structured_mode_is_not_named_by_attributes_of_binary_mode() -> None:
    attributes = {name: Attribute("String", value) for name, value in BINARY_MODE.items()}

    dead = read_message(message()._replace(attributes=attributes))
    other = read_message(message('{"id": "a"}')._replace(attributes={"ce-id": Attribute("String", "7")}))

    assert (dead.event_id, dead.event_type) == (ENVELOPE.id, "member.signed_up")
    assert other.event_id == "a"  # without source and type, it is not an event


def test_a_message_that_a_raw_handler_took_is_named_by_its_type_and_not_by_fields_of_its_body() -> None:
    reason = {**EXHAUSTED, "event_type": "Invoice", "event_id": "m0"}
    body = json.dumps({"id": "i-7", "type": "reminder", "data": {"cents": 1}})

    dead = read_message(message(body, reason))

    assert (dead.event_id, dead.event_type) == ("m0", "Invoice")
    assert preview(dead.message, 1_000) == body


@pytest.mark.parametrize("body", ["", "no JSON", "[1]", "7", '{"id": 7, "type": null}', '{"id": {}}'])
def test_a_message_that_is_not_an_event_is_named_by_its_message_id(body: str) -> None:
    dead_letter = read_message(message(body))

    assert (dead_letter.event_id, dead_letter.event_type, dead_letter.name, dead_letter.kind) == (
        None,
        None,
        "m1",
        NO_REASON,
    )


@pytest.mark.parametrize("forged", UNREADABLE)
def test_a_reason_that_no_worker_writes_is_not_a_reason(forged: str) -> None:
    dead_letter = read_message(message(reason=UNREADABLE[forged]))

    assert (dead_letter.kind, dead_letter.error, dead_letter.reason) == (NO_REASON, "", {})


def test_a_reason_that_is_not_text_is_not_a_reason() -> None:
    binary = {REASON_ATTRIBUTE: Attribute("Binary", json.dumps(EXHAUSTED).encode())}

    assert read_message(message()._replace(attributes=binary)).kind == NO_REASON


def test_a_message_that_sqs_moved_has_no_reason_even_if_its_producer_wrote_one() -> None:
    """The producer's attribute is still there, because no worker has taken it off."""
    moved = message(reason=EXHAUSTED)._replace(moved_from="arn:aws:sqs:us-east-1:000000000000:billing")

    assert read_message(moved).kind == NO_REASON
    assert not Selection(reasons=("retries-exhausted",)).matches(read_message(moved))


@pytest.mark.parametrize("forged", FORGED)
def test_a_message_with_any_forged_reason_can_be_described(forged: str) -> None:
    dead_letter = read_message(message(reason=FORGED[forged]))

    lines = describe(dead_letter)

    assert all(line.isprintable() for line in lines)
    assert ENVELOPE.id in lines[0]
    assert len(json.dumps(dead_letter.reason)) < 100_000


def test_a_preview_ends_where_the_line_does_and_data_that_is_not_shown_is_not_encoded() -> None:
    body = body_of('{"anything":' + json.dumps(["x" * 50] * 10_000) + "}")

    assert preview(message(body), 80) == json.dumps({"anything": ["x" * 50] * 2})[:80]


def test_data_with_too_many_values_is_shown_as_text() -> None:
    body = body_of('{"anything":[' + "{}," * 70_000 + "{}]}")

    assert preview(message(body), 40) == body[:40]
    assert read_message(message(body)).event_type == "survey"


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({}, True),
        ({"types": ("member.signed_up", "other")}, True),
        ({"types": ("member",)}, False),
        ({"reasons": ("retries-exhausted",)}, True),
        ({"reasons": ("rejected", "connectionerror")}, True),
        ({"reasons": ("bank is CLOSED",)}, True),
        ({"reasons": ("none",)}, False),
        ({"ids": (ENVELOPE.id,)}, True),
        ({"ids": ("m1",)}, True),
        ({"ids": ("m2",)}, False),
        ({"sent_before": 1_000.0}, True),
        ({"sent_before": 999.0}, False),
        ({"types": ("member.signed_up",), "ids": ("m2",)}, False),
    ],
)
def test_a_selection_matches_messages_that_match_all_its_filters(wanted: dict[str, Any], matches: bool) -> None:
    assert Selection(**wanted).matches(read_message(message(reason=EXHAUSTED))) is matches


def test_messages_without_a_reason_can_be_selected() -> None:
    assert Selection(reasons=("none",)).matches(read_message(message()))
    assert not Selection(reasons=("bank",)).matches(read_message(message()))


def test_a_message_without_a_time_existed_before_any_time_but_is_not_selected_by_age() -> None:
    dead_letter = read_message(message(sent_at=None))

    assert existed_before(dead_letter, 0.0)
    assert not Selection(sent_before=2e9).matches(dead_letter)
