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


def test_a_letter_says_which_event_it_was_and_why_it_is_here() -> None:
    letter = read_message(message(reason=EXHAUSTED))

    assert (letter.event_id, letter.event_type, letter.source) == (ENVELOPE.id, "member.signed_up", "portal")
    assert json.loads(preview(letter.message, 1_000))["name"] == "Ada"
    assert (letter.kind, letter.error) == ("retries-exhausted", "ConnectionError: the Bank is closed")


def test_an_event_that_sns_has_wrapped_is_read_as_well() -> None:
    fields = {"Type": "Notification", "MessageId": "n", "TopicArn": "arn", "Message": encode(ENVELOPE)}

    assert read_message(message(json.dumps(fields))).event_id == ENVELOPE.id


def test_an_event_that_is_compressed_or_waits_in_s3_is_read_as_far_as_it_is_here() -> None:
    encoding = {"content-encoding": Attribute("String", "gzip")}
    size = {"ExtendedPayloadSize": Attribute("Number", "9"), "type": Attribute("String", "member.signed_up")}

    squeezed = read_message(message(compress(encode(ENVELOPE), "gzip"))._replace(attributes=encoding))
    away = read_message(message(write_pointer("bucket", f"staging/{ENVELOPE.id}"))._replace(attributes=size))
    broken = read_message(message("no gzip")._replace(attributes=encoding))

    assert (squeezed.event_id, json.loads(preview(squeezed.message, 1_000))["name"]) == (ENVELOPE.id, "Ada")
    assert (away.event_id, away.event_type) == (ENVELOPE.id, "member.signed_up")
    assert preview(away.message, 1_000) == away.message.body
    assert broken.name == "m1"


@pytest.mark.parametrize("body", ["", "no JSON", "[1]", "7", '{"id": 7, "type": null}', '{"id": {}}'])
def test_what_is_no_event_is_known_by_its_messages_id(body: str) -> None:
    letter = read_message(message(body))

    assert (letter.event_id, letter.event_type, letter.name, letter.kind) == (None, None, "m1", NO_REASON)


@pytest.mark.parametrize("forged", UNREADABLE)
def test_a_reason_that_no_worker_writes_is_not_a_reason(forged: str) -> None:
    letter = read_message(message(reason=UNREADABLE[forged]))

    assert (letter.kind, letter.error, letter.reason) == (NO_REASON, "", {})


def test_a_reason_that_is_not_text_is_not_a_reason() -> None:
    binary = {REASON_ATTRIBUTE: Attribute("Binary", json.dumps(EXHAUSTED).encode())}

    assert read_message(message()._replace(attributes=binary)).kind == NO_REASON


def test_what_sqs_itself_moved_has_no_reason_whatever_its_producer_wrote() -> None:
    """The producer's attribute is still there, because no worker has taken it off."""
    moved = message(reason=EXHAUSTED)._replace(moved_from="arn:aws:sqs:us-east-1:000000000000:billing")

    assert read_message(moved).kind == NO_REASON
    assert not Selection(reasons=("retries-exhausted",)).takes(read_message(moved))


@pytest.mark.parametrize("forged", FORGED)
def test_every_letter_can_be_described_whatever_its_reason_says(forged: str) -> None:
    letter = read_message(message(reason=FORGED[forged]))

    lines = describe(letter)

    assert all(line.isprintable() for line in lines)
    assert ENVELOPE.id in lines[0]
    assert len(json.dumps(letter.reason)) < 100_000


def test_a_preview_ends_where_the_line_does_and_data_that_is_not_shown_is_not_encoded() -> None:
    body = body_of('{"anything":' + json.dumps(["x" * 50] * 10_000) + "}")

    assert preview(message(body), 80) == json.dumps({"anything": ["x" * 50] * 2})[:80]


def test_data_with_too_many_values_is_shown_as_text() -> None:
    body = body_of('{"anything":[' + "{}," * 70_000 + "{}]}")

    assert preview(message(body), 40) == body[:40]
    assert read_message(message(body)).event_type == "survey"


@pytest.mark.parametrize(
    ("wanted", "takes"),
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
def test_a_selection_takes_what_fits_everything_that_it_says(wanted: dict[str, Any], takes: bool) -> None:
    assert Selection(**wanted).takes(read_message(message(reason=EXHAUSTED))) is takes


def test_what_has_no_reason_can_be_asked_for() -> None:
    assert Selection(reasons=("none",)).takes(read_message(message()))
    assert not Selection(reasons=("bank",)).takes(read_message(message()))


def test_what_its_broker_gives_no_time_was_there_all_along_and_is_older_than_nothing() -> None:
    letter = read_message(message(sent_at=None))

    assert existed_before(letter, 0.0)
    assert not Selection(sent_before=2e9).takes(letter)
