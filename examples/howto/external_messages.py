"""One queue for messages of S3, EventBridge and a program without CloudEvents, and for events of our own."""

import asyncio
from typing import Any

from pydantic import BaseModel

from smartpipe import Delivery, Event, Service, Topic
from smartpipe.external import EventBridgeEvent, S3Notification, attribute, field
from smartpipe.testing import MemoryBroker


class OrderPlaced(Event, topic=Topic("orders"), type="com.example/order:placed", version="1.0"):
    order_id: str


class Payment(BaseModel):  # the detail of an event of EventBridge
    order_id: str
    cents: int


class Row(BaseModel):  # JSON of an old program
    kind: str
    number: int


service = Service("inbox")


@service.subscribe(OrderPlaced)
async def order(event: OrderPlaced, delivery: Delivery) -> None:
    print(f"order {event.order_id} from {delivery.source}")


@service.subscribe_raw(S3Notification)
async def upload(notification: S3Notification) -> None:
    for record in notification.records:
        print(f"{record.event_name}: {record.key} in {record.bucket}")


@service.subscribe_raw(EventBridgeEvent[Payment], match=field("detail-type", "Payment Received"))
async def payment(event: EventBridgeEvent[Payment], delivery: Delivery) -> None:
    print(f"payment of {event.detail.cents} cents for {event.detail.order_id}, event {delivery.event_id}")


@service.subscribe_raw(Row, match=field("kind", "row") & ~attribute("test"))
async def row(message: Row) -> None:
    print(f"row {message.number}")


@service.subscribe_raw(dict, match=lambda message: message.body.startswith("{"))
async def other(message: dict[str, Any]) -> None:
    print(f"another JSON object with {', '.join(message)}")


S3_TEST = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos"}
S3_CREATED = {
    "Records": [
        {
            "eventVersion": "2.3",
            "eventSource": "aws:s3",
            "eventTime": "2026-11-27T10:00:00.000Z",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "photos"}, "object": {"key": "my+photo%2B1.jpg", "sequencer": "0A"}},
        }
    ]
}
EVENTBRIDGE = {
    "id": "b3a1",
    "detail-type": "Payment Received",
    "source": "com.example.payments",
    "account": "123456789012",
    "time": "2026-11-27T10:00:00Z",
    "region": "eu-west-1",
    "detail": {"order_id": "o-1", "cents": 4200},
}
BINARY_MODE = {"ce-id": "7", "ce-source": "/shop", "ce-type": "com.example/order:placed", "ce-specversion": "1.0"}


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for body in (S3_TEST, S3_CREATED, EVENTBRIDGE, {"kind": "row", "number": 5}, {"kind": "new", "id": 1}):
            await broker.send("inbox", body)
            await broker.drain()
        await broker.send("inbox", {"order_id": "o-2"}, attributes=BINARY_MODE)
        await broker.send("inbox", {"kind": "row", "number": "five"})
        await broker.send("inbox", "no JSON")
        await broker.drain()
        for dead in broker.dead_lettered():
            print(f"dead-lettered as {dead.kind}: {dead.body}")


if __name__ == "__main__":
    asyncio.run(main())
