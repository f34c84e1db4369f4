"""Events of an older major version, on every path from a queue to a handler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Batch, BatchDelivery, Delivery, Event, Idempotency, Reject, Service, Topic
from smartpipe.consumer.dead_letter import REASON_ATTRIBUTE
from smartpipe.dlq.messages import read_message
from smartpipe.dlq.processed import ProcessedEvents
from smartpipe.envelope.compression import ENCODING_ATTRIBUTE, compress
from smartpipe.envelope.decode import MessageReader
from smartpipe.envelope.object_store import put_in_memory
from smartpipe.envelope.pointer import SIZE_ATTRIBUTE, write_pointer
from smartpipe.idempotency.claims import Claims
from smartpipe.idempotency.store import Claim
from smartpipe.idempotency.stores.memory import MemoryStore
from smartpipe.message import Attribute, Message, Payload
from smartpipe.payload_offload import PayloadOffload
from smartpipe.testing import MemoryBroker, virtual_time
from smartpipe.transports.open import use_transport
from tests.support.consumers import consuming
from tests.support.fakes import FakeTransport
from tests.support.waiting import until
from tests.unit.test_lambda import Context, failed, record

if TYPE_CHECKING:
    from smartpipe import DeliveryFailure

rooms = Topic("rooms")


class RoomBookedV1(Event, topic=rooms, type="room.booked", version="1.3"):
    """The class of old producers, which consumers do not subscribe to."""

    booking: str
    guest: str
    notes: tuple[dict[str, Any], ...] = ()


class RoomBooked(Event, topic=rooms, type="room.booked", version="2.0"):
    booking: str
    guests: tuple[str, ...]
    notes: tuple[dict[str, Any], ...] = ()


@RoomBooked.upcast(from_version="1")
def _(data: dict[str, Any]) -> dict[str, Any]:
    if data["guest"] == "memory":
        raise MemoryError
    return {**data, "guests": [data["guest"]]}


OLD = RoomBookedV1(booking="b1", guest="Ada")
NEW = RoomBooked(booking="b1", guests=("Ada",))


def booking(event_id: str = "77", version: str = "1.0", **data: Any) -> str:
    context = {"specversion": "1.0", "type": "room.booked", "source": "hotel", "id": event_id, "dataversion": version}
    return json.dumps({**context, "data": {"booking": "b1", "guest": "Ada", **data}})


def hotel(*, idempotent: bool | Idempotency = False) -> tuple[Service, list[tuple[RoomBooked, str]]]:
    service, seen = Service("hotel"), list[tuple[RoomBooked, str]]()

    @service.subscribe(RoomBooked, idempotent=idempotent)
    async def book(event: RoomBooked, delivery: Delivery) -> None:
        seen.append((event, delivery.version))
        if event.booking == "rejected":
            raise Reject("no room")

    return service, seen


@pytest.mark.parametrize("notes", [0, 3_000])
@pytest.mark.parametrize("form", ["plain", "wrapped", "compressed", "in S3"])
async def test_a_body_in_any_form_and_size_is_upcast(monkeypatch: pytest.MonkeyPatch, form: str, notes: int) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "memory://upcast")
    body, attributes = booking(notes=[{"a": [1]}] * notes), dict[str, Attribute]()
    if form == "wrapped":
        body = json.dumps({"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:::x", "Message": body})
    elif form == "compressed":
        body, attributes = compress(body, "gzip"), {ENCODING_ATTRIBUTE: Attribute("String", "gzip")}
    elif form == "in S3":
        put_in_memory(Payload("upcast", "key", body))
        size = Attribute("Number", str(len(body)))
        body, attributes = write_pointer("upcast", "key"), {SIZE_ATTRIBUTE: size}

    found = await MessageReader([RoomBooked], PayloadOffload()).read(Message("1", "r", body, attributes=attributes))

    assert found.data == RoomBooked(booking="b1", guests=("Ada",), notes=({"a": [1]},) * notes)
    assert found.version == "1.0"


async def test_a_published_event_of_the_older_version_reaches_the_handler_of_the_newer() -> None:
    service, seen = hotel()

    async with MemoryBroker(service) as broker:
        await broker.publish(OLD)
        await broker.publish(NEW)
        await broker.drain()

        assert sorted(seen, key=str) == sorted([(NEW, "1.3"), (NEW, "2.0")], key=str)
        assert broker.handled(RoomBooked) == [NEW, NEW]
        assert broker.published(RoomBookedV1) == [OLD]
        broker.assert_nothing_dead_lettered()


async def test_both_classes_side_by_side_each_get_their_version() -> None:
    service, seen = hotel()
    old: list[RoomBookedV1] = []

    @service.subscribe(RoomBookedV1)
    async def book_old(event: RoomBookedV1) -> None:
        old.append(event)

    async with MemoryBroker(service) as broker:
        await broker.publish(OLD)
        await broker.publish(NEW)
        await broker.drain()

    assert (old, seen) == ([OLD], [(NEW, "2.0")])


async def test_a_failed_upcast_is_dead_lettered_without_a_retry_and_reported_once() -> None:
    service, seen = hotel()
    failures: list[DeliveryFailure] = []
    service.on_failure(failures.append)

    async with MemoryBroker(service) as broker:
        await broker.send("hotel", json.dumps(json.loads(booking()) | {"data": {}}))
        await broker.send("hotel", booking(booking=5))
        await broker.drain()

        assert sorted(dead.kind for dead in broker.dead_lettered()) == ["invalid-data", "upcast-failed"]
        assert broker.retried() == []
    assert seen == []
    assert sorted(failure.kind or "" for failure in failures) == ["invalid-data", "upcast-failed"]


async def test_a_handler_that_fails_is_dead_lettered_with_the_body_that_was_sent() -> None:
    service, _ = hotel()

    async with MemoryBroker(service) as broker:
        await broker.send("hotel", booking(booking="rejected"))
        await broker.drain()

        dead = broker.assert_dead_lettered(RoomBooked, kind="rejected", booking="rejected")
        assert dead.body == booking(booking="rejected")


async def test_a_batch_handler_gets_both_versions_in_one_batch() -> None:
    service, batches = Service("hotel"), list[tuple[list[RoomBooked], list[str]]]()

    @service.subscribe(RoomBooked, batch=Batch(size=2, linger_seconds=60))
    async def book(events: list[RoomBooked], batch: BatchDelivery) -> None:
        batches.append((events, [delivery.version for delivery in batch.deliveries]))

    async with MemoryBroker(service) as broker:
        await broker.publish(OLD)
        await broker.publish(NEW)
        await broker.drain()

    [(events, versions)] = batches
    assert events == [NEW, NEW]
    assert sorted(versions) == ["1.3", "2.0"]


async def test_an_event_that_is_published_in_both_versions_is_handled_once_by_its_key() -> None:
    service, seen = hotel(idempotent=Idempotency(key="booking"))

    async with MemoryBroker(service) as broker:
        await broker.publish(OLD)
        await broker.publish(NEW)
        await broker.drain()

    assert len(seen) == 1


async def test_a_claim_by_id_is_the_same_for_an_upcast_event_as_before_it_was_upcast() -> None:
    upcast = await MessageReader([RoomBooked], PayloadOffload()).read(Message("1", "r", booking()))
    original = await MessageReader([RoomBookedV1], PayloadOffload()).read(Message("1", "r", booking()))
    name = hotel(idempotent=True)[0].handlers[0].full_name("")

    assert Idempotency().key_of(name, upcast) == Idempotency().key_of(name, original)


async def test_a_lambda_function_upcasts() -> None:
    service, seen = hotel()
    transport = FakeTransport()

    with use_transport(transport):
        handler = service.lambda_handler()
        with virtual_time():
            records = [record(booking(), queue="hotel"), record(booking(guest=[]) + " ", 2, queue="hotel")]
            response = await handler.handle({"Records": records}, Context(60_000))
            await handler.aclose()

    assert failed(response) == []
    assert seen == [(NEW, "1.0")]
    [copy] = transport.entries("send")
    assert json.loads(copy.attributes[REASON_ATTRIBUTE].value)["kind"] == "invalid-data"


async def test_an_upcaster_that_runs_out_of_memory_defers_the_message() -> None:
    service, seen = hotel()
    transport = FakeTransport()
    transport.put(booking(guest="memory"))

    async with consuming(service, transport, poll_seconds=1) as consumer:
        await until(lambda: consumer.counters.deferred == 1)

    assert seen == []
    assert transport.entries("send") == transport.entries("delete") == []


async def test_a_redrive_finds_the_upcast_events_that_were_handled_before() -> None:
    service, store = hotel(idempotent=Idempotency(key="booking"))[0], MemoryStore()
    idempotency = service.handlers[0].options.idempotency
    assert idempotency is not None
    current = await MessageReader([RoomBooked], PayloadOffload()).read(Message("1", "r", booking()))
    claim = Claim(idempotency.key_of(service.handlers[0].full_name(""), current), "token", 600, 600)
    await store.claim([claim])
    await store.complete([claim])
    processed = ProcessedEvents(service.handlers, Claims(store))
    dead = [read_message(Message("1", "r", body)) for body in (booking(), booking(booking="b2"), booking(guest=[]))]

    found = await processed.look_up([*dead, read_message(Message("1", "r", booking().replace('"guest"', '"g"')))])
    await processed.aclose()

    assert [one.by_all_handlers for one in found] == [True, False, False, False]
    assert [one.handlers for one in found] == [1, 1, 0, 0]
