"""One event, all the way, on every broker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smartpipe import (
    Delivery,
    EmbeddedBroker,
    Event,
    Publisher,
    PublishError,
    Queue,
    Reject,
    RetryPolicy,
    Service,
    Topic,
)
from smartpipe.blocking import Publisher as BlockingPublisher
from smartpipe.envelope import encode, wrap
from smartpipe.message import OutgoingMessage
from smartpipe.testing import provision, working
from smartpipe.transports.open import open_aws_transport
from tests.support.events import ADA, Note, OrderPlaced, UserLeft, UserSignedUp
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.queues import Queues

rooms = Topic("rooms")

pytestmark = pytest.mark.usefixtures("broker")


def recording(name: str, *events: type) -> tuple[Service, list[tuple[object, Delivery]]]:
    service = Service(name, queue=Queue(name, visibility_timeout_seconds=20))
    seen: list[tuple[object, Delivery]] = []
    for event in events:

        async def handle(event: object, delivery: Delivery) -> None:
            seen.append((event, delivery))

        service.subscribe(event)(handle)
    return service, seen


def event_ids(seen: list[tuple[object, Delivery]]) -> set[str]:
    """What arrived, however often: brokers may deliver twice, and moto's threads do."""
    return {delivery.event_id for _, delivery in seen}


async def test_an_event_reaches_every_service_that_wants_it_and_no_other(queues: Queues) -> None:
    mailer, mailed = recording("mailer", UserSignedUp)
    friends, found = recording("friends", UserSignedUp, UserLeft)
    await provision(mailer, friends)

    async with Publisher("test") as publisher:
        ids = [await publisher.publish(ADA), await publisher.publish(UserLeft(name="Bob"))]
    async with working(mailer), working(friends):
        await until(lambda: event_ids(mailed) == set(ids[:1]) and event_ids(found) == set(ids))

    assert mailed[0][0] == ADA
    assert queues.depth("mailer") == queues.depth("friends") == (0, 0)
    assert queues.depth("mailer-dlq") == (0, 0)


class RoomBookedV1(Event, topic=rooms, type="pipe.room.booked", version="1.0"):
    guest: str


class RoomBooked(Event, topic=rooms, type="pipe.room.booked", version="2.0"):
    guests: tuple[str, ...]


@RoomBooked.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {"guests": [data["guest"]]}


async def test_an_event_of_an_older_version_passes_the_filter_and_is_upcast(queues: Queues) -> None:
    service, seen = recording("hotel", RoomBooked)
    await provision(service)

    async with Publisher("test") as publisher:
        ids = [await publisher.publish(RoomBookedV1(guest="Ada")), await publisher.publish(RoomBooked(guests=("Ada",)))]
    body = json.dumps({**json.loads(encode(wrap(RoomBookedV1(guest="x"), source="s"))), "data": {}})
    queues.send("hotel", body)
    async with working(service):
        await until(lambda: event_ids(seen) == set(ids) and queues.depth("hotel") == (0, 0))

    assert {event for event, _ in seen} == {RoomBooked(guests=("Ada",))}
    assert {delivery.version for _, delivery in seen} == {"1.0", "2.0"}
    [reason] = queues.dead_letter_reasons("hotel")
    assert reason["kind"] == "upcast-failed"
    assert "the upcaster from version 1 to 2" in reason["message"]


async def test_provisioning_twice_changes_nothing(queues: Queues) -> None:
    service, _ = recording("mailer", UserSignedUp, OrderPlaced)

    first, second = await provision(service), await provision(service)

    assert len(first) == 6
    assert second == []


async def test_provisioning_brings_a_changed_queue_back_into_line(queues: Queues) -> None:
    service, _ = recording("mailer", UserSignedUp)
    await provision(service)
    boto3.client("sqs").set_queue_attributes(
        QueueUrl=queues.url("mailer"), Attributes={"VisibilityTimeout": "7", "DelaySeconds": "3"}
    )

    [change] = await provision(service)

    assert "VisibilityTimeout: 7 → 20" in change
    assert await provision(service) == []


async def test_provisioning_narrows_and_widens_a_filter_with_its_handlers() -> None:
    before, _ = recording("mailer", UserSignedUp)
    after, seen = recording("mailer", UserSignedUp, UserLeft)
    await provision(before)

    [change] = await provision(after)

    assert change.endswith("(FilterPolicy.type: + user.left)")
    async with Publisher("test") as publisher:
        await publisher.publish(UserLeft(name="Bob"))
    async with working(after):
        await until(lambda: seen)


async def test_publish_many_over_several_topics_arrives_whole() -> None:
    service, seen = recording("mailer", UserSignedUp, OrderPlaced)
    await provision(service)
    events = [ADA, *(OrderPlaced(order_id=str(number)) for number in range(34))]

    async with Publisher("test") as publisher:
        report = await publisher.publish_many(events)
    async with working(service, concurrency=40):
        await until(lambda: event_ids(seen) == set(report.event_ids))

    assert len(report.event_ids) == 35


def test_the_blocking_publisher_speaks_the_same_language() -> None:
    service, seen = recording("mailer", UserSignedUp)
    asyncio.run(provision(service))

    with BlockingPublisher("flask-app") as publisher:
        event_id = publisher.publish(ADA)
        report = publisher.publish_many([ADA] * 12)

    async def consume() -> None:
        async with working(service, concurrency=20):
            await until(lambda: event_ids(seen) == {event_id, *report.event_ids})

    asyncio.run(consume())
    assert {delivery.source for _, delivery in seen} == {"flask-app"}


async def test_a_missing_topic_is_an_error_that_names_the_command() -> None:
    async with Publisher("test") as publisher:
        with pytest.raises(PublishError, match="smartpipe topology apply") as caught:
            await publisher.publish(ADA)

    assert caught.value.failures[0].event is ADA


def test_a_missing_topic_is_the_same_error_in_blocking_code() -> None:
    with BlockingPublisher("test") as publisher, pytest.raises(PublishError, match="smartpipe topology apply"):
        publisher.publish(ADA)


async def test_a_failing_handler_is_retried_by_the_queue_and_then_dead_lettered(queues: Queues) -> None:
    service = Service("mailer", retry=RetryPolicy(attempts=3, base_seconds=0))
    counts: list[int] = []

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp, delivery: Delivery) -> None:
        counts.append(delivery.receive_count)
        raise ValueError(f"failure {len(counts)}")

    await provision(service)
    async with Publisher("test") as publisher:
        event_id = await publisher.publish(ADA)
    async with working(service) as worker:
        await until(lambda: worker.consumers and worker.consumers[0].counters.dead_lettered == 1)

    [reason] = queues.dead_letter_reasons("mailer")
    assert counts == [1, 2, 3]
    assert (reason["kind"], reason["message"], reason["event_id"]) == ("retries-exhausted", "failure 3", event_id)
    assert queues.depth("mailer") == (0, 0)


async def test_a_dead_letter_keeps_body_and_attributes(queues: Queues) -> None:
    service = Service("mailer")

    @service.subscribe(UserSignedUp)
    async def handle(_: UserSignedUp) -> None:
        raise Reject("no")

    await provision(service)
    async with Publisher("test") as publisher:
        event_id = await publisher.publish(ADA, attributes={"tenant": "acme"})
    async with working(service) as worker:
        await until(lambda: worker.consumers and worker.consumers[0].counters.dead_lettered == 1)

    [letter] = queues.take("mailer-dlq")
    assert json.loads(letter["Body"])["id"] == event_id
    attributes = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert attributes["type"] == "member.signed_up"
    assert attributes["tenant"] == "acme"
    assert json.loads(attributes["smartpipe_dead_letter"])["kind"] == "rejected"


async def test_fault_11_every_kind_of_bad_body_is_dead_lettered_beside_good_ones(queues: Queues) -> None:
    service, seen = recording("mailer", UserSignedUp)
    await provision(service)
    good = json.loads(encode(wrap(ADA, source="test")))
    queues.send(
        "mailer",
        "I am no event",
        '{"name": "Ada"}',
        json.dumps(good | {"type": "user.deleted"}),
        json.dumps(good | {"dataversion": "2.0"}),
        json.dumps(good | {"data": {"user_id": 5}}),
        json.dumps(good),
    )

    async with working(service) as worker:
        await until(lambda: seen and worker.consumers[0].counters.dead_lettered == 5)

    reasons = {reason["kind"]: reason for reason in queues.dead_letter_reasons("mailer")}
    assert set(reasons) == {"not-json", "not-cloudevent", "unknown-event-type", "invalid-data"}
    assert {tuple(fault["loc"]) for fault in reasons["invalid-data"]["errors"]} == {
        ("data", "user_id"),
        ("data", "name"),
    }
    assert event_ids(seen) == {good["id"]}
    assert queues.depth("mailer") == (0, 0)


async def test_fault_28_raw_wrapped_and_direct_messages_on_one_queue_all_decode(
    queues: Queues, broker: EmbeddedBroker
) -> None:
    service, seen = recording("mailer", UserSignedUp)
    await provision(service)
    envelopes = [wrap(ADA, source=source) for source in ("raw", "wrapped", "direct")]
    sns = boto3.client("sns")
    transport = open_aws_transport()
    naming = await transport.session.addresses.naming()
    await transport.aclose()
    plain = sns.create_topic(Name=naming.physical_name("plain"))["TopicArn"]
    sns.subscribe(TopicArn=plain, Protocol="sqs", Endpoint=naming.queue_arn("mailer"))
    attribute: Any = {"type": {"DataType": "String", "StringValue": "member.signed_up"}}
    sns.publish(TopicArn=naming.topic_arn("users"), Message=encode(envelopes[0]), MessageAttributes=attribute)
    sns.publish(TopicArn=plain, Message=encode(envelopes[1]))
    queues.send("mailer", encode(envelopes[2]))

    async with working(service):
        await until(lambda: len(event_ids(seen)) == 3)

    found = {delivery.source: delivery.envelope for _, delivery in seen}
    assert found == {envelope.source: envelope for envelope in envelopes}


async def test_fault_04_one_entry_with_bad_characters_fails_alone(broker: EmbeddedBroker) -> None:
    if broker.backend == "moto":
        pytest.skip("moto accepts every character: no entry fails")
    service, _ = recording("mailer", UserSignedUp)
    await provision(service)
    transport = open_aws_transport()

    failures = await transport.send("mailer", [OutgoingMessage(body, 4) for body in ("good", "b\x00d", "fine")])
    await transport.aclose()

    assert [(failure.position, failure.retryable) for failure in failures] == [(1, False)]


async def test_fault_14_deleting_what_is_deleted_already_is_no_failure(queues: Queues) -> None:
    service, _ = recording("mailer", UserSignedUp)
    await provision(service)
    queues.send("mailer", "one", "two")
    transport = open_aws_transport()
    messages = await transport.receive("mailer", max_messages=10, wait_seconds=1, visibility_timeout_seconds=30)
    receipts = [message.receipt_handle for message in messages]

    first = await transport.delete("mailer", receipts[:1])
    again = await transport.delete("mailer", receipts)
    await transport.aclose()

    assert (first, again) == ([], [])
    assert queues.depth("mailer") == (0, 0)


async def test_fault_40_awkward_text_arrives_as_it_was_sent() -> None:
    service, seen = recording("mailer", Note)
    await provision(service)
    text = "NUL \x00, tab \t, noncharacters \ufffe\uffff, emoji 🎉, separators \u2028, quotes \"'\\"

    async with Publisher("test") as publisher:
        await publisher.publish(Note(text=text))
    async with working(service):
        await until(lambda: seen)

    assert seen[0][0] == Note(text=text)
