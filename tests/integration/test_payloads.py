"""Large bodies in S3: made by topology, written and read as AWS's own Extended Client Library does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import boto3
import pytest

from smartpipe import Publisher, PublishError, Queue, RetryPolicy, Service
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.envelope import encode, wrap
from smartpipe.names import Naming
from smartpipe.outbox import Outbox, Relay
from smartpipe.testing import planned, provision, working
from smartpipe.topology.export.iam import build_policies
from smartpipe.topology.table_and_bucket import TableAndBucket
from smartpipe.transports.open import open_aws_transport
from tests.support.events import UserLeft, UserSignedUp
from tests.support.topologies import destroy
from tests.support.waiting import until

if TYPE_CHECKING:
    from smartpipe import Event
    from tests.support.queues import Queues

pytestmark = pytest.mark.usefixtures("broker")

LARGE = UserLeft(name="é" * 200_000)


@pytest.fixture
def bucket(broker: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a bucket that is not there yet."""
    name = f"payloads-{uuid4().hex[:8]}"
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", f"s3://{name}/staging")
    return name


def serving(seen: list[Event], **options: Any) -> Service:
    service = Service("archive", **options)

    @service.subscribe(UserLeft)
    async def keep(event: UserLeft) -> None:
        seen.append(event)

    return service


def keys_in(bucket: str) -> list[str]:
    s3: Any = boto3.client("s3")
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def events_in(bucket: str) -> list[str]:
    """The keys without the digests of the bodies."""
    return [key.rpartition("/")[0] for key in keys_in(bucket)]


def rules_of(bucket: str) -> list[dict[str, Any]]:
    s3: Any = boto3.client("s3")
    found: list[dict[str, Any]] = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    return found


def extended_client(bucket: str) -> Any:
    """AWS's own, which keeps what it reads. Its package patches boto3 when it is imported: that is undone."""
    original, default = boto3.Session, boto3.DEFAULT_SESSION
    try:
        from sqs_extended_client.client import SQSExtendedClientSession
    finally:
        boto3.Session = boto3.session.Session = original  # type: ignore[misc]
        boto3.DEFAULT_SESSION = default
    session: Any = SQSExtendedClientSession
    sqs: Any = session().client("sqs")
    sqs.large_payload_support = bucket
    sqs.always_through_s3 = True
    sqs.delete_payload_from_s3 = False
    return sqs


async def test_a_bucket_is_made_with_an_expiry_and_its_drift_is_mended(bucket: str, queues: Queues) -> None:
    seen: list[Event] = []
    service = serving(seen)
    s3: Any = boto3.client("s3")

    made = await provision(service)
    async with Publisher("test") as publisher:
        event_id = await publisher.publish(LARGE)
    async with working(service):
        await until(lambda: seen)

    assert f"create bucket {bucket}" in made
    assert seen == [LARGE]
    assert events_in(bucket) == [f"staging/{event_id}"]
    assert queues.depth("archive") == (0, 0)
    assert await planned(service) == []

    theirs = {"ID": "theirs", "Filter": {"Prefix": "logs/"}, "Status": "Enabled", "Expiration": {"Days": 3}}
    ours = {**rules_of(bucket)[0], "Expiration": {"Days": 2}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [theirs, ours]})
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "team", "Value": "a"}]})
    drift = await planned(service)
    assert len(drift) == 1
    assert drift[0].startswith(f"update bucket {bucket} (Lifecycle.Days: 2 → 30")
    assert await provision(service) == drift
    assert {rule["ID"]: rule["Expiration"]["Days"] for rule in rules_of(bucket)} == {
        "theirs": 3,
        "smartpipe-claim-check-staging": 30,
    }
    assert {"Key": "team", "Value": "a"} in s3.get_bucket_tagging(Bucket=bucket)["TagSet"]

    assert f"external bucket {bucket} (environments may share it, and messages may point to it)" in await destroy(
        service
    )
    assert events_in(bucket) == [f"staging/{event_id}"]


OLD_FORM = [
    {"ID": "logs", "Prefix": "logs/", "Status": "Enabled", "Expiration": {"Days": 3}},
    {
        "ID": "archive",
        "Prefix": "",
        "Status": "Disabled",
        "Transitions": [{"Days": 40, "StorageClass": "GLACIER"}],
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    },
]
NEW_FORM = [
    {
        "ID": "sizes",
        "Filter": {
            "And": {
                "Prefix": "logs/",
                "Tags": [{"Key": "a", "Value": "b"}],
                "ObjectSizeGreaterThan": 5,
                "ObjectSizeLessThan": 500,
            }
        },
        "Status": "Enabled",
        "NoncurrentVersionExpiration": {"NoncurrentDays": 4, "NewerNoncurrentVersions": 2},
    },
    {"ID": "tags", "Filter": {"Tag": {"Key": "a", "Value": "b"}}, "Status": "Enabled", "Expiration": {"Days": 9}},
]


@pytest.mark.parametrize("theirs", [OLD_FORM, NEW_FORM], ids=["prefix at the top level", "filters"])
async def test_rules_of_others_in_a_bucket_stay_as_they_are(bucket: str, theirs: list[dict[str, Any]]) -> None:
    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": theirs})
    before = rules_of(bucket)

    await provision(serving([]))

    assert rules_of(bucket)[:-1] == before
    assert await planned(serving([])) == []


async def test_what_awss_own_client_offloads_is_handled(
    bucket: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_READ", f"s3://{bucket}")  # it writes no prefix before its keys
    seen: list[Event] = []
    service = serving(seen)
    await provision(service)

    body = encode(wrap(LARGE, source="java"))
    extended_client(bucket).send_message(QueueUrl=queues.url("archive"), MessageBody=body)
    async with working(service):
        await until(lambda: seen)

    assert seen == [LARGE]


async def test_awss_own_client_reads_what_is_offloaded_here(bucket: str, queues: Queues) -> None:
    await provision(serving([]))

    async with Publisher("test") as publisher:
        event_id = await publisher.publish(LARGE)
    answer = extended_client(bucket).receive_message(
        QueueUrl=queues.url("archive"), WaitTimeSeconds=5, MessageAttributeNames=["All"]
    )

    envelope = json.loads(answer["Messages"][0]["Body"])
    assert envelope["id"] == event_id
    assert envelope["data"] == {"name": LARGE.name}


async def test_fault_55_a_payload_that_is_gone_is_dead_lettered_with_that_reason(bucket: str, queues: Queues) -> None:
    seen: list[Event] = []
    service = serving(seen, queue=Queue("archive"), retry=RetryPolicy(attempts=2, base_seconds=0))
    await provision(service)

    async with Publisher("test") as publisher:
        event_id = await publisher.publish(LARGE)
    [key] = keys_in(bucket)
    boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    async with working(service) as worker:
        await until(lambda: queues.depth("archive-dlq") == (1, 0))
        [consumer] = worker.consumers
        assert consumer.counters.retried >= 1

    [dead] = queues.take("archive-dlq")
    reason = json.loads(dead["MessageAttributes"]["smartpipe_dead_letter"]["StringValue"])
    assert reason["kind"] == "payload-missing"
    assert f"s3://{bucket}/staging/{event_id}/" in reason["message"]
    assert "ExtendedPayloadSize" in dead["MessageAttributes"]
    assert seen == []


async def test_without_the_bucket_nothing_large_is_published_and_the_error_names_the_command(bucket: str) -> None:
    service = serving([])
    await provision(service)
    boto3.client("s3").delete_bucket(Bucket=bucket)

    async with Publisher("test") as publisher:
        with pytest.raises(PublishError, match="smartpipe topology apply") as caught:
            await publisher.publish_many([UserLeft(name="small"), LARGE])

    assert [failure.event for failure in caught.value.failures] == [LARGE]


def test_the_blocking_publisher_offloads_too(bucket: str) -> None:
    seen: list[Event] = []
    service = serving(seen)
    asyncio.run(provision(service))

    with BlockingPublisher("flask-app") as publisher:
        report = publisher.publish_many([LARGE, UserLeft(name="small")])
        boto3.client("s3").put_object(Bucket=bucket, Key="else", Body=b"")

    async def consume() -> None:
        async with working(service):
            await until(lambda: len(seen) == 2)

    asyncio.run(consume())
    assert LARGE in seen
    assert "else" in keys_in(bucket)
    assert events_in(bucket)[1:] == [f"staging/{report.event_ids[0]}"]


async def test_the_relay_puts_what_the_outbox_holds(bucket: str, postgres_url: str) -> None:
    seen: list[Event] = []
    service = serving(seen)
    await provision(service)
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("TRUNCATE smartpipe_outbox")

    async with connection.transaction():
        event_id = await Outbox("shop").publish(LARGE, connection=connection)
    assert keys_in(bucket) == []
    transport = open_aws_transport()
    relay = Relay(postgres_url, transport)
    left = await relay.drain()
    await relay.aclose()
    await transport.aclose()
    await connection.close()
    async with working(service):
        await until(lambda: seen)

    assert left == (0, 0, 0.0)
    assert seen == [LARGE]
    assert events_in(bucket) == [f"staging/{event_id}"]


def test_policies_allow_the_objects_of_the_prefix_and_no_others(bucket: str) -> None:
    found = build_policies(serving([]), Naming("aws", "eu-west-1", "123456789012"), TableAndBucket.from_environment())

    objects = f"arn:aws:s3:::{bucket}/staging/*"
    assert {"Sid": "GetPayloads", "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [objects]} in found[
        "consume"
    ]["Statement"]
    assert "publish" not in found

    service = Service("shop", publishes=[UserSignedUp])
    found = build_policies(service, Naming("aws", "eu-west-1", "123456789012"), TableAndBucket.from_environment())
    assert {"Sid": "PutPayloads", "Effect": "Allow", "Action": ["s3:PutObject"], "Resource": [objects]} in found[
        "publish"
    ]["Statement"]
