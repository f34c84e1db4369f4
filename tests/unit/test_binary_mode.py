"""CloudEvents in binary mode: the context is in message attributes, and the body is the data."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from smartpipe import Delivery, Event, RetryPolicy, Service, Topic
from smartpipe.dlq.messages import read_message
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.envelope.body_encoding import BodyEncoding
from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, compress
from smartpipe.envelope.decode import MessageReader
from smartpipe.envelope.object_store import MemoryObjectStore
from smartpipe.envelope.other_data import read_binary_context
from smartpipe.envelope.pointer import SIZE_ATTRIBUTE, write_pointer
from smartpipe.errors import DecodeError, UnknownEventType
from smartpipe.message import Attribute, Message, Payload
from smartpipe.payload_offload import PayloadOffload
from smartpipe.testing import MemoryBroker
from tests.support.events import UserLeft

CONTEXT = {"id": "7", "source": "/crm", "type": "user.left", "specversion": "1.0"}


class Renamed(Event, topic=Topic("users"), type="com.example/user:renamed", version="2.1"):
    name: str


def in_binary_mode(prefix: str, **context: str) -> dict[str, Attribute]:
    made = {f"{prefix}{name}": Attribute("String", value) for name, value in {**CONTEXT, **context}.items()}
    return {**made, "content-type": Attribute("String", "application/json")}


def message(body: str = '{"name": "Bob"}', prefix: str = "ce-", **context: str) -> Message:
    return Message("1", "r", body, attributes=in_binary_mode(prefix, **context))


def reader(*events: type[Event]) -> MessageReader:
    return MessageReader(events or [UserLeft], PayloadOffload())


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents:", "cloudEvents_", "CE-"])
async def test_the_context_is_read_with_each_prefix_of_the_bindings(prefix: str) -> None:
    time, trace = "2026-01-02T03:04:05Z", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    found = await reader().read(message(prefix=prefix, time=time, traceparent=trace, partitionkey="k"))

    assert (found.id, found.source, found.type, found.data) == ("7", "/crm", "user.left", UserLeft(name="Bob"))
    assert (found.time and found.time.isoformat(), found.traceparent, found.key) == (
        "2026-01-02T03:04:05+00:00",
        trace,
        "k",
    )


async def test_headers_of_the_http_binding_are_percent_decoded_and_others_are_not() -> None:
    assert (await reader().read(message(source="/z%C3%BCrich"))).source == "/zürich"
    assert (await reader().read(message(source="/z%C3%BCrich", prefix="ce_"))).source == "/z%C3%BCrich"


async def test_binary_attributes_are_read_as_utf_8() -> None:
    attributes = {**in_binary_mode("ce_"), "ce_id": Attribute("Binary", "ü".encode())}

    assert (await reader().read(Message("1", "r", '{"name": "Bob"}', attributes=attributes))).id == "ü"


async def test_the_data_of_another_major_version_goes_to_its_class() -> None:
    found = await reader(UserLeft, Renamed).read(message(type="com.example/user:renamed", dataversion="2.0"))

    assert found.data == Renamed(name="Bob")
    with pytest.raises(UnknownEventType, match=r"'com\.example/user:renamed' version 3\.0"):
        await reader(UserLeft, Renamed).read(message(type="com.example/user:renamed", dataversion="3.0"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"name": 5}', "invalid-data"),
        ("[]", "invalid-data"),
        ("name=Bob", "not-json"),
        ('{"name": "Bob"}, "id": "forged"', "not-json"),
        ('{"name": "Bob"}}', "not-json"),
    ],
)
async def test_data_that_is_not_one_value_of_the_events_form_is_refused(body: str, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        await reader().read(message(body))

    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("context", "reason"),
    [({"ce-specversion": "0.3"}, "specversion"), ({"content-type": "text/xml"}, "media type of JSON")],
)
async def test_a_context_that_cannot_be_read_is_refused_with_its_reason(context: dict[str, str], reason: str) -> None:
    changed = {name: Attribute("String", value) for name, value in context.items()}

    with pytest.raises(DecodeError, match=reason) as caught:
        await reader().read(message()._replace(attributes={**in_binary_mode("ce-"), **changed}))

    assert caught.value.kind == "not-cloudevent"


async def test_attributes_cannot_replace_the_data() -> None:
    forged = message(prefix="ce_", data='{"name": "Eve"}', data_base64="e30=")

    assert (await reader().read(forged)).data == UserLeft(name="Bob")
    assert {"data", "data_base64"}.isdisjoint(read_binary_context(forged.attributes))


async def test_an_event_in_structured_mode_does_not_look_at_its_attributes() -> None:
    body = json.dumps({**CONTEXT, "id": "in the body", "data": {"name": "Ada"}})

    assert (await reader().read(message(body))).id == "in the body"


async def test_data_is_read_from_notifications_and_if_it_is_large_or_compressed() -> None:
    attributes = {name: {"Type": one.data_type, "Value": one.value} for name, one in in_binary_mode("ce-").items()}
    wrapped = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": '{"name": "Bob"}'}
    large = json.dumps({"name": "Bob", "more": ["x" * 100] * 1_000})
    packed = {**in_binary_mode("ce-"), ENCODING_ATTRIBUTE: Attribute("String", "gzip")}

    found = [
        await reader().read(Message("1", "r", json.dumps({**wrapped, "MessageAttributes": attributes}))),
        await reader().read(message(large)),
        await reader().read(Message("1", "r", compress('{"name": "Bob"}', "gzip"), attributes=packed)),
    ]

    assert [(one.id, one.data) for one in found] == [("7", UserLeft(name="Bob"))] * 3


async def test_compressed_data_has_the_limits_of_other_bodies() -> None:
    packed = {**in_binary_mode("ce-"), ENCODING_ATTRIBUTE: Attribute("String", "gzip")}
    body = compress(json.dumps({"name": "Bob", "more": [[]] * 200}), "gzip")
    limited = MessageReader([UserLeft], PayloadOffload(BodyEncoding(limit_objects=100)))

    with pytest.raises(DecodeError) as caught:
        await limited.read(Message("1", "r", body, attributes=packed))
    assert caught.value.kind == "too-many-values"


async def test_batch_mode_is_still_refused_with_its_reason() -> None:
    with pytest.raises(DecodeError, match="batch mode of CloudEvents"):
        await reader().read(Message("1", "r", json.dumps([{**CONTEXT, "data": {"name": "Bob"}}])))


async def test_a_handler_gets_the_event_and_sees_its_subject_and_extensions() -> None:
    service = Service("goodbye")
    seen: list[Any] = []

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        seen.append((event.name, delivery.event_id, delivery.subject, delivery.extensions))

    binary = {f"ce-{name}": value for name, value in {**CONTEXT, "subject": "bob", "region": "eu"}.items()}
    structured = {**CONTEXT, "subject": "ada", "flag": True, "level": 3, "odd": {"a": 1}, "dataschema": "urn:x"}
    as_base64 = {**structured, "data_base64": b64encode(b'{"name": "Cid"}').decode()}
    async with MemoryBroker(service) as broker:
        await broker.send("goodbye", '{"name": "Bob", "subject": "no", "level": 9}', attributes=binary)
        await broker.send("goodbye", {**structured, "data": {"name": "Ada", "subject": "no"}})
        await broker.send("goodbye", as_base64)
        await broker.publish(UserLeft(name="Dan"), event_id="own")
        await broker.drain()

    assert seen == [
        ("Bob", "7", "bob", {"region": "eu"}),
        ("Ada", "7", "ada", {"flag": True, "level": 3}),
        ("Cid", "7", "ada", {"flag": True, "level": 3}),
        ("Dan", "own", None, {}),
    ]


@pytest.mark.parametrize("compressed", [False, True])
async def test_the_extensions_of_an_event_are_read_wherever_its_body_is(
    compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://payloads/big")
    service, seen = Service("goodbye"), list[Any]()

    @service.subscribe(UserLeft)
    async def leave(event: UserLeft, delivery: Delivery) -> None:
        seen.append((event.name, delivery.subject, delivery.extensions))

    text = json.dumps({**CONTEXT, "subject": "bob", "region": "eu", "data": {"name": "Bob"}})
    body = compress(text, "gzip") if compressed else text
    packed = {ENCODING_ATTRIBUTE: "gzip"} if compressed else {}
    pointer = write_pointer("payloads", "big/1")
    await MemoryObjectStore().put(Payload("payloads", "big/1", body))
    attributes = {name: {"Type": "String", "Value": value} for name, value in packed.items()}
    wrapped = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": body}
    async with MemoryBroker(service) as broker:
        await broker.send("goodbye", body, attributes=packed)
        await broker.send("goodbye", {**wrapped, "MessageAttributes": attributes})
        await broker.send("goodbye", pointer, attributes={**packed, SIZE_ATTRIBUTE: len(body)})
        await broker.drain()

    assert seen == [("Bob", "bob", {"region": "eu"})] * 3


async def test_a_dead_letter_message_with_ten_attributes_is_read_with_the_one_that_made_space_for_the_reason() -> None:
    service = Service("inbox", retry=RetryPolicy(attempts=1))

    @service.subscribe(UserLeft)
    async def fail(event: UserLeft) -> None:
        raise ValueError("not this one")

    context = {f"ce-{name}": value for name, value in CONTEXT.items()}
    others = {f"a{number}": "x" for number in range(6)}
    async with MemoryBroker(service) as broker:
        await broker.send("inbox", {"name": "Bob"}, attributes={**others, **context})
        await broker.drain()
        [stored] = await broker.transport.receive(
            "inbox-dlq", max_messages=1, wait_seconds=0, visibility_timeout_seconds=30
        )
    processed = ProcessedEvents(service.handlers, None)
    dead = read_message(stored)

    assert "ce-type" not in stored.attributes
    assert (dead.event_id, dead.event_type, dead.kind) == ("7", "user.left", "retries-exhausted")
    assert (await processed._claims_for(dead))[0] == 1


async def test_data_in_binary_mode_may_be_in_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://payloads/big")
    await MemoryObjectStore().put(Payload("payloads", "big/2", '{"name": "Bob"}'))
    attributes = {**in_binary_mode("ce-"), SIZE_ATTRIBUTE: Attribute("Number", "15")}

    found = await reader().read(Message("1", "r", write_pointer("payloads", "big/2"), attributes=attributes))

    assert found.data == UserLeft(name="Bob")
