from __future__ import annotations

import json
from typing import Any

import pytest

from smartpipe import DecodeError
from smartpipe.consumer.dead_letter import (
    REASON_ATTRIBUTE,
    FailedDelivery,
    copy_with_reason,
    copy_without_reason,
    remove_reason,
)
from smartpipe.consumer.decide import DeadLetter
from smartpipe.envelope import encode, wrap
from smartpipe.message import Attribute, Message, OutgoingMessage, size_bytes
from tests.support.events import ADA
from tests.support.forgeries import FORGED, GENUINE, MOVED

ENVELOPE = wrap(ADA, source="s")
WHERE = FailedDelivery("mailer", "mail-queue", "app.send", ENVELOPE)


def failure() -> DeadLetter:
    def innermost() -> None:
        raise ValueError("the mail server said no")

    try:
        innermost()
    except ValueError as error:
        return DeadLetter("retries-exhausted", error)
    raise AssertionError


def message(body: str = "the body", attributes: dict[str, Attribute] | None = None) -> Message:
    return Message("m1", "r1", body, receive_count=5, attributes=attributes or {}, first_received_at=1_700_000_000.25)


def reason_of(copy: OutgoingMessage) -> dict[str, Any]:
    value = copy.attributes[REASON_ATTRIBUTE].value
    assert isinstance(value, str)
    reason: dict[str, Any] = json.loads(value)
    return reason


def test_the_copy_has_the_original_body_and_attributes_and_the_reason() -> None:
    attributes = {"type": Attribute("String", "member.signed_up"), "raw": Attribute("Binary", b"\x00\x01")}

    copy = copy_with_reason(message(encode(ENVELOPE), attributes), failure(), WHERE)

    assert copy.body == encode(ENVELOPE)
    assert {name: copy.attributes[name] for name in attributes} == attributes
    reason = reason_of(copy)
    assert reason["kind"] == "retries-exhausted"
    assert reason["error_type"] == "builtins.ValueError"
    assert reason["message"] == "the mail server said no"
    assert (reason["service"], reason["queue"], reason["handler"]) == ("mailer", "mail-queue", "app.send")
    assert (reason["message_id"], reason["receive_count"]) == ("m1", 5)
    assert reason["first_seen"] == "2023-11-14T22:13:20.250+00:00"
    assert reason["event_id"] == ENVELOPE.id
    assert len(reason["trace_id"]) == 32
    assert "innermost" in reason["traceback"]


def test_invalid_data_has_pydantics_error_list_and_no_traceback() -> None:
    error = DecodeError("invalid-data", "bad", [{"loc": ("data", "x"), "msg": "Field required", "type": "missing"}])

    reason = reason_of(
        copy_with_reason(message(), DeadLetter("invalid-data", error), FailedDelivery("s", "q", None, None))
    )

    assert reason["errors"] == [{"loc": ["data", "x"], "msg": "Field required", "type": "missing"}]
    assert "traceback" not in reason


def test_of_ten_attributes_the_last_moves_into_the_reason() -> None:
    attributes = {f"a{number}": Attribute("String", str(number)) for number in range(10)}

    copy = copy_with_reason(message(attributes=attributes), failure(), WHERE)

    assert len(copy.attributes) == 10
    assert reason_of(copy)["attributes"] == {"a9": {"data_type": "String", "value": "9"}}


def test_attributes_needed_to_read_the_body_stay_with_it() -> None:
    attributes = {f"a{number}": Attribute("String", "x") for number in range(9)}

    copy = copy_with_reason(
        message(attributes={**attributes, "content-encoding": Attribute("String", "gzip")}), failure(), WHERE
    )

    assert "content-encoding" in copy.attributes
    assert list(reason_of(copy)["attributes"]) == ["a8"]


def test_a_message_dead_lettered_again_has_only_the_newest_reason() -> None:
    first = copy_with_reason(message(), failure(), WHERE)

    second = copy_with_reason(message(attributes=dict(first.attributes)), failure(), WHERE)

    assert list(second.attributes) == [REASON_ATTRIBUTE]


def test_the_reason_loses_its_traceback_first_so_that_a_large_body_still_fits() -> None:
    whole = copy_with_reason(message("x" * 10_000), failure(), WHERE).size_bytes

    copy = copy_with_reason(message("x" * 10_000), failure(), WHERE, limit_bytes=whole - 1)

    assert copy.size_bytes == size_bytes(copy.body, copy.attributes) < whole
    assert "traceback" not in reason_of(copy)
    assert reason_of(copy)["message"] == "the mail server said no"


def test_a_body_of_the_maximum_size_is_sent_without_a_reason() -> None:
    copy = copy_with_reason(message("x" * 1_000), failure(), WHERE, limit_bytes=1_000)

    assert copy.body == "x" * 1_000
    assert copy.attributes == {}


@pytest.mark.parametrize(
    ("last", "limit_bytes"),
    [
        (Attribute("String", "v" * 1_000), 1_300),
        (Attribute("String", "\u20ac" * 300), 1_300),
        (Attribute("Number", "a form that SQS may take one day"), 1_048_576),
    ],
    ids=["long", "longer in JSON", "unknown"],
)
def test_an_attribute_that_cannot_move_into_the_reason_stays_an_attribute(last: Attribute, limit_bytes: int) -> None:
    attributes = {**{f"a{number}": Attribute("String", "x") for number in range(9)}, "b": last}

    copy = copy_with_reason(message(attributes=attributes), failure(), WHERE, limit_bytes=limit_bytes)

    assert copy.attributes == attributes


@pytest.mark.parametrize("forged", FORGED)
def test_a_message_whose_producer_wrote_a_reason_is_dead_lettered_like_any_other(forged: str) -> None:
    own = {f"a{n}": Attribute("String", "v") for n in range(9)}

    copy = copy_with_reason(
        message(attributes={**own, REASON_ATTRIBUTE: Attribute("String", FORGED[forged])}), failure(), WHERE
    )

    assert len(copy.attributes) <= 10
    assert reason_of(copy)["kind"] == "retries-exhausted"
    assert all(len(json.loads(json.dumps(one))) < 10 for one in reason_of(copy).get("attributes", {}).values())
    assert copy.size_bytes == size_bytes(copy.body, copy.attributes) <= 1_048_576


@pytest.mark.parametrize("forged", FORGED)
def test_a_redriven_copy_has_no_reason_and_no_attribute_that_sqs_would_refuse(forged: str) -> None:
    attributes = {"a": Attribute("String", "v"), REASON_ATTRIBUTE: Attribute("String", FORGED[forged])}

    copy = copy_without_reason(message(attributes=attributes))

    assert set(copy.attributes) <= {"a", *(f"b{n}" for n in range(10))}
    assert copy.attributes["a"] == Attribute("String", "v")
    assert len(copy.attributes) <= 10


def test_attributes_from_the_reason_that_would_be_too_many_are_left_out() -> None:
    nine = {f"a{n}": Attribute("String", "v") for n in range(9)}
    one, two = (json.dumps(GENUINE | {"attributes": dict.fromkeys(names, MOVED)}) for names in (["b"], ["b", "c"]))

    for reason, expected in ((one, {*nine, "b"}), (two, {*nine})):
        copy = remove_reason(message(attributes={**nine, REASON_ATTRIBUTE: Attribute("String", reason)}))
        assert set(copy.attributes) == expected
