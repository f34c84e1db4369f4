"""What S3 says no to, and bodies without an end: what waits, what is dead-lettered, and whose bucket it is."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import Publisher, RetryPolicy, Service
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.envelope import encode, wrap
from smartpipe.envelope.pointer import write_pointer
from smartpipe.errors import PayloadError, TransportError
from smartpipe.message import Payload
from smartpipe.testing import provision, working
from smartpipe.transports.aws.s3 import S3ObjectStore
from tests.support.events import ADA, UserLeft, UserSignedUp
from tests.support.processes import smartpipe
from tests.support.s3 import S3Server
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe import EmbeddedBroker, Event
    from tests.support.queues import Queues

ACCOUNT = "111111111111"
PAYLOAD = Payload("payloads", "folder/x")
LARGE = UserLeft(name="é" * 200_000)
ACCESS_POINT = "arn:aws:s3:us-east-1:210987654321:accesspoint/partners"


@pytest.fixture
def s3(fast_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """S3 as the test says, beside a broker; the account is known."""
    with S3Server() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
        monkeypatch.setenv("SMARTPIPE_ACCOUNT_ID", ACCOUNT)
        yield server


async def got(payload: Payload = PAYLOAD, limit_bytes: int = 1_000_000) -> str:
    objects = S3ObjectStore()
    try:
        return await objects.get(payload, limit_bytes)
    finally:
        await objects.aclose()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "NoSuchKey"),
        (404, "NoSuchBucket"),
        (400, "InvalidBucketName"),
        (403, "AccessDenied"),
        (403, "InvalidObjectState"),
        (400, "InvalidArgument"),
        (400, "KeyTooLongError"),
        (405, "MethodNotAllowed"),
        (412, "PreconditionFailed"),
        (400, "KMS.DisabledException"),
        (400, "SomethingNew"),
    ],
)
async def test_what_s3_will_say_again_is_the_messages_failure(s3: S3Server, status: int, code: str) -> None:
    s3.status, s3.code = status, code

    with pytest.raises(PayloadError) as caught:
        await got()

    assert caught.value.kind == "payload-missing"
    assert "s3://payloads/folder/x cannot be read" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (400, "RequestTimeout"),
        (429, "TooManyRequestsException"),
        (400, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (400, "InvalidToken"),
        (403, "AccountProblem"),
    ],
)
async def test_what_would_hit_every_object_is_an_outage(s3: S3Server, status: int, code: str) -> None:
    s3.status, s3.code = status, code

    with pytest.raises(TransportError):
        await got()


@pytest.mark.parametrize(
    "bucket", ["Not_A_Bucket!", "a", "arn:aws:s3:nowhere", "arn:aws:sqs:us-east-1:1:accesspoint/x"]
)
async def test_a_bucket_that_cannot_be_called_so_is_the_messages_failure(s3: S3Server, bucket: str) -> None:
    s3.status, s3.code = 400, "InvalidBucketName"

    with pytest.raises(PayloadError):
        await got(Payload(bucket, "x"))


async def test_a_refusal_says_whose_bucket_it_has_to_be(s3: S3Server) -> None:
    s3.status, s3.code = 403, "AccessDenied"

    with pytest.raises(PayloadError, match=f"must belong to account {ACCOUNT}"):
        await got()
    with pytest.raises(PayloadError, match="must belong to account 222222222222"):
        await got(PAYLOAD._replace(owner="222222222222"))


async def test_a_body_without_a_length_is_read_no_further_than_the_limit(s3: S3Server) -> None:
    s3.endless = True

    with pytest.raises(PayloadError, match="longer than 1,000,000 bytes"):
        await got()

    assert s3.sent_bytes < 50_000_000  # what sockets and the client have room for


@pytest.mark.parametrize("size", [0, 1, 65_536, 300_000, 1_000_000])
async def test_a_body_up_to_the_limit_is_read_whole(s3: S3Server, size: int) -> None:
    s3.body = b"x" * size

    assert await got() == "x" * size


async def test_a_body_of_one_byte_more_is_not(s3: S3Server) -> None:
    s3.body = b"x" * 1_000_001

    with pytest.raises(PayloadError, match="longer than"):
        await got()


def _owners(s3: S3Server) -> set[str | None]:
    assert s3.requests
    return {request.headers.get("x-amz-expected-bucket-owner") for request in s3.requests}


@pytest.mark.parametrize(
    ("variables", "query", "expected"),
    [
        ({"SMARTPIPE_ACCOUNT_ID": ACCOUNT}, "", ACCOUNT),
        ({"SMARTPIPE_ACCOUNT_ID": ACCOUNT}, "?owner=222222222222", "222222222222"),
        ({"SMARTPIPE_ACCOUNT_ID": "", "AWS_ACCOUNT_ID": "333333333333"}, "", "333333333333"),
        ({"SMARTPIPE_ACCOUNT_ID": ""}, "", "000000000000"),  # STS of the broker
    ],
)
async def test_every_call_names_the_account_that_the_bucket_has_to_belong_to(
    s3: S3Server, variables: dict[str, str], query: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", f"s3://payloads/folder{query}")
    monkeypatch.delenv("SMARTPIPE_ACCOUNT_ID") if not variables["SMARTPIPE_ACCOUNT_ID"] else None
    owner = query.partition("=")[2] or None
    objects = S3ObjectStore()

    await objects.put(PAYLOAD._replace(text="{}", owner=owner))
    await objects.get(PAYLOAD._replace(owner=owner), 1_000)
    await objects.aclose()

    assert _owners(s3) == {expected}


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(("query", "expected"), [("", "000000000000"), ("?owner=222222222222", "222222222222")])
async def test_publishers_name_the_account_too(
    s3: S3Server, blocking: bool, query: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_ACCOUNT_ID")
    await provision(Service("api", publishes=[UserLeft]))
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", f"s3://payloads/folder{query}")

    if blocking:

        def publish() -> None:
            with BlockingPublisher("test") as publisher:
                publisher.publish(LARGE)

        await asyncio.to_thread(publish)
    else:
        async with Publisher("test") as publisher:
            await publisher.publish(LARGE)

    assert _owners(s3) == {expected}


async def test_topology_names_the_account_in_every_call(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMARTPIPE_ACCOUNT_ID")
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/folder")
    s3.body = b"<Bucket/>"

    made = await provision(Service("api", publishes=[UserLeft]))

    assert made[-1].startswith("update bucket payloads")
    assert {one.method for one in s3.requests} == {"GET", "PUT"}
    assert _owners(s3) == {"000000000000"}


def serving(seen: list[Event]) -> Service:
    service = Service("archive", retry=RetryPolicy(attempts=2, base_seconds=0))

    @service.subscribe(UserSignedUp)
    async def keep(event: UserSignedUp) -> None:
        seen.append(event)

    return service


def _send_pointer(queues: Queues, body: str) -> None:
    attributes: Any = {"ExtendedPayloadSize": {"DataType": "Number", "StringValue": "2"}}
    boto3.client("sqs").send_message(QueueUrl=queues.url("archive"), MessageBody=body, MessageAttributes=attributes)


def _reason(queues: Queues) -> dict[str, Any]:
    [dead] = queues.take("archive-dlq")
    found: dict[str, Any] = json.loads(dead["MessageAttributes"]["smartpipe_dead_letter"]["StringValue"])
    return found


async def test_a_permanent_refusal_is_dead_lettered_by_the_retry_policy_with_its_reason(
    s3: S3Server, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_ACCOUNT_ID")
    service = serving([])
    await provision(service)
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://payloads/folder")
    s3.status, s3.code = 400, "InvalidBucketName"
    _send_pointer(queues, write_pointer("payloads", "folder/x"))

    async with working(service) as worker:
        await until(lambda: queues.depth("archive-dlq") == (1, 0))
        [consumer] = worker.consumers
        assert (consumer.counters.retried, consumer.counters.deferred) == (1, 0)

    reason = _reason(queues)
    assert reason["kind"] == "payload-missing"
    assert "as the test says" in reason["message"]


async def test_a_worker_sends_no_request_for_a_pointer_elsewhere_and_commands_do_not_either(
    s3: S3Server, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMARTPIPE_ACCOUNT_ID")
    service = serving([])
    await provision(service)
    s3.body = encode(wrap(ADA, source="evil")).encode()
    _send_pointer(queues, write_pointer(ACCESS_POINT, "x"))

    async with working(service):
        await until(lambda: queues.depth("archive-dlq") == (1, 0))
    shown = smartpipe("dlq", "peek", "tests.integration.test_s3_faults:SHOWN", "--json")

    assert "payload-not-allowed" in shown.stdout
    assert ACCESS_POINT in shown.stdout
    assert s3.requests == []


SHOWN = serving([])
