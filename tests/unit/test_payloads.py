"""Large bodies: compressed, or waiting in S3, and what is made of them when they come back wrong or not at all."""

from __future__ import annotations

import gzip
import json
import random
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import zstandard

from smartpipe import (
    ConfigError,
    DecodeError,
    Delivery,
    Event,
    EventTooLarge,
    Publisher,
    PublishError,
    RetryPolicy,
    Service,
    Topic,
)
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.body_encoding import BodyEncoding, PayloadLocation
from smartpipe.envelope.compression import compress, decompress
from smartpipe.envelope.object_store import MemoryObjectStore
from smartpipe.envelope.pointer import read_pointer
from smartpipe.errors import PayloadError, TransportError
from smartpipe.message import Attribute, OutgoingMessage, Payload, size_bytes
from smartpipe.publisher.prepare import Publication, prepare
from smartpipe.testing import MemoryBroker
from tests.support.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

reports = Topic("reports")
LIMIT_BYTES = 10_000_000
MEMORY = PayloadLocation("memory", "payloads", "")
MEMORY_FOLDER = PayloadLocation("memory", "payloads", "big/")
"""As the fixture ``memory`` sets it."""
_WRAPPED = {
    "Type": "Notification",
    "MessageId": "1",
    "TopicArn": "arn",
    "Message": "x",
    "MessageAttributes": {"content-encoding": {"Type": "String", "Value": "gzip"}},
}
TWICE = compress(json.dumps(_WRAPPED), "gzip")
WORDS = [f"{number:x}" for number in random.Random(1).choices(range(2**32), k=1_000)]


class ReportMade(Event, topic=reports, type="report.made", version="1.0"):
    text: str


def report(size: int, *, seed: int = 1) -> ReportMade:
    """One whose text has about so many characters, and does not compress to nothing."""
    words = random.Random(seed).choices(WORDS, k=size // 9 + 1)
    return ReportMade(text=" ".join(words)[:size])


def body_encoding(**settings: object) -> BodyEncoding:
    return BodyEncoding(**{"payload_limit_bytes": LIMIT_BYTES, "compression_bytes": 1_000, **settings})  # type: ignore[arg-type]


def prepared(event: Event, encoding: BodyEncoding, attributes: dict[str, str] | None = None) -> OutgoingMessage:
    return prepare(Publication(event, attributes), source="s", encoding=encoding).message


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://payloads/big")


def serving(seen: list[Event], deliveries: list[Delivery] | None = None) -> Service:
    service = Service("archive", retry=RetryPolicy(attempts=3, base_seconds=1))

    @service.subscribe(ReportMade)
    async def keep(event: ReportMade, delivery: Delivery) -> None:
        seen.append(event)
        if deliveries is not None:
            deliveries.append(delivery)

    return service


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_body_is_text_and_comes_back_as_it_was(encoding: str) -> None:
    body = json.dumps({"text": "é😀\x00" * 5_000})

    compressed = compress(body, encoding)

    assert compressed.isascii()
    assert len(compressed) < len(body) / 10
    assert decompress(compressed, encoding, LIMIT_BYTES) == body
    assert decompress(compressed, f" {encoding.upper()}", LIMIT_BYTES) == body


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    compressed = b64encode(gzip.compress(b"one ") + gzip.compress(b"two")).decode()

    assert decompress(compressed, "gzip", LIMIT_BYTES) == "one two"


def test_gzip_of_very_many_members_is_refused_before_it_takes_the_loops_time() -> None:
    empty = gzip.compress(b"")

    with pytest.raises(DecodeError, match="more than 1,000 members"):
        decompress(b64encode(empty * 300_000).decode(), "gzip", LIMIT_BYTES)
    assert decompress(b64encode(empty * 999 + gzip.compress(b"x")).decode(), "gzip", LIMIT_BYTES) == "x"


@pytest.mark.parametrize("name", ["identity", "utf-8", ""])
async def test_a_body_that_is_not_compressed_may_say_so(name: str) -> None:
    seen: list[Event] = []
    body = encode(wrap(report(10), source="elsewhere"))

    async with MemoryBroker(serving(seen)) as broker:
        attributes = {"content-encoding": Attribute("String", name or " ")}
        await broker.transport.send("archive", [OutgoingMessage(body, len(body), attributes)])
        await broker.drain()

    assert seen == [report(10)]


def test_a_zstd_frame_that_wants_gigabytes_of_window_is_refused() -> None:
    """Long-distance matching lets a frame ask for 128 MiB and more (RFC 8878, section 3.1.1.1.2)."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    bomb = b64encode(frame.compress(b"0" * 1_000) + frame.flush()).decode()

    with pytest.raises(DecodeError, match="as its content-encoding 'zstd' says") as caught:
        decompress(bomb, "zstd", LIMIT_BYTES)
    assert caught.value.kind == "not-compressed"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_would_unpack_to_more_than_the_limit_is_refused_before_it_does(encoding: str) -> None:
    bomb = compress("0" * 50_000_000, encoding)

    with pytest.raises(DecodeError, match="longer than 1,000,000 bytes"):
        decompress(bomb, encoding, 1_000_000)
    assert len(decompress(compress("0" * 1_000_000, encoding), encoding, 1_000_000)) == 1_000_000


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b64encode(data[: len(data) // 2]).decode(),
        lambda data: b64encode(b"?" + data[1:]).decode(),
        lambda data: b64encode(data).decode()[1:] + "!",
        lambda _: "é",
        lambda _: "",
    ],
    ids=["half of it", "another first byte", "no Base64", "no ASCII", "nothing"],
)
def test_a_body_that_is_not_what_its_encoding_says_is_a_decode_error(encoding: str, spoil: object) -> None:
    compressed = b64decode(compress("x" * 1_000, encoding))

    with pytest.raises(DecodeError, match=f"as its content-encoding '{encoding}' says") as caught:
        decompress(spoil(compressed), encoding, LIMIT_BYTES)  # type: ignore[operator]
    assert caught.value.kind == "not-compressed"


def test_an_unknown_encoding_is_a_payload_error_because_another_worker_may_know_it() -> None:
    with pytest.raises(PayloadError, match="'br' is not one of gzip, zstd"):
        decompress("xxxx", "br", LIMIT_BYTES)


def test_only_what_gets_smaller_is_compressed() -> None:
    small, large = (
        prepared(report(100), body_encoding(compression="gzip")),
        prepared(report(50_000), body_encoding(compression="gzip")),
    )
    noise = ReportMade(text=b64encode(random.Random(2).randbytes(2_000)).decode())

    assert set(small.attributes) == {"type"}
    assert large.attributes["content-encoding"] == Attribute("String", "gzip")
    assert large.size_bytes == size_bytes(large.body, large.attributes) < 50_000
    assert "content-encoding" not in prepared(noise, body_encoding(compression="gzip")).attributes


@pytest.mark.parametrize(
    "event_id", ["..", "../../etc/passwd", "a\0b", "x" * 2_000, "é" * 900, "\ud83e", "a b%/?#", ""]
)
def test_an_event_with_any_id_gets_a_key_that_s3_takes_and_no_other_body_has(event_id: str) -> None:
    at = PayloadLocation.parse(f"s3://b1b/{'f' * 200}")
    keys = []
    for body in ("x" * 1_000, "y" * 1_000):
        message = body_encoding(claim_check=at).encode(
            OutgoingMessage(body, 1_000), event_id, limit_bytes=500, free_attributes=5
        )
        assert message.payload is not None
        keys.append(message.payload.key)

    assert keys[0] != keys[1]  # two services may use one id
    for key in keys:
        assert len(key) <= 1_024
        assert re.fullmatch(r"f{200}/[A-Za-z0-9._!/:-]+", key)
        assert not {".", "..", ""} & set(key.split("/")[1:-1] if event_id else ())


def test_a_prefix_in_s3_that_leaves_no_room_for_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="its path has 201 characters, and at most 200"):
        PayloadLocation.parse(f"s3://b1b/{'f' * 201}")


def test_what_the_topic_does_not_take_points_to_s3_as_the_extended_client_writes_it() -> None:
    outgoing = prepare(
        Publication(report(300_000)),
        source="s",
        encoding=body_encoding(claim_check=PayloadLocation.parse("s3://b1b/f/")),
    )

    message = outgoing.message
    assert message.payload is not None
    key = f"f/{outgoing.event_id}/{sha256(message.payload.text.encode()).hexdigest()}"
    assert json.loads(message.body) == [
        "software.amazon.payloadoffloading.PayloadS3Pointer",
        {"s3BucketName": "b1b", "s3Key": key},
    ]
    assert message.payload.url == f"s3://b1b/{key}"
    assert json.loads(message.payload.text)["data"] == {"text": report(300_000).text}
    assert message.attributes["ExtendedPayloadSize"] == Attribute("Number", str(len(message.payload.text)))
    assert message.size_bytes < 400


def test_a_body_that_fits_when_it_is_compressed_does_not_wait_in_s3() -> None:
    message = prepared(report(300_000), body_encoding(claim_check=MEMORY, compression="gzip"))

    assert message.payload is None
    assert message.size_bytes < 262_144


def test_a_threshold_of_ones_own_holds_below_that_of_the_topic() -> None:
    assert prepared(report(5_000), body_encoding(claim_check=MEMORY, claim_check_bytes=4_000)).payload is not None
    assert prepared(report(5_000), body_encoding(claim_check=MEMORY, claim_check_bytes=8_000)).payload is None
    assert prepared(report(300_000), body_encoding(claim_check=MEMORY, claim_check_bytes=1_000_000)).payload is not None


def test_a_message_with_ten_attributes_has_none_left_for_encoding() -> None:
    nine = {f"a{number}": "x" for number in range(9)}

    assert "content-encoding" not in prepared(report(50_000), body_encoding(compression="gzip"), nine).attributes
    with pytest.raises(EventTooLarge, match="uses one of the ten message attributes"):
        prepared(report(300_000), body_encoding(claim_check=MEMORY), nine)


def test_the_last_attribute_goes_to_the_claim_check_where_compressing_is_not_enough() -> None:
    eight = {f"a{number}": "x" for number in range(8)}
    noise = ReportMade(text=random.Random(3).randbytes(450_000).hex())

    message = prepared(noise, body_encoding(claim_check=MEMORY, compression="gzip"), eight)

    assert message.payload is not None
    assert "content-encoding" not in message.attributes


def test_longer_than_consumers_read_is_refused_by_the_publisher() -> None:
    with pytest.raises(EventTooLarge) as raised:
        prepared(report(300_000), body_encoding(claim_check=MEMORY, payload_limit_bytes=280_000))
    size = raised.value.size_bytes

    assert prepared(report(300_000), body_encoding(claim_check=MEMORY, payload_limit_bytes=size)).payload is not None
    with pytest.raises(EventTooLarge):
        prepared(report(300_000), body_encoding(claim_check=MEMORY, payload_limit_bytes=size - 1))


@pytest.mark.parametrize(
    "name",
    [
        *("content-encoding", "ExtendedPayloadSize", "SQSLargePayloadSize"),
        *("smartpipe_dead_letter", "Smartpipe_Dead_Letter", "smartpipe_anything"),
    ],
)
def test_attributes_of_smartpipes_own_are_not_for_users(name: str) -> None:
    with pytest.raises(PublishError, match="is reserved"):
        prepared(report(10), body_encoding(), {name: "1"})


@pytest.mark.parametrize("url", ["my-bucket", "s3://", "s3://UPPER", "https://my-bucket", "s3://b1b/with space"])
def test_a_faulty_url_is_refused_with_an_example(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", url)

    with pytest.raises(ConfigError, match="write it as s3://my-bucket"):
        Publisher("test", transport=FakeTransport())


def test_zstd_without_its_package_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_COMPRESSION", "zstd")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)

    with pytest.raises(ConfigError, match=r"pip install 'smartpipe\[zstd\]'"):
        Publisher("test", transport=FakeTransport())
    with pytest.raises(PayloadError, match=r"pip install 'smartpipe\[zstd\]'"):
        decompress("xxxx", "zstd", LIMIT_BYTES)


@pytest.mark.usefixtures("memory")
async def test_a_large_event_is_handled_like_any_other() -> None:
    seen: list[Event] = []

    async with MemoryBroker(serving(seen)) as broker:
        await broker.publish(report(2_000_000))
        await broker.publish(report(100))
        await broker.drain()

        assert broker.assert_published(ReportMade, times=2)[0] == report(2_000_000)
    assert seen in ([report(2_000_000), report(100)], [report(100), report(2_000_000)])


@pytest.mark.usefixtures("memory")
async def test_a_large_event_may_be_published_in_one_request_with_small_ones() -> None:
    seen: list[Event] = []
    events = [report(size, seed=size) for size in (100, 2_000_000, 200)]

    async with MemoryBroker(serving(seen)) as broker, Publisher("test") as publisher:
        await publisher.publish_many(events)
        await broker.drain()

    assert len(seen) == 3
    assert all(event in seen for event in events)


@pytest.mark.usefixtures("memory")
async def test_compressed_and_in_s3_at_once_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_COMPRESSION", "zstd")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_BYTES", "20000")
    seen: list[Event] = []
    deliveries: list[Delivery] = []

    async with MemoryBroker(serving(seen, deliveries)) as broker:
        await broker.publish(report(200_000))
        await broker.drain()

    assert seen == [report(200_000)]
    [delivery] = deliveries
    assert set(delivery.message.attributes) == {"type", "content-encoding", "ExtendedPayloadSize"}


@pytest.mark.usefixtures("memory")
async def test_what_sns_wrapped_is_read_too() -> None:
    seen: list[Event] = []
    message = prepared(report(300_000), body_encoding(claim_check=MEMORY_FOLDER))
    assert message.payload is not None
    await MemoryObjectStore().put(message.payload)
    attributes = {name: {"Type": kind, "Value": value} for name, (kind, value) in message.attributes.items()}
    wrapped = {
        "Type": "Notification",
        "MessageId": "1",
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:reports",
        "Message": message.body,
        "MessageAttributes": attributes,
    }

    async with MemoryBroker(serving(seen)) as broker:
        await broker.send("archive", json.dumps(wrapped))
        await broker.drain()

    assert seen == [report(300_000)]


@pytest.mark.usefixtures("memory")
async def test_fault_55_a_missing_payload_is_tried_again_and_then_dead_lettered_with_that_reason() -> None:
    seen: list[Event] = []
    message = prepared(report(300_000), body_encoding(claim_check=MEMORY_FOLDER))
    assert message.payload is not None

    async with MemoryBroker(serving(seen)) as broker:
        await broker.transport.send("archive", [message._replace(payload=None)])
        await broker.drain()

        assert len(broker.retried()) == 2
        [dead] = broker.dead_lettered()
        assert dead.kind == "payload-missing"
        assert f"the body at s3://payloads/{message.payload.key} cannot be read" in dead.reason
        assert dead.body == message.body  # it still points there: put the object back, and it can be redriven
    assert seen == []


@pytest.mark.usefixtures("memory")
async def test_fault_55_while_s3_is_down_messages_wait_and_no_attempt_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ailing(MemoryObjectStore):
        tries = 0

        async def get(self, payload: Payload, limit_bytes: int) -> str:
            Ailing.tries += 1
            if Ailing.tries <= 6:
                raise TransportError("SlowDown", "S3 is not well", retryable=True)
            return await super().get(payload, limit_bytes)

    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: Ailing())
    seen: list[Event] = []

    async with MemoryBroker(serving(seen)) as broker:
        await broker.publish(report(300_000))
        await broker.drain()

        assert broker._consumers["archive"].counters.deferred == 6
        broker.assert_nothing_dead_lettered()
    assert seen == [report(300_000)]


@pytest.mark.parametrize(
    ("body", "attributes", "kind"),
    [
        ("{}", {"ExtendedPayloadSize": Attribute("Number", "2")}, "not-a-pointer"),
        ('["x",{"s3BucketName":"b","s3Key":"k"}]', {"SQSLargePayloadSize": Attribute("Number", "2")}, "not-a-pointer"),
        ("no gzip", {"content-encoding": Attribute("String", "gzip")}, "not-compressed"),
        (TWICE, {"content-encoding": Attribute("String", "gzip")}, "not-compressed"),
    ],
)
async def test_a_body_that_is_not_packed_as_it_says_is_dead_lettered_at_once(
    body: str, attributes: dict[str, Attribute], kind: str
) -> None:
    async with MemoryBroker(serving([])) as broker:
        await broker.transport.send("archive", [OutgoingMessage(body, len(body), attributes)])
        await broker.drain()

        assert [dead.kind for dead in broker.dead_lettered()] == [kind]
        assert broker.retried() == []


def test_the_older_extended_client_wrote_another_class() -> None:
    old = '["com.amazon.sqs.javamessaging.MessageS3Pointer",{"s3BucketName":"b","s3Key":"k"}]'

    assert read_pointer(old) == Payload("b", "k")


class _Half(MemoryObjectStore):
    """Refuses every second payload, for good or for now."""

    def __init__(self, *, retryable: bool) -> None:
        self.retryable = retryable
        self.tries = 0

    async def put(self, payload: Payload) -> None:
        self.tries += 1
        if self.tries % 2:
            raise TransportError("AccessDenied", f"no putting {payload.key}", retryable=self.retryable)
        await super().put(payload)


@pytest.mark.usefixtures("memory")
async def test_an_event_whose_payload_is_refused_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: _Half(retryable=False))
    events: Sequence[ReportMade] = [report(300_000, seed=seed) for seed in range(4)]
    seen: list[Event] = []

    async with MemoryBroker(serving(seen)) as broker, Publisher("test") as publisher:
        with pytest.raises(PublishError, match="no putting") as caught:
            await publisher.publish_many([*events, report(10)])
        await broker.drain()

    lost = [failure.event for failure in caught.value.failures]
    assert lost == [events[0], events[2]]
    assert len(seen) == 3
    assert not any(event in seen for event in lost)


@pytest.mark.usefixtures("memory")
async def test_a_payload_that_cannot_be_put_for_now_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: _Half(retryable=True))
    seen: list[Event] = []

    async with MemoryBroker(serving(seen)) as broker, Publisher("test") as publisher:
        await publisher.publish_many([report(300_000), report(10)])
        await broker.drain()

    assert len(seen) == 2
