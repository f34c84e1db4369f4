"""Where bodies may be read from: a pointer leads there or nowhere, whatever it says and whoever reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from smartpipe import ConfigError, DecodeError, Event, Service
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.body_encoding import PayloadLocation
from smartpipe.envelope.object_store import MemoryObjectStore
from smartpipe.envelope.pointer import read_pointer, write_pointer
from smartpipe.envelope.trusted_locations import TrustedLocations
from smartpipe.message import Attribute, Failure, OutgoingMessage, Payload
from smartpipe.names import Naming
from smartpipe.payload_offload import PayloadOffload
from smartpipe.testing import MemoryBroker
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.table_and_bucket import TableAndBucket
from tests.support.events import ADA, UserSignedUp

if TYPE_CHECKING:
    from collections.abc import Sequence

POINTS = {"ExtendedPayloadSize": Attribute("Number", "2")}
ACCESS_POINT = "arn:aws:s3:us-west-2:210987654321:accesspoint/partners"
NAMING = Naming("aws", "eu-west-1", "123456789012")


def readable(url: str | None = "s3://payloads/folder", read: str | None = None) -> TrustedLocations:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("URL", url), ("READ", read)):
            patch.setenv(f"SMARTPIPE_CLAIM_CHECK_{name}", value or "")
        return TrustedLocations.from_environment()


@pytest.mark.parametrize(
    "key", ["folder/x", "folder/x/y", "folder//x", "folder/%2F", "folder/a..b", "folder/..a", "folder/é"]
)
def test_a_key_below_the_prefix_may_be_read(key: str) -> None:
    assert readable().location_of(Payload("payloads", key)) == PayloadLocation("s3", "payloads", "folder/")


@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        ("payloads", "x"),
        ("payloads", "folder"),
        ("payloads", "folder/"),
        ("payloads", "folder2/x"),
        ("payloads", "folde/x"),
        ("payloads", "Folder/x"),
        ("payloads", "/folder/x"),
        ("payloads", "//folder/x"),
        ("payloads", "other/folder/x"),
        ("payloads", "folder/../other/x"),
        ("payloads", "folder/./x"),
        ("payloads", "folder/x/.."),
        ("payloads", "folder/%2e%2e/other/x"),
        ("payloads", "folder%2Fx"),
        ("payloads", "%66older/x"),
        ("payloads", "folder%2F..%2Fother"),
        ("payloads2", "folder/x"),
        ("payload", "folder/x"),
        ("PAYLOADS", "folder/x"),
        ("payloads ", "folder/x"),
        ("payloads/folder", "x"),
        ("../payloads", "folder/x"),
        ("other", "folder/x"),
        (ACCESS_POINT, "folder/x"),
        ("arn:aws:s3:::payloads", "folder/x"),
        ("payloads-abcdefgh-s3alias", "folder/x"),
    ],
)
def test_everything_else_is_refused_with_the_bucket_and_the_setting(bucket: str, key: str) -> None:
    with pytest.raises(DecodeError) as caught:
        readable().location_of(Payload(bucket, key))

    assert caught.value.kind == "payload-not-allowed"
    assert bucket in str(caught.value)


def test_a_refusal_names_the_setting_and_what_is_allowed_and_is_short() -> None:
    with pytest.raises(DecodeError) as caught:
        readable().location_of(Payload("b" * 100_000, "k" * 100_000))
    said = str(caught.value)
    with pytest.raises(DecodeError) as nowhere:
        readable(None).location_of(Payload("payloads", "folder/x"))

    assert "SMARTPIPE_CLAIM_CHECK_READ" in said
    assert "from s3://payloads/folder/" in said
    assert len(said) < 1_000
    assert "neither SMARTPIPE_CLAIM_CHECK_URL nor SMARTPIPE_CLAIM_CHECK_READ is set" in str(nowhere.value)


@pytest.mark.parametrize("separator", [",", " ", ", ", "  ", ",,"])
def test_a_list_allows_further_locations_with_owners_of_their_own(separator: str) -> None:
    found = readable(
        "s3://payloads/folder?owner=111111111111",
        separator.join(["s3://theirs?owner=222222222222", f"s3://{ACCESS_POINT}/in", "s3://payloads/other"]),
    )

    owners = {
        (bucket, key): found.location_of(Payload(bucket, key)).owner
        for bucket, key in (
            ("payloads", "folder/x"), ("theirs", "any/x"), (ACCESS_POINT, "in/x"), ("payloads", "other/x"),
        )
    }  # fmt: skip
    assert list(owners.values()) == ["111111111111", "222222222222", "210987654321", None]
    for bucket, key in (("payloads", "x"), (ACCESS_POINT, "out/x"), (f"{ACCESS_POINT}2", "in/x")):
        with pytest.raises(DecodeError):
            found.location_of(Payload(bucket, key))


def test_of_two_locations_that_hold_a_key_the_narrower_one_says_the_owner() -> None:
    found = readable("s3://payloads", "s3://payloads/theirs?owner=222222222222")

    assert found.location_of(Payload("payloads", "theirs/x")).owner == "222222222222"
    assert found.location_of(Payload("payloads", "x")).owner is None


def test_a_whole_bucket_has_no_keys_that_climb_or_begin_with_a_slash() -> None:
    found = readable("s3://payloads")

    assert found.location_of(Payload("payloads", "x"))
    for key in ("/x", "../x", "a/../x", ".."):
        with pytest.raises(DecodeError):
            found.location_of(Payload("payloads", key))


@pytest.mark.parametrize(
    ("url", "read", "setting"),
    [
        ("s3://payloads?owner=12", None, "SMARTPIPE_CLAIM_CHECK_URL"),
        ("s3://payloads?owner=12345678901x", None, "SMARTPIPE_CLAIM_CHECK_URL"),
        (f"s3://{ACCESS_POINT}", None, "SMARTPIPE_CLAIM_CHECK_URL"),
        (None, "payloads", "SMARTPIPE_CLAIM_CHECK_READ"),
        (None, "s3://*", "SMARTPIPE_CLAIM_CHECK_READ"),
        (None, "s3://ok-bucket;s3://other", "SMARTPIPE_CLAIM_CHECK_READ"),
        (None, "s3://arn:aws:s3:::payloads", "SMARTPIPE_CLAIM_CHECK_READ"),
        (None, "https://payloads", "SMARTPIPE_CLAIM_CHECK_READ"),
    ],
)
def test_a_faulty_location_is_a_configuration_error(url: str | None, read: str | None, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}="):
        readable(url, read)


def test_every_faulty_location_of_a_list_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        readable(None, "payloads s3://fine s3://NOT")

    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "SMARTPIPE_CLAIM_CHECK_READ=...",
        "SMARTPIPE_CLAIM_CHECK_READ=s3",
    ]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '["software.amazon.payloadoffloading.PayloadS3Pointer"]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",[]]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":""}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"","s3Key":"k"}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":["b"],"s3Key":"k"}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":{"a":1}}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"\\ud800"}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"a\\nb"}]',
        '["software.amazon.payloadoffloading.PayloadS3Pointer",{"s3BucketName":"b","s3Key":"a\\u0000"}]',
        write_pointer("b", "k" * 1_025),
        write_pointer("b", "é" * 513),
        json.dumps([["unhashable"], {}]),
        json.dumps(["x" * 1_000_000, {}]),
    ],
)
def test_what_is_no_pointer_is_refused_in_few_words(body: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_pointer(body)

    assert caught.value.kind == "not-a-pointer"
    assert len(str(caught.value)) < 500


def test_the_longest_key_that_s3_takes_is_a_key() -> None:
    assert read_pointer(write_pointer("b", "é" * 512)).key == "é" * 512


class Untouched(MemoryObjectStore):
    """A store that nothing may be read from."""

    async def get(self, payload: Payload, limit_bytes: int) -> str:
        raise AssertionError(f"{payload.url} was read")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: Untouched())


def serving(seen: list[Event]) -> Service:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(event: UserSignedUp) -> None:
        seen.append(event)

    return service


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("url", [None, "s3://payloads/folder", "memory://payloads/folder"])
@pytest.mark.parametrize("bucket", ["other", ACCESS_POINT])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_worker_dead_letters_a_pointer_elsewhere_at_once_and_reads_nothing(
    url: str | None, bucket: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", url or "")
    seen: list[Event] = []
    body, attributes = write_pointer(bucket, "folder/x"), POINTS
    if wrapped:
        notification = {
            "Type": "Notification",
            "MessageId": "1",
            "TopicArn": "arn:aws:sns:::t",
            "Message": body,
            "MessageAttributes": {"ExtendedPayloadSize": {"Type": "Number", "Value": "2"}},
        }
        body, attributes = json.dumps(notification), {}

    async with MemoryBroker(serving(seen)) as broker:
        await broker.transport.send("mailer", [OutgoingMessage(body, len(body), attributes)])
        await broker.drain()

        [dead] = broker.dead_lettered()
        assert dead.kind == "payload-not-allowed"
        assert bucket in dead.reason
        assert "SMARTPIPE_CLAIM_CHECK_READ" in dead.reason
        assert broker.retried() == []
    assert seen == []


async def test_memory_of_another_name_is_elsewhere_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://payloads")
    await MemoryObjectStore().put(Payload("secrets", "x", encode(wrap(ADA, source="s"))))
    body = write_pointer("secrets", "x")

    async with MemoryBroker(serving([])) as broker:
        await broker.transport.send("mailer", [OutgoingMessage(body, len(body), POINTS)])
        await broker.drain()

        [dead] = broker.dead_lettered()
        assert (dead.kind, dead.event) == ("payload-not-allowed", None)


async def test_each_location_is_read_from_its_own_kind_of_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_READ", "memory://copies")
    await MemoryObjectStore().put(Payload("copies", "x", "found"))
    payloads = PayloadOffload()

    text, _ = await payloads.fetch(write_pointer("copies", "x"), POINTS)
    assert text == "found"
    await payloads.aclose()


async def test_the_owner_of_a_location_goes_along_with_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Payload] = []

    class Noting(MemoryObjectStore):
        async def get(self, payload: Payload, limit_bytes: int) -> str:
            asked.append(payload)
            return "{}"

    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: Noting())
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_READ", "s3://theirs/in?owner=222222222222")
    payloads = PayloadOffload()

    await payloads.fetch(write_pointer("payloads", "x"), POINTS)
    await payloads.fetch(write_pointer("theirs", "in/x"), POINTS)

    assert [one.owner for one in asked] == [None, "222222222222"]


@pytest.mark.parametrize(("bucket", "expected"), [("payloads", "222222222222"), ("elsewhere", None)])
async def test_what_the_outbox_wrote_is_put_into_a_bucket_of_the_configured_owner(
    bucket: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[Payload] = []

    class Noting(MemoryObjectStore):
        async def put(self, payload: Payload) -> None:
            put.append(payload)

    monkeypatch.setattr("smartpipe.payload_offload.open_object_store", lambda _: Noting())
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/folder?owner=222222222222")
    payloads = PayloadOffload()

    async def send(_: Sequence[OutgoingMessage]) -> list[Failure]:
        return []

    await payloads.send([OutgoingMessage("", 0, payload=Payload(bucket, "folder/x", "{}"))], send)

    assert [one.owner for one in put] == [expected]


def test_policies_allow_consumers_the_locations_that_they_may_read_and_publishers_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/folder")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_READ", f"s3://theirs?owner=222222222222, s3://{ACCESS_POINT}/in")
    service = serving([])
    publishing = Service("api", publishes=[UserSignedUp])
    companions = TableAndBucket.from_environment()

    read = {
        role: one["Resource"]
        for role, policy in build_policies(service, NAMING, companions).items()
        for one in policy["Statement"]
        if "s3:GetObject" in one["Action"]
    }
    [written] = [
        one["Resource"]
        for one in build_policies(publishing, NAMING, companions)["publish"]["Statement"]
        if "s3:PutObject" in one["Action"]
    ]

    expected = ["arn:aws:s3:::payloads/folder/*", "arn:aws:s3:::theirs/*", f"{ACCESS_POINT}/object/in/*"]
    assert read == {"consume": expected, "redrive": expected}
    assert written == ["arn:aws:s3:::payloads/folder/*"]


def test_a_bucket_of_another_account_is_not_part_of_the_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads?owner=222222222222")
    theirs = TableAndBucket.from_environment().derive_buckets(NAMING)
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", f"s3://payloads?owner={NAMING.account_id}")

    assert theirs == {}
    assert list(TableAndBucket.from_environment().derive_buckets(NAMING)) == ["arn:aws:s3:::payloads"]
