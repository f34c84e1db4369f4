"""Checked by mypy, never run: raw handlers, their models and matchers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from smartpipe import Batch, BatchDelivery, Delivery, Publisher, Service
from smartpipe.external import EventBridgeEvent, RawMessage, S3Notification, attribute, field, where
from tests.support.events import ADA, UserLeft

service = Service("typed")


class Detail(BaseModel):
    order: str


@service.subscribe_raw(S3Notification)
async def right(notification: S3Notification) -> None:
    key: str = notification.records[0].key
    size: str = notification.records[0].s3.object.size  # type: ignore[assignment]
    assert key + size


@service.subscribe_raw(EventBridgeEvent[Detail], match=field("detail-type", "Placed") & ~attribute("test"))
async def right_with_delivery(event: EventBridgeEvent[Detail], delivery: Delivery) -> None:
    order: str = event.detail.order
    assert order
    number: int = event.detail.order  # type: ignore[assignment]
    assert number


@service.subscribe_raw(dict, match=lambda message: len(message.body) > 5, queue="other")
def right_untyped(message: dict[str, Any]) -> None: ...


@service.subscribe_raw(str, match=where(lambda message: message.json is None))
async def right_text(body: str) -> None: ...


@service.subscribe_raw(S3Notification, batch=Batch(size=5))
async def right_batch(notifications: list[S3Notification], batch: BatchDelivery) -> None: ...


@service.subscribe_raw(S3Notification)  # type: ignore[arg-type]
async def wrong_model(event: UserLeft) -> None: ...


@service.subscribe_raw(EventBridgeEvent[Detail])  # type: ignore[arg-type]
async def wrong_detail(event: EventBridgeEvent[int]) -> None: ...


@service.subscribe_raw(S3Notification, batch=Batch())  # type: ignore[arg-type]
async def wrong_batch(event: S3Notification) -> None: ...


@service.subscribe_raw(dict, match="kind")  # type: ignore[call-overload, untyped-decorator]
async def wrong_match(event: dict[str, Any]) -> None: ...


def matches(message: RawMessage) -> bool:
    return message.attributes["type"].parsed == 5


service.subscribe_raw(str, match=matches)


async def publishing(publisher: Publisher) -> None:
    await publisher.publish(ADA, attributes={"amount": 12.5, "tags": ["a", 1, None], "text": "x"})
    await publisher.publish(ADA, attributes={"amount": None})  # type: ignore[dict-item]
