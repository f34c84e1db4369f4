"""Sizes at which bodies are compressed, stored or refused, to the last byte."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from typing import Any

import pytest
import zstandard

from smartpipe import ConfigError, DecodeError
from smartpipe.envelope.body_encoding import ARN, NO_ENCODING, BodyEncoding, PayloadLocation
from smartpipe.envelope.compression import MAX_MEMBERS, check_compression, compress, decompress
from smartpipe.envelope.object_store import MemoryObjectStore
from smartpipe.envelope.pointer import is_pointer, read_pointer, write_pointer
from smartpipe.envelope.structure import has_few_objects, has_too_many_values, refuse_too_many_values
from smartpipe.errors import PayloadError
from smartpipe.message import Attribute, OutgoingMessage, Payload

PLACE = PayloadLocation("memory", "limits", "folder/", "111111111111")


@pytest.mark.parametrize(("count", "too_many"), [(10, False), (11, True)])
def test_objects_and_arrays_have_a_limit(count: int, too_many: bool) -> None:
    for body in ("{" * count, "[" * count, "[" * (count - 1) + "{"):
        assert has_too_many_values(body, 10) is too_many
        assert has_few_objects(body, 10) is not too_many


@pytest.mark.parametrize(("body", "too_many"), [
    ("," * 79, False), ("," * 80, True), (":" * 27, False), (":" * 28, True), ("{" * 10 + "," * 79 + ":" * 27, False),
    ('"' + "," * 99 + '"', False), ('"' + "," * 99 + '"' + "," * 80, True), ('"' + "," * 99 + '"' + "," * 79, False),
    ('"\\"' + "," * 99 + '"', False), ('"\\\\"' + "," * 80 + '"', True), ('"\\\\\\"' + "," * 80 + '"', False),
    ('"a","b"' + "," * 79, True), ('"a","b"' + "," * 78 + '""', False), ("," * 40 + '""' + "," * 40, True),
    ("," * 40 + '""' + "," * 39, False), ('"' + "," * 99, False),
])  # fmt: skip
def test_values_are_counted_outside_of_strings(body: str, too_many: bool) -> None:
    assert has_too_many_values(body, 10) is too_many
    if too_many:
        with pytest.raises(DecodeError, match="more than 10 objects and arrays, or more than 80 values") as caught:
            refuse_too_many_values(body, 10)
        assert caught.value.kind == "too-many-values"
    else:
        refuse_too_many_values(body, 10)


def pointer(bucket: Any = "bucket", key: Any = "key", kind: str = "software.amazon.payloadoffloading") -> str:
    return json.dumps([f"{kind}.PayloadS3Pointer", {"s3BucketName": bucket, "s3Key": key}])


def test_a_pointer_is_read_as_it_was_written() -> None:
    assert read_pointer(write_pointer("bucket", "a/b")) == Payload("bucket", "a/b")
    assert read_pointer(pointer(key="k" * 1_024)).key == "k" * 1_024
    assert read_pointer(pointer(key="\u00e4" * 512)).key == "\u00e4" * 512
    text = pointer()
    assert read_pointer(text + " " * (8_192 - len(text))) == Payload("bucket", "key")


@pytest.mark.parametrize(("text", "reason"), [
    (pointer() + " " * 8_192, "it is longer than 8,192 characters"), (pointer(kind="other"), "its class is not that"),
    (pointer(key="k" * 1_025), "the key is too long"), (pointer(key="\u00e4" * 513), "the key is too long"),
    (pointer(key="a\n"), "control characters"), (pointer(bucket="a\x00"), "control characters"),
    (pointer(key=""), "bucket or key is missing"), (pointer(bucket=""), "bucket or key is missing"),
    (pointer(key=5), "bucket or key is missing"), (pointer(bucket=None), "bucket or key is missing"),
    ("[]", "not enough values"), ("5", "cannot unpack"), ('["a", "b", "c"]', "too many values"),
    ('["software.amazon.payloadoffloading.PayloadS3Pointer", {}]', "s3BucketName"), ("{", "JSONDecodeError"),
])  # fmt: skip
def test_any_other_text_is_no_pointer(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        read_pointer(text)

    assert caught.value.kind == "not-a-pointer"
    assert len(str(caught.value)) < 400


def test_either_attribute_marks_a_pointer() -> None:
    size = Attribute("Number", "5")

    assert [is_pointer({name: size}) for name in ("ExtendedPayloadSize", "SQSLargePayloadSize", "other")] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), [
    ("s3://bucket", ("s3", "bucket", "", None)), ("s3://bucket/", ("s3", "bucket", "", None)),
    ("s3://bucket/a/b", ("s3", "bucket", "a/b/", None)), ("s3://bucket//a//", ("s3", "bucket", "a/", None)),
    ("s3://bucket?owner=123456789012", ("s3", "bucket", "", "123456789012")),
    ("s3://bucket/a?owner=123456789012", ("s3", "bucket", "a/", "123456789012")),
    ("memory://bucket/a", ("memory", "bucket", "a/", None)), ("s3://abc", ("s3", "abc", "", None)),
    (f"s3://{'b' * 63}", ("s3", "b" * 63, "", None)),
    (f"s3://bucket/{'f' * 200}", ("s3", "bucket", "f" * 200 + "/", None)),
    ("s3://bucket/a?b=c", ("s3", "bucket", "a?b=c/", None)),  # a question mark may be part of a key
])  # fmt: skip
def test_a_location_is_a_bucket_with_a_prefix_and_an_owner(url: str, expected: tuple[Any, ...]) -> None:
    location = PayloadLocation.parse(url)

    assert (location.scheme, location.bucket, location.prefix, location.owner) == expected
    assert location.url == f"{expected[0]}://{expected[1]}/{expected[2]}"


@pytest.mark.parametrize("url", [
    "s3://ab", f"s3://{'b' * 64}", "s3://Bucket", "s3://-bucket", "s3://bucket-", "gs://bucket", "s3://bucket/\u00e4",
    "s3://bucket/a b", "s3://bucket?owner=1", "s3://bucket/a?owner=12345678901x",
    "s3://bucket/a?owner=123456789012?owner=123456789012", "bucket", "",
])  # fmt: skip
def test_another_url_is_no_location(url: str) -> None:
    with pytest.raises(ConfigError, match="SMARTPIPE_CLAIM_CHECK_URL=.*write it as s3://my-bucket"):
        PayloadLocation.parse(url)


def test_an_access_point_names_its_owner() -> None:
    arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/bodies"

    assert PayloadLocation.parse(f"s3://{arn}/a", bucket=ARN).owner == "123456789012"
    assert PayloadLocation.parse(f"s3://{arn}?owner=210987654321", bucket=ARN).owner == "210987654321"
    with pytest.raises(ConfigError, match="READ="):
        PayloadLocation.parse(f"s3://{arn}/a", setting="READ")


@pytest.mark.parametrize(("options", "expected"), [
    ({}, 1_048_575), ({"compression": "gzip", "compression_bytes": 5_000}, 4_999),
    ({"compression_bytes": 5_000}, 1_048_575),
    ({"claim_check": PLACE}, 1_048_575), ({"claim_check": PLACE, "claim_check_bytes": 3_000}, 3_000),
    ({"claim_check_bytes": 3_000}, 1_048_575),
    ({"claim_check": PLACE, "claim_check_bytes": 3_000, "compression": "gzip", "compression_bytes": 2_000}, 1_999),
], ids=str)  # fmt: skip
def test_a_message_up_to_a_size_is_never_encoded(options: dict[str, Any], expected: int) -> None:
    assert BodyEncoding(**options).untouched_bytes == expected


def encoded(size: int, *, free: int = 5, limit: int = 100_000, **options: Any) -> OutgoingMessage:
    encoding = BodyEncoding(**{"payload_limit_bytes": 50_000, **options})
    return encoding.encode(OutgoingMessage("x" * size, size), "event", limit_bytes=limit, free_attributes=free)


@pytest.mark.parametrize(("size", "stored"), [(3_000, False), (3_001, True), (50_000, True), (50_001, False)])
def test_a_body_above_the_threshold_and_below_the_limit_of_consumers_is_stored(size: int, stored: bool) -> None:
    message = encoded(size, claim_check=PLACE, claim_check_bytes=3_000)

    assert (message.payload is not None) is stored
    if message.payload is not None:
        assert (message.payload.bucket, message.payload.owner) == ("limits", "111111111111")
        assert message.payload.key.startswith("folder/event/")
        assert message.attributes == {"ExtendedPayloadSize": Attribute("Number", str(size))}


@pytest.mark.parametrize(("size", "limit", "stored"), [(2_000, 2_000, False), (2_001, 2_000, True)])
def test_the_limit_of_the_destination_is_a_threshold_too(size: int, limit: int, stored: bool) -> None:
    for options in ({}, {"claim_check_bytes": 3_000}):
        assert (encoded(size, limit=limit, claim_check=PLACE, **options).payload is not None) is stored
    assert encoded(size, limit=limit, claim_check=PLACE, free=0).payload is None
    assert encoded(size, limit=limit).payload is None


@pytest.mark.parametrize(("size", "compressed"), [(999, False), (1_000, True), (1_048_576, True), (1_048_577, False)])
def test_a_message_is_compressed_from_a_size_on(size: int, compressed: bool) -> None:
    message = encoded(size, compression="gzip", compression_bytes=1_000, limit=10_000_000)

    assert ("content-encoding" in message.attributes) is compressed
    assert (message.size_bytes < size) is compressed
    assert encoded(size, compression="gzip", compression_bytes=1_000, free=0).body == "x" * size


def test_the_last_free_attribute_is_used_for_compression_if_that_is_enough() -> None:
    options: dict[str, Any] = {"compression": "gzip", "compression_bytes": 1_000, "claim_check": PLACE}

    assert list(encoded(40_000, free=1, limit=2_000, **options).attributes) == ["content-encoding"]
    assert list(encoded(40_000, free=1, limit=100, **options).attributes) == ["ExtendedPayloadSize"]
    assert list(encoded(40_000, free=2, limit=100, **options).attributes) == ["content-encoding", "ExtendedPayloadSize"]
    assert NO_ENCODING.encode(OutgoingMessage("x", 1), "e", limit_bytes=9, free_attributes=9) == OutgoingMessage("x", 1)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_is_decompressed_up_to_its_limit(encoding: str) -> None:
    body = compress("x" * 10_000, encoding)

    assert decompress(body, f" {encoding.upper()} ", 10_000) == "x" * 10_000
    with pytest.raises(DecodeError, match="it would be longer than 9,999 bytes"):
        decompress(body, encoding, 9_999)


@pytest.mark.parametrize("name", ["", "identity", "UTF-8", "utf8", "us-ascii", "ascii", " Identity "])
def test_a_body_may_say_that_it_is_plain(name: str) -> None:
    assert decompress("plain", name, 1) == "plain"


@pytest.mark.parametrize(("body", "encoding", "kind"), [
    ("x", "br", "unknown-encoding"), ("not base64!", "gzip", "not-compressed"), ("", "gzip", "not-compressed"),
    (b64encode(gzip.compress(b"a", mtime=0)[:-1]).decode(), "gzip", "not-compressed"),
    (b64encode(gzip.compress(b"\xff", mtime=0)).decode(), "gzip", "not-compressed"),
    (b64encode(gzip.compress(b"a", mtime=0) + b"x").decode(), "gzip", "not-compressed"),
    (b64encode(zstandard.compress(b"a" * 100)[:-1]).decode(), "zstd", "not-compressed"),
    (b64encode(b"x" * 20).decode(), "zstd", "not-compressed"),
])  # fmt: skip
def test_a_body_that_is_not_as_it_says_is_refused(body: str, encoding: str, kind: str) -> None:
    with pytest.raises((DecodeError, PayloadError)) as caught:
        decompress(body, encoding, 1_000)

    assert caught.value.kind == kind


@pytest.mark.parametrize(("members", "accepted"), [(2, True), (MAX_MEMBERS, True), (MAX_MEMBERS + 1, False)])
def test_gzip_has_a_thousand_members_at_most(members: int, accepted: bool) -> None:
    body = b64encode(gzip.compress(b"a", mtime=0) * members).decode()

    if accepted:
        assert decompress(body, "x-gzip", 2_000) == "a" * members
    else:
        with pytest.raises(DecodeError, match="it has more than 1,000 members"):
            decompress(body, "gzip", 2_000)


def test_the_package_of_an_encoding_is_needed_only_for_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compression("zstd")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    check_compression("gzip")
    with pytest.raises(ConfigError, match="needs the package zstandard"):
        check_compression("zstd")
    with pytest.raises(PayloadError, match="needs the package zstandard"):
        decompress("AAAA", "zstd", 10)


@pytest.mark.parametrize(
    ("text", "limit", "accepted"), [("x" * 10, 10, True), ("x" * 11, 10, False), ("\u00e4" * 6, 11, False)]
)
async def test_an_object_in_memory_is_read_up_to_its_limit(text: str, limit: int, accepted: bool) -> None:
    store, payload = MemoryObjectStore(), Payload("limits", "object", text)
    await store.put(payload)

    if accepted:
        assert await MemoryObjectStore().get(payload._replace(text=""), limit) == text
    else:
        with pytest.raises(PayloadError, match=f"longer than {limit} bytes"):
            await store.get(payload, limit)
    with pytest.raises(PayloadError, match="there is no such object in this process's memory"):
        await store.get(payload._replace(key="missing"), limit)
