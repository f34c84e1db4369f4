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
from smartpipe.consumer.dead_letter import reason_of as read_reason
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


def test_a_reason_whose_error_names_a_file_that_is_not_in_utf_8_can_be_read() -> None:
    attributes = {f"a{number}": Attribute("String", "x") for number in range(10)}
    error = RuntimeError("cannot open " + "caf\udce9" * 2_000)

    copy = copy_with_reason(message(attributes=attributes), DeadLetter("rejected", error), WHERE)
    received = message(attributes=dict(copy.attributes))

    assert read_reason(received)["message"].startswith(r"cannot open caf\udce9caf")
    assert r"caf\udce9" in read_reason(received)["traceback"]
    assert remove_reason(received).attributes == attributes, "one of the ten had moved into the reason"


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


def lengths(copy: OutgoingMessage) -> dict[str, int]:
    """Return the length of each part of the reason that may be shortened or left out."""
    reason = reason_of(copy) if REASON_ATTRIBUTE in copy.attributes else {}
    return {name: len(reason[name]) for name in ("traceback", "errors", "message") if name in reason}


def test_a_reason_loses_its_traceback_its_errors_and_its_message_one_after_the_other() -> None:
    error = DecodeError("invalid-data", "m" * 500, [{"loc": ("x",), "msg": "e" * 500, "type": "missing"}])
    outcome = DeadLetter("invalid-data", error)
    limit, seen = 1_048_576, list[tuple[str, ...]]()
    for _ in range(5):
        copy = copy_with_reason(message(), outcome, WHERE, limit_bytes=limit)
        assert copy.size_bytes == size_bytes(copy.body, copy.attributes) <= limit
        assert lengths(copy_with_reason(message(), outcome, WHERE, limit_bytes=copy.size_bytes)) == lengths(copy)
        seen.append(tuple(lengths(copy)))
        limit = copy.size_bytes - 1

    assert seen == [("traceback", "errors", "message"), ("errors", "message"), ("message",), (), ()]
    assert copy == copy_without_reason(message())


def test_a_reason_has_the_begin_of_a_long_message_and_the_end_of_a_long_traceback() -> None:
    error = ValueError("m" * 5_000 + "end")

    copy = copy_with_reason(message(), DeadLetter("retries-exhausted", error), WHERE)

    assert lengths(copy) == {"traceback": 4_000, "message": 1_000}
    assert reason_of(copy)["traceback"].endswith("end\n")


def test_a_reason_leaves_out_what_is_not_known() -> None:
    unread = message()._replace(first_received_at=None)

    reason = reason_of(
        copy_with_reason(
            unread, DeadLetter("not-json", DecodeError("not-json", "x")), FailedDelivery("s", "q", None, None)
        )
    )

    assert (reason["first_seen"], reason["handler"]) == (None, None)
    assert not {"event_id", "trace_id", "errors", "traceback", "attributes"} & set(reason)


@pytest.mark.parametrize(
    "last",
    [
        Attribute("String", "v"),
        Attribute("String.name", "two\nlines"),
        Attribute("Number", "-12.50"),
        Attribute("Number.float", "+1"),
        Attribute("Number", "9" * 38 + "." + "1" * 126),
        Attribute("Binary", b"\x00\xff"),
        Attribute("Binary.png", b"\x89PNG"),
    ],
    ids=lambda last: last.data_type,
)
def test_an_attribute_that_moved_into_the_reason_comes_back_when_the_reason_is_removed(last: Attribute) -> None:
    attributes = {**{f"a{number}": Attribute("String", "x") for number in range(9)}, "b": last}
    original = message(attributes=attributes)._replace(group_id="g")

    copy = copy_with_reason(original, failure(), WHERE)
    returned = original._replace(attributes=copy.attributes)

    assert (copy.group_id, len(copy.attributes), "b" in copy.attributes) == ("g", 10, False)
    assert remove_reason(returned) == original
    restored = copy_without_reason(returned)
    assert (restored.attributes, restored.group_id) == (attributes, "g")
    assert restored.size_bytes == size_bytes("the body", attributes)


@pytest.mark.parametrize("number", ["", "1e5", "1.", ".5", "9" * 39, "1." + "1" * 127, "0x1", "1 "])
def test_a_moved_number_that_sqs_would_refuse_is_left_out(number: str) -> None:
    moved = {"data_type": "Number", "value": number or "-"}
    reason = json.dumps(GENUINE | {"attributes": {"n": moved, "b": MOVED}})

    restored = remove_reason(message(attributes={REASON_ATTRIBUTE: Attribute("String", reason)}))

    assert set(restored.attributes) == {"b"}


ERROR = {"type": "t", "loc": ["a", 1], "msg": "m"}


@pytest.mark.parametrize(
    ("name", "longest", "too_long"),
    [
        ("kind", "r" * 64, "r" * 65),
        ("kind", "a-0", "A"),
        ("error_type", "e" * 1_024, "e" * 1_025),
        ("message", "m" * 8_000, "m" * 8_001),
        ("handler", None, 7),
        ("receive_count", 0, -1),
        ("receive_count", 1_000_000, 1_000_001),
        ("first_seen", "9" * 40, "9" * 41),
        ("first_seen", None, ""),
        ("trace_id", None, 5),
        ("errors", [ERROR] * 100, [ERROR] * 101),
        ("errors", [ERROR | {"loc": [1] * 1_000}], [ERROR | {"loc": [1] * 1_001}]),
        ("errors", [ERROR | {"msg": "m" * 8_000}], [ERROR | {"msg": "m" * 8_001}]),
        ("traceback", "t" * 8_000, "t" * 8_001),
        ("attributes", {f"b{n}": MOVED for n in range(10)}, {f"b{n}": MOVED for n in range(11)}),
        (
            "attributes",
            {"b": MOVED | {"data_type": "String." + "x" * 249}},
            {"b": MOVED | {"data_type": "String." + "x" * 250}},
        ),
        ("attributes", {"b": MOVED}, {"b": MOVED | {"value": ""}}),
    ],
)
def test_a_field_of_a_reason_is_read_up_to_its_limit(name: str, longest: object, too_long: object) -> None:
    genuine, forged = (
        read_reason(message(attributes={REASON_ATTRIBUTE: Attribute("String", json.dumps(GENUINE | {name: value}))}))
        for value in (longest, too_long)
    )

    assert genuine.get(name, "absent") == longest
    assert forged == {}


def test_a_reason_counts_only_if_it_is_text_and_the_message_was_not_moved_by_sqs() -> None:
    text = json.dumps(GENUINE)

    assert read_reason(message(attributes={REASON_ATTRIBUTE: Attribute("String", text)})) == GENUINE
    assert read_reason(message(attributes={REASON_ATTRIBUTE: Attribute("Binary", text.encode())})) == {}
    assert read_reason(message()) == {}
    moved = message(attributes={REASON_ATTRIBUTE: Attribute("String", text)})._replace(moved_from="arn:aws:sqs:q")
    assert read_reason(moved) == {}
