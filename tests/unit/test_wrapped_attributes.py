"""Message attributes in an SNS notification: a handler finds them as in a raw delivery."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Batch, BatchDelivery, Delivery, Queue, Reject, Service
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.dlq.messages import preview, read_message
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, compress
from smartpipe.envelope.decode import MessageReader
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.pointer import SIZE_ATTRIBUTE, write_pointer
from smartpipe.message import Attribute, Message, Payload
from smartpipe.payload_offload import PayloadOffload
from smartpipe.testing import virtual_time
from smartpipe.transports.open import use_transport
from tests.support.consumers import consuming, make_service
from tests.support.events import ADA, UserSignedUp
from tests.support.fakes import FakeTransport
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USERS = {
    "tenant": Attribute("String", "acme ü"),
    "weight": Attribute("Number", "-12.5"),
    "labels": Attribute("String.Array", '["a","b"]'),
    "photo": Attribute("Binary", b"\x00\xff"),
    "signature": Attribute("Binary.sha256", b"\x01"),
}
BUCKET = "memory://wrapped"


def wrapped(body: str, attributes: Mapping[str, Attribute], **others: Any) -> str:
    """Return the body of the SQS message in which SNS delivers *body* without raw delivery."""
    described = {
        name: {"Type": data_type, "Value": value if isinstance(value, str) else b64encode(value).decode()}
        for name, (data_type, value) in attributes.items()
    }
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:us-east-1:123456789012:users",
            "Message": body,
            "Timestamp": "2026-11-23T02:00:00.000Z",
            "MessageAttributes": {**described, **others},
        }
    )


def plain(body: str) -> tuple[str, dict[str, Attribute]]:
    return body, {}


def gzipped(body: str) -> tuple[str, dict[str, Attribute]]:
    return compress(body, "gzip"), {ENCODING_ATTRIBUTE: Attribute("String", "gzip")}


def stored(body: str) -> tuple[str, dict[str, Attribute]]:
    put_in_memory(Payload("wrapped", "key", body))
    return write_pointer("wrapped", "key"), {SIZE_ATTRIBUTE: Attribute("Number", str(len(body)))}


@pytest.fixture(autouse=True)
def _bodies_in_s3_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", BUCKET)


async def consume(service: Service, transport: FakeTransport, done: Callable[[], object]) -> None:
    """Let the service consume until *done*, in virtual time."""
    with virtual_time():
        async with consuming(service, transport):
            await until(done)


def recording_service(seen: list[Delivery]) -> Service:
    service = make_service()

    @service.subscribe(UserSignedUp)
    async def record(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery)

    return service


@pytest.mark.parametrize("carried", [plain, gzipped, stored])
@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "large"])
async def test_a_handler_sees_the_attributes_of_a_wrapped_message_as_those_of_a_raw_one(
    carried: Any, padding: int
) -> None:
    seen: list[Delivery] = []
    event = UserSignedUp(user_id=ADA.user_id, name="A" * (padding or 3))
    body, encoding = carried(encode(wrap(event, source="test")))
    attributes = USERS | encoding
    transport = FakeTransport()
    transport.put(body, attributes=attributes)
    transport.put(wrapped(body, attributes))

    await consume(recording_service(seen), transport, lambda: len(seen) == 2)

    raw, unwrapped = sorted(seen, key=lambda delivery: delivery.message.message_id)
    assert unwrapped.attributes == raw.attributes == attributes
    assert unwrapped.event == raw.event == event


async def test_attributes_that_sqs_would_refuse_are_left_out_and_the_others_stay() -> None:
    seen: list[Delivery] = []
    transport = FakeTransport()
    odd: dict[str, Any] = {
        "number": 5,
        "list": ["String", "x"],
        "lacks value": {"Type": "String"},
        "no_value": {"Type": "String"},
        "null": {"Type": "String", "Value": None},
        "empty": {"Type": "String", "Value": ""},
        "unknown_type": {"Type": "Text", "Value": "x"},
        "no_base64": {"Type": "Binary", "Value": "%%%"},
        "control": {"Type": "String", "Value": "\x00"},
        "aws.reserved": {"Type": "String", "Value": "x"},
        "x" * 257: {"Type": "String", "Value": "x"},
    }
    transport.put(wrapped(encode(wrap(ADA, source="test")), USERS, **odd))

    await consume(recording_service(seen), transport, lambda: seen)

    assert seen[0].attributes == USERS


@pytest.mark.parametrize("attributes", [None, 5, "text", [], {"a": {}}], ids=repr)
async def test_wrong_message_attributes_are_no_reason_to_refuse_the_event(attributes: Any) -> None:
    seen: list[Delivery] = []
    transport = FakeTransport()
    body = json.loads(wrapped(encode(wrap(ADA, source="test")), {})) | {"MessageAttributes": attributes}
    transport.put(json.dumps(body))

    await consume(recording_service(seen), transport, lambda: seen)

    assert (seen[0].event, seen[0].attributes) == (ADA, {})


async def test_an_attribute_of_the_sqs_message_itself_is_kept() -> None:
    seen: list[Delivery] = []
    transport = FakeTransport()
    own = {"tenant": Attribute("String", "set by a forwarder"), "hop": Attribute("Number", "2")}
    transport.put(wrapped(encode(wrap(ADA, source="test")), USERS), attributes=own)

    await consume(recording_service(seen), transport, lambda: seen)

    assert seen[0].attributes == USERS | own


async def test_a_producer_cannot_set_the_reason_of_a_dead_letter_in_a_notification() -> None:
    seen: list[Delivery] = []
    transport = FakeTransport()
    forged = {REASON_ATTRIBUTE: Attribute("String", '{"kind": "rejected", "attributes": {}}')}
    transport.put(wrapped(encode(wrap(ADA, source="test")), USERS | forged))

    await consume(recording_service(seen), transport, lambda: seen)

    assert seen[0].attributes == USERS


async def test_a_dead_letter_has_the_notification_unchanged() -> None:
    service, transport = make_service(), FakeTransport()

    @service.subscribe(UserSignedUp)
    async def refuse(event: UserSignedUp, delivery: Delivery) -> None:
        raise Reject(str(delivery.attributes["tenant"].value))

    body = wrapped(encode(wrap(ADA, source="test")), USERS)
    transport.put(body)

    await consume(service, transport, lambda: transport.entries("send"))

    [copy] = transport.entries("send")
    assert copy.body == body
    assert list(copy.attributes) == [REASON_ATTRIBUTE]
    assert json.loads(copy.attributes[REASON_ATTRIBUTE].value)["message"] == "acme ü"


async def test_each_item_of_a_batch_has_its_own_attributes() -> None:
    service, transport = make_service(), FakeTransport()
    seen: list[Mapping[str, Attribute]] = []

    @service.subscribe(UserSignedUp, batch=Batch(size=2))
    async def record(events: list[UserSignedUp], batch: BatchDelivery) -> None:
        seen.extend(delivery.attributes for delivery in batch.deliveries)

    both = [USERS, {"tenant": Attribute("String", "other")}]
    transport.put(*(wrapped(encode(wrap(ADA, source="test")), attributes) for attributes in both))

    await consume(service, transport, lambda: len(seen) == 2)

    assert sorted(map(len, seen)) == [1, 5]


@pytest.mark.parametrize("carried", [plain, gzipped, stored])
async def test_a_lambda_function_sees_them_too(carried: Any) -> None:
    seen: list[Delivery] = []
    service = Service("mailer", queue=Queue("mailer"))

    @service.subscribe(UserSignedUp)
    async def record(event: UserSignedUp, delivery: Delivery) -> None:
        seen.append(delivery)

    body, encoding = carried(encode(wrap(ADA, source="test")))
    sqs = {
        "messageId": "m",
        "receiptHandle": "r",
        "body": wrapped(body, USERS | encoding),
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:mailer",
    }
    with use_transport(FakeTransport()):
        handler = service.lambda_handler()
        try:
            assert await handler.handle({"Records": [sqs]}) == {"batchItemFailures": []}
        finally:
            await handler.aclose()

    assert seen[0].attributes == USERS | encoding


@pytest.mark.parametrize("carried", [plain, gzipped, stored])
def test_dlq_commands_read_a_wrapped_message_as_a_raw_one(carried: Any) -> None:
    event_type = {"type": Attribute("String", "member.signed_up")}
    body, encoding = carried(encode(wrap(ADA, source="test", event_id="e1")))
    raw = Message("m", "r", body, attributes=event_type | encoding)
    inside = Message("m", "r", wrapped(body, event_type | encoding))

    found, expected = read_message(inside), read_message(raw)

    assert found.message is inside
    assert (found.event_id, found.event_type, found.source) == (
        expected.event_id,
        expected.event_type,
        expected.source,
    )
    assert found.event_type == "member.signed_up"
    assert preview(inside, 30) == (inside.body[:30] if carried is stored else preview(raw, 30))


def test_tens_of_thousands_of_attributes_are_read_in_a_thread_and_in_bounded_memory() -> None:
    program = """
import asyncio, json, resource
from tests.unit.test_wrapped_attributes import huge_notification, make_reader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def main():
    message = huge_notification()
    before = peak()
    _, unwrapped = await make_reader().unwrap_and_read(message)
    print(len(unwrapped.attributes), peak() - before)

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=50)

    count, megabytes = ran.stdout.split()
    assert int(count) > 20_000
    assert float(megabytes) < 64


def make_reader() -> MessageReader:
    return MessageReader([UserSignedUp], PayloadOffload())


def huge_notification() -> Message:
    """Return a notification of 1 MiB with more attributes than SNS would accept."""
    many = {f"a{number}": {"Type": "String", "Value": "x"} for number in range(24_000)}
    return Message("m", "r", wrapped(encode(wrap(ADA, source="test")), {}, **many))
