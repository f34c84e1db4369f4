"""The context attributes of an envelope, to the last character, and the exact text that is published."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from smartpipe import DecodeError, UnknownEventType
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.decode import Decoder
from smartpipe.envelope.encode import Envelope, current_envelope, format_uuid, new_event_id, source_errors
from smartpipe.envelope.ids import DerivedIds, current_cause, next_event_id
from smartpipe.envelope.notification import EncodedBody, WrappedBody, read_notification, refuse_wrapped, unwrap
from smartpipe.envelope.traceparent import new_traceparent, read_traceparent, trace_id
from smartpipe.message import Attribute
from tests.support.events import OrderPlaced, UserLeft

decoder = Decoder([UserLeft, OrderPlaced])
TRACEPARENT = f"00-{'4b' * 16}-{'0f' * 8}-01"


def plain(**changes: Any) -> str:
    event = {"specversion": "1.0", "id": "7", "source": "/s", "type": "user.left", "data": {"name": "Bob"}, **changes}
    return json.dumps({name: value for name, value in event.items() if value is not ...})


def test_an_envelope_is_written_in_one_order_and_without_spaces() -> None:
    when = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    event = OrderPlaced(order_id='"a"', cents=1)
    full = Envelope("i", "shop", "order.placed", "2.3", when, event, '"a"', TRACEPARENT, "c", "d")

    assert encode(full) == (
        '{"specversion":"1.0","type":"order.placed","dataversion":"2.3","datacontenttype":"application/json",'
        '"source":"shop","id":"i","time":"2026-02-03T04:05:06.000789Z","partitionkey":"\\"a\\"",'
        f'"traceparent":"{TRACEPARENT}","correlationid":"c","causationid":"d",'
        '"data":{"order_id":"\\"a\\"","cents":1}}'
    )
    assert encode(Envelope("i", "shop", "order.placed", "2.3", None, event)) == (
        '{"specversion":"1.0","type":"order.placed","dataversion":"2.3","datacontenttype":"application/json",'
        '"source":"shop","id":"i","data":{"order_id":"\\"a\\"","cents":1}}'
    )


@pytest.mark.parametrize(("length", "written"), [(256, True), (257, False)])
def test_a_key_that_consumers_would_ignore_is_not_written(length: int, written: bool) -> None:
    assert ('"partitionkey"' in encode(wrap(OrderPlaced(order_id="k" * length), source="s"))) is written


def test_an_event_outside_of_handlers_begins_a_chain() -> None:
    envelope = wrap(UserLeft(name="Ada"), source="s", event_id="e")

    assert (envelope.id, envelope.correlation_id, envelope.causation_id) == ("e", "e", None)
    assert (envelope.type, envelope.version, envelope.key) == ("user.left", "1.0", None)


def test_an_event_inside_of_a_handler_continues_the_chain() -> None:
    first = wrap(UserLeft(name="Ada"), source="s", event_id="1")._replace(traceparent=None)
    found = []
    for cause in (first, first._replace(id="2", correlation_id="1"), first._replace(correlation_id=None)):
        token = current_envelope.set(cause)
        found.append(wrap(UserLeft(name="Ada"), source="s"))
        current_envelope.reset(token)

    assert [(one.correlation_id, one.causation_id) for one in found] == [("1", "1"), ("1", "2"), ("1", "1")]
    assert all(read_traceparent(one.traceparent) for one in found)


@pytest.mark.parametrize(("name", "low", "high"), [("id", 1, 256), ("source", 1, 256), ("type", 1, 255)])
def test_a_required_attribute_has_a_first_and_a_last_length(name: str, low: int, high: int) -> None:
    for length in (low, high):
        with pytest.raises(UnknownEventType) if name == "type" else nullcontext():
            decoder.decode(plain(**{name: "x" * length}))
    for wrong in ("x" * (low - 1), "x" * (high + 1), 7, None, ...):
        with pytest.raises(DecodeError, match=f"not a CloudEvent 1.0: {name}: ") as caught:
            decoder.decode(plain(**{name: wrong}))
        assert caught.value.kind == "not-cloudevent"


@pytest.mark.parametrize("name", ["partitionkey", "correlationid", "causationid"])
def test_an_attribute_that_is_handed_on_is_ignored_if_it_is_invalid(name: str) -> None:
    field = {"partitionkey": "key", "correlationid": "correlation_id", "causationid": "causation_id"}[name]
    values: list[tuple[Any, bool]] = [
        ("x", True), ("x" * 256, True), ("", False), ("x" * 257, False), (5, False), (["x"], False), (None, False),
    ]  # fmt: skip
    for value, valid in values:
        assert getattr(decoder.decode(plain(**{name: value})), field) == (value if valid else None)


@pytest.mark.parametrize(("version", "expected"), [
    (..., "1.0"), (None, "1.0"), ("1.0", "1.0"), ("1.999999999", "1.999999999"),
])  # fmt: skip
def test_a_version_is_1_0_unless_the_producer_sends_another(version: Any, expected: str) -> None:
    assert decoder.decode(plain(dataversion=version)).version == expected


@pytest.mark.parametrize("version", ["1", "1.", "1.0.0", "v1.0", "1.0\n", "1.1234567890", "", 1.0])
def test_a_version_that_is_not_major_and_minor_is_refused(version: Any) -> None:
    with pytest.raises(DecodeError, match="dataversion"):
        decoder.decode(plain(dataversion=version))


@pytest.mark.parametrize("version", ["0.1", "2.0", "123456789.0"])
def test_a_version_of_another_major_number_is_unknown(version: str) -> None:
    with pytest.raises(UnknownEventType, match=f"no handler subscribes to 'user.left' version {version}"):
        decoder.decode(plain(dataversion=version))


def test_an_event_of_another_major_version_than_one_names_it() -> None:
    body = plain(type="order.placed", data={"order_id": "1"})

    with pytest.raises(UnknownEventType, match="'order.placed' version 1.0"):
        decoder.decode(body)
    assert decoder.decode(plain(type="order.placed", data={"order_id": "1"}, dataversion="2.0")).version == "2.0"


@pytest.mark.parametrize(("media_type", "accepted"), [
    ("application/json", True), ("a/b+json", True), ("a/json;x=y", True), ("a/json ; x", True), ("a/jsonx", False),
    ("a/xjson", False), ("json", False), ("a/b/json", False), ("text/plain", False), ("", False), ("a/+json", False),
    (5, False),
])  # fmt: skip
def test_data_is_json_by_the_subtype_of_its_media_type(media_type: Any, accepted: bool) -> None:
    if accepted:
        assert decoder.decode(plain(datacontenttype=media_type)).data == UserLeft(name="Bob")
    else:
        with pytest.raises(DecodeError, match="datacontenttype"):
            decoder.decode(plain(datacontenttype=media_type))


@pytest.mark.parametrize(("time", "accepted"), [
    ("2026-02-03T04:05:06Z", True), ("2026-02-03T04:05:06.789+05:30", True), ("2026-02-03T04:05:06", False),
    ("2026-02-30T04:05:06Z", False),
])  # fmt: skip
def test_a_time_has_a_time_zone(time: str, accepted: bool) -> None:
    if accepted:
        assert decoder.decode(plain(time=time)).time is not None
    else:
        with pytest.raises(DecodeError, match="time"):
            decoder.decode(plain(time=time))


@pytest.mark.parametrize(("header", "valid"), [
    (TRACEPARENT, True), (TRACEPARENT.replace("00-", "01-", 1), True), (TRACEPARENT.replace("00-", "fe-", 1), True),
    (TRACEPARENT.replace("00-", "ff-", 1), False), (TRACEPARENT.replace("00-", "f0-", 1), True),
    (TRACEPARENT.replace("4b" * 16, "0" * 32), False), (TRACEPARENT.replace("4b" * 16, "0" * 31 + "1"), True),
    (TRACEPARENT.replace("0f" * 8, "0" * 16), False), (TRACEPARENT.replace("0f" * 8, "0" * 15 + "1"), True),
    (TRACEPARENT.upper(), False), (f"{TRACEPARENT}\n", False), (f" {TRACEPARENT}", False), (f"{TRACEPARENT}-x", False),
    (TRACEPARENT[:-1], False), (TRACEPARENT.replace("-", "_"), False), (None, False), (5, False),
    (TRACEPARENT.encode(), False),
])  # fmt: skip
def test_a_traceparent_is_read_if_w3c_calls_it_valid(header: Any, valid: bool) -> None:
    assert read_traceparent(header) == (header if valid else None)
    if not isinstance(header, bytes):
        assert decoder.decode(plain(traceparent=header)).traceparent == (header if valid else None)


def test_each_new_trace_is_another_one() -> None:
    found = {new_traceparent() for _ in range(200)}

    assert len(found) == 200
    assert all(read_traceparent(one) for one in found)
    assert {len(one) for one in found} == {55}
    assert (trace_id(TRACEPARENT), trace_id(None), trace_id("")) == ("4b" * 16, None, None)


@pytest.mark.parametrize(("source", "valid"), [
    ("s" * 256, True), ("s" * 257, False), ("", False), ("signup-api", True), ("/a/b", True), ("urn:a:b", True),
    ("https://a.example/b?c=d#e", True), ("//host/a", True), ("http://[::1]/a", True), ("a%20b", True), ("a:b", True),
    ("a b", False), ("a%2", False), ("a#b#c", False), ("1a:b", False), ("[a]", False), ("a/b:c", True),
    ("\u00e4", False),
])  # fmt: skip
def test_a_source_is_a_uri_reference(source: str, valid: bool) -> None:
    errors = source_errors("Publisher", source)

    assert len(errors) == (0 if valid else 1)


@pytest.mark.parametrize(("source", "why"), [
    ("a b", "it contains ' '"), ("1a:b", "its characters are in the wrong places"), ("\u00e4b", "it contains '\u00e4'"),
    ("s" * 1_000, "has 1,000 characters; consumers accept at most 256"), ("", "source is empty"),
])  # fmt: skip
def test_the_error_of_a_source_says_what_is_wrong(source: str, why: str) -> None:
    [error] = source_errors("service 'x'", source)

    assert error.startswith("service 'x': source")
    assert why in error


def test_ids_have_the_bits_of_their_version_and_variant() -> None:
    for _ in range(50):
        found = UUID(new_event_id())
        assert (found.version, found.variant) == (7, "specified in RFC 4122")
    assert format_uuid("8", "0123456789ab", "cdef456789012345678") == "01234567-89ab-8cde-b456-789012345678"
    variants = {format_uuid("8", "0" * 12, f"000{digit}" + "0" * 15)[19] for digit in "0123456789abcdef"}
    assert variants == set("89ab")


def test_an_id_begins_with_the_milliseconds_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_123_999_999)

    assert UUID(new_event_id()).int >> 80 == 1_800_000_000_123


def test_derived_ids_count_each_kind_for_itself_and_keep_the_time_of_their_cause() -> None:
    cause = "01900000-abcd-7000-8000-000000000000"
    ids, again, other_call = (DerivedIds("a", "b", call=call, time_of=cause) for call in (1, 2, 0))

    first = [ids.next("x"), ids.next("x"), ids.next("y"), ids.next("x", "y")]
    assert len(set(first)) == 4
    assert [again.next("y"), again.next("x", "y"), again.next("x"), again.next("x")] == [
        first[2], first[3], first[0], first[1],
    ]  # fmt: skip
    assert other_call.next("x") not in first  # of a middleware
    assert all(one.startswith("01900000-abcd-8") for one in first)


@pytest.mark.parametrize(("cause", "kept"), [
    ("01900000-ABCD-7000-8000-000000000000", True), ("01900000-abcd-8000-b000-000000000000", True),
    ("01900000-abcd-4000-8000-000000000000", False), ("01900000-abcd-7000-c000-000000000000", False),
    ("01900000-abcd-7000-8000-000000000000x", False), ("", False),
])  # fmt: skip
def test_only_the_time_of_a_uuid_with_a_time_is_kept(cause: str, kept: bool) -> None:
    assert DerivedIds("a", call=1, time_of=cause).next("x").startswith("01900000-abcd-8") is kept


def test_each_call_of_a_handler_derives_its_ids_from_the_start() -> None:
    class Cause:
        calls = 0
        ids: DerivedIds | None = None

        def derive_ids(self) -> DerivedIds:
            return DerivedIds("a", call=self.calls)

    cause = Cause()
    token = current_cause.set(cause)
    found = []
    for calls in (0, 1, 2):
        cause.calls = calls
        found.append([next_event_id("x"), next_event_id("x")])
    current_cause.reset(token)

    assert found[1] == found[2]
    assert len({*found[0], *found[1]}) == 4
    assert UUID(next_event_id("x")).version == 7


NOTIFICATION: dict[str, Any] = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": "m"}


@pytest.mark.parametrize("name", list(NOTIFICATION))
@pytest.mark.parametrize("wrong", [..., None, 5, []])
def test_a_notification_has_each_of_its_four_fields(name: str, wrong: Any) -> None:
    fields = {**NOTIFICATION, name: wrong}
    body = json.dumps({key: value for key, value in fields.items() if value is not ...})

    assert read_notification(body) is None
    assert unwrap(body) is None
    refuse_wrapped(body)


@pytest.mark.parametrize("size", [10, 65_536, 70_000])
def test_a_notification_of_any_size_is_unwrapped(size: int) -> None:
    body = json.dumps({**NOTIFICATION, "Message": "m" * size})

    assert read_notification(body) == ("m" * size, {})
    assert unwrap(body) == "m" * size
    with pytest.raises(WrappedBody) as caught:
        refuse_wrapped(body)
    assert (caught.value.body, caught.value.attributes) == ("m" * size, {})


@pytest.mark.parametrize(("name", "attribute", "expected"), [
    ("a", {"Type": "String", "Value": "x"}, Attribute("String", "x")),
    ("a", {"Type": "Number.int", "Value": "5"}, Attribute("Number.int", "5")),
    ("a", {"Type": "Binary", "Value": "AP8="}, Attribute("Binary", b"\x00\xff")),
    ("a", {"Type": "Binary.png", "Value": "AP8="}, Attribute("Binary.png", b"\x00\xff")),
    ("a", {"Type": "Binary", "Value": "not base64"}, None),
    ("a", {"Type": "String." + "x" * 249, "Value": "x"}, Attribute("String." + "x" * 249, "x")),
    ("a", {"Type": "String." + "x" * 250, "Value": "x"}, None),
    ("a", {"Type": "String.", "Value": "x"}, None),
    ("a", {"Type": "Text", "Value": "x"}, None),
    ("a", {"Type": "String", "Value": ""}, None),
    ("a", {"Type": "String", "Value": "\x00"}, None),
    ("a", {"Type": "String", "Value": 5}, None),
    ("a", {"Type": "String"}, None),
    ("a", {"Value": "x"}, None),
    ("a b", {"Type": "String", "Value": "x"}, None),
], ids=str)  # fmt: skip
def test_an_attribute_in_a_notification_is_read_if_sqs_would_accept_it(
    name: str, attribute: Any, expected: Attribute | None
) -> None:
    good = {"good": {"Type": "String", "Value": "y"}}
    found = read_notification(json.dumps({**NOTIFICATION, "MessageAttributes": {name: attribute, **good}}))

    assert found is not None
    rest = {} if expected is None else {name: expected}
    assert found.attributes == {**rest, "good": Attribute("String", "y")}


def test_an_encoded_message_in_a_notification_is_not_an_envelope() -> None:
    attributes = {"content-encoding": {"Type": "String", "Value": "gzip"}}
    body = json.dumps({**NOTIFICATION, "MessageAttributes": attributes})

    with pytest.raises(EncodedBody) as caught:
        unwrap(body)
    assert caught.value.attributes == {"content-encoding": Attribute("String", "gzip")}
    with pytest.raises(WrappedBody) as wrapped:
        refuse_wrapped(body)
    assert not isinstance(wrapped.value, EncodedBody)
