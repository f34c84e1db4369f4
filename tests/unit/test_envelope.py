from __future__ import annotations

import json
import time
from uuid import UUID

import pytest

from smartpipe import PublishError
from smartpipe.envelope import current_envelope, encode, wrap
from smartpipe.envelope.decode import Decoder
from smartpipe.envelope.encode import new_event_id
from tests.support.events import ADA, Note, OrderPlaced, UserSignedUp


def test_the_body_is_a_cloudevent_in_structured_json() -> None:
    envelope = wrap(ADA, source="signup-api")

    body = json.loads(encode(envelope))

    assert body["specversion"] == "1.0"
    assert body["type"] == "member.signed_up"
    assert body["dataversion"] == "1.1"
    assert body["source"] == "signup-api"
    assert body["id"] == envelope.id
    assert body["datacontenttype"] == "application/json"
    assert body["time"].endswith("Z")
    assert body["data"] == {"user_id": str(UUID(int=1)), "name": "Ada"}


def test_what_is_encoded_decodes_to_the_same_envelope() -> None:
    envelope = wrap(OrderPlaced(order_id="ö-1", cents=5), source="shop")

    assert Decoder([OrderPlaced]).decode(encode(envelope)) == envelope


def test_the_ordering_key_travels_as_partitionkey() -> None:
    assert json.loads(encode(wrap(OrderPlaced(order_id='a"b'), source="s")))["partitionkey"] == 'a"b'


def test_an_event_published_while_another_is_handled_carries_its_trace_and_causation() -> None:
    first = wrap(ADA, source="a")
    token = current_envelope.set(first)

    second = wrap(ADA, source="b")
    current_envelope.reset(token)

    assert first.traceparent is not None
    assert second.traceparent is not None
    assert second.traceparent == first.traceparent  # no span was made, so there is no new id
    assert (second.causation_id, second.correlation_id) == (first.id, first.id)


def test_event_ids_are_version_7_uuids_that_sort_by_time() -> None:
    before = new_event_id()
    time.sleep(0.002)
    after = new_event_id()

    assert UUID(before).version == 7
    assert UUID(before).variant == "specified in RFC 4122"
    assert before < after


@pytest.mark.parametrize("text", ["\x00", "\ufffe\uffff", "\x1f", "🎉"])
def test_fault_40_what_sqs_refuses_in_a_body_travels_escaped(text: str) -> None:
    body = encode(wrap(Note(text=text), source="s"))

    assert not set(body) & {chr(code) for code in (*range(9), 0xB, 0xC, *range(0xE, 0x20), 0xFFFE, 0xFFFF)}
    assert Decoder([Note]).decode(body).data == Note(text=text)


def test_fault_40_a_lone_surrogate_is_a_clear_local_error() -> None:
    with pytest.raises(PublishError, match="cannot be written as JSON") as caught:
        encode(wrap(Note.model_construct(text="\ud800"), source="s"))

    assert not caught.value.failures[0].retryable


def test_the_source_may_have_any_character() -> None:
    envelope = wrap(ADA, source='a "quoted" söurce')

    assert Decoder([UserSignedUp]).decode(encode(envelope)).source == 'a "quoted" söurce'
