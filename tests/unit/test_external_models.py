"""The ready-made models of S3 and EventBridge."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from smartpipe import Delivery, Idempotency, Service
from smartpipe.external import EventBridgeEvent, RawMessage, S3EventBridgeEvent, S3Notification, field
from smartpipe.testing import MemoryBroker

TEST_EVENT = {
    "Service": "Amazon S3",
    "Event": "s3:TestEvent",
    "Time": "2014-10-13T15:57:02.089Z",
    "Bucket": "photos",
    "RequestId": "5582815E1AEA5ADF",
    "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE",
}


def notification(key: str = "my+photo%2B1.jpg", **changes: Any) -> dict[str, Any]:
    """The example of the S3 User Guide, "Event message structure", with another key."""
    stored = {"key": key, "size": 1024, "eTag": "d41d", "versionId": "v1", "sequencer": "0055AED6DCD90281E5", **changes}
    return {
        "Records": [
            {
                "eventVersion": "2.3",
                "eventSource": "aws:s3",
                "awsRegion": "us-west-2",
                "eventTime": "1970-01-01T00:00:00.000Z",
                "eventName": "ObjectCreated:Put",
                "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
                "requestParameters": {"sourceIPAddress": "127.0.0.1"},
                "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810", "x-amz-id-2": "FMyUVURIY8"},
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "configurationId": "testConfigRule",
                    "bucket": {
                        "name": "photos",
                        "ownerIdentity": {"principalId": "A3NL1KOZZKExample"},
                        "arn": "arn:aws:s3:::photos",
                    },
                    "object": {name: value for name, value in stored.items() if value is not None},
                },
            }
        ]
    }


def by_eventbridge(**changes: Any) -> dict[str, Any]:
    """The example of the S3 User Guide, "EventBridge event message structure", with another key."""
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": "Object Created",
        "source": "aws.s3",
        "account": "111122223333",
        "time": "2021-11-12T00:00:00Z",
        "region": "ca-central-1",
        "resources": ["arn:aws:s3:::photos"],
        "detail": {
            "version": "0",
            "bucket": {"name": "photos"},
            "object": {
                "key": "my+photo 1.jpg",
                "size": 5,
                "etag": "b1946",
                "version-id": "IYV3",
                "sequencer": "00617F",
            },
            "request-id": "N4N7GDK58NMKJ12R",
            "requester": "123456789012",
            "source-ip-address": "1.2.3.4",
            "reason": "PutObject",
        },
        **changes,
    }


def in_sns(body: Any) -> str:
    return json.dumps({"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": json.dumps(body)})


def uploads() -> tuple[Service, list[Any]]:
    service, seen = Service("uploads"), list[Any]()

    @service.subscribe_raw(S3Notification)
    async def take(notification: S3Notification, delivery: Delivery) -> None:
        seen.extend((record.event_name, record.bucket, record.key) for record in notification.records)

    return service, seen


@pytest.mark.parametrize("wrap", [json.dumps, in_sns])
async def test_a_notification_of_s3_is_read_directly_and_through_sns_and_its_keys_are_decoded(wrap: Any) -> None:
    service, seen = uploads()

    async with MemoryBroker(service) as broker:
        await broker.send("uploads", wrap(notification()))
        await broker.send("uploads", wrap(notification("z%C3%BCrich/%25.txt")))
        await broker.drain()

    assert seen == [
        ("ObjectCreated:Put", "photos", "my photo+1.jpg"),
        ("ObjectCreated:Put", "photos", "zürich/%.txt"),
    ]


@pytest.mark.parametrize("wrap", [json.dumps, in_sns])
async def test_the_test_event_of_s3_is_deleted_without_an_alarm(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    service, seen = uploads()

    with caplog.at_level(logging.DEBUG, "smartpipe.consumer"):
        async with MemoryBroker(service) as broker:
            await broker.send("uploads", wrap(TEST_EVENT))
            await broker.drain()
            depth = broker.transport.queue("uploads").depth

    assert (seen, broker.dead_lettered(), sum(depth)) == ([], [], 0)
    assert [(one.levelname, one.message) for one in caplog.records] == [("DEBUG", "Ignored")]


async def test_the_test_event_is_deleted_even_if_a_matcher_would_not_select_it_and_a_later_handler_would() -> None:
    service, seen = Service("uploads"), list[Any]()
    service.subscribe_raw(S3Notification, match=lambda _: False)(seen.append)
    service.subscribe_raw(dict)(seen.append)

    async with MemoryBroker(service) as broker:
        await broker.send("uploads", TEST_EVENT)
        await broker.drain()

    assert (seen, broker.dead_lettered()) == ([], [])


async def test_a_queue_without_a_handler_for_s3_does_not_ignore_its_test_event() -> None:
    service, seen = Service("uploads"), list[Any]()
    service.subscribe_raw(EventBridgeEvent[dict])(seen.append)  # type: ignore[type-arg]

    async with MemoryBroker(service) as broker:
        await broker.send("uploads", TEST_EVENT)
        await broker.drain()

    assert [one.kind for one in broker.dead_lettered()] == ["unknown-event-type"]


async def test_copies_of_a_notification_are_claimed_once_and_later_versions_of_the_object_again() -> None:
    service, seen = Service("uploads"), list[str]()

    @service.subscribe_raw(S3Notification, idempotent=Idempotency())
    async def take(notification: S3Notification) -> None:
        seen.append(str(notification.records[0].s3.object.sequencer))

    async with MemoryBroker(service) as broker:
        for sequencer in ("A1", "A1", "A2"):
            await broker.send("uploads", notification(sequencer=sequencer))
            await broker.drain()

    assert seen == ["A1", "A2"]


def test_the_context_of_a_notification_has_no_id_without_a_sequencer() -> None:
    known = S3Notification.model_validate(notification()).get_context()
    unknown = S3Notification.model_validate(notification(sequencer=None)).get_context()

    assert (known.source, known.time) == ("aws:s3", datetime(1970, 1, 1, tzinfo=UTC))
    assert (known.id or "").startswith("s3-")
    assert unknown.id is None
    assert S3Notification.model_validate({"Records": []}).get_context().id is None


class OrderDetail(BaseModel):
    order: str
    cents: int


async def test_events_of_eventbridge_are_typed_by_their_detail() -> None:
    service, seen = Service("bus"), list[Any]()

    @service.subscribe_raw(S3EventBridgeEvent, match=field("detail-type", "Object Created"))
    async def stored(event: S3EventBridgeEvent, delivery: Delivery) -> None:
        seen.append((event.detail.bucket.name, event.detail.object.key, event.detail.object.version_id))

    @service.subscribe_raw(EventBridgeEvent[OrderDetail], match=field("source", "shop"))
    async def placed(event: EventBridgeEvent[OrderDetail], delivery: Delivery) -> None:
        seen.append((event.detail, event.detail_type, delivery.event_id, delivery.source, delivery.time))

    @service.subscribe_raw(EventBridgeEvent[dict[str, Any]])
    async def other(event: EventBridgeEvent[dict[str, Any]]) -> None:
        seen.append((event.source, event.account, event.region, event.resources, event.detail))

    order = by_eventbridge(**{"source": "shop", "detail-type": "Placed", "detail": {"order": "o-1", "cents": 5}})
    async with MemoryBroker(service) as broker:
        await broker.send("bus", by_eventbridge())
        await broker.send("bus", in_sns(order))
        await broker.send("bus", by_eventbridge(source="aws.ec2", detail={"state": "stopped"}))
        await broker.send("bus", by_eventbridge(source="shop", detail={"order": "o-1"}))
        await broker.drain()

    assert seen == [
        ("photos", "my+photo 1.jpg", "IYV3"),
        (
            OrderDetail(order="o-1", cents=5),
            "Placed",
            "17793124-05d4-b198-2fde-7ededc63b103",
            "shop",
            datetime(2021, 11, 12, tzinfo=UTC),
        ),
        ("aws.ec2", "111122223333", "ca-central-1", ("arn:aws:s3:::photos",), {"state": "stopped"}),
    ]
    [dead] = broker.dead_lettered()
    assert (dead.kind, "does not fit EventBridgeEvent[OrderDetail]: detail.cents" in dead.reason) == (
        "invalid-data",
        True,
    )


@pytest.mark.parametrize("body", ["[]", "5", '{"Records": 5}', '{"Records": [5]}', '{"Records": []}', "no JSON"])
def test_the_matchers_of_the_models_select_no_other_body(body: str) -> None:
    raw = RawMessage(body, {})

    for model in (S3Notification, S3EventBridgeEvent, EventBridgeEvent):
        matcher = model.get_matcher()
        assert matcher is not None
        assert not matcher(raw)
        assert not model.is_test(raw)
