"""One handler for two major versions of an event, and for every minor version of each."""

import asyncio
import json

from smartpipe import Event, Idempotency, Service, Topic
from smartpipe.testing import MemoryBroker

orders = Topic("orders")


class OrderPlacedV1(Event, topic=orders, type="order.placed", version="1.1"):
    order_id: str
    cents: int
    currency: str = "EUR"  # since 1.1: optional, so that events of version 1.0 still fit


class OrderPlaced(Event, topic=orders, type="order.placed", version="2.0"):
    order_id: str
    total: str  # since 2.0, such as "42.00 EUR": replaces cents and currency


service = Service("billing")


@service.subscribe(OrderPlaced, idempotent=Idempotency(key="order_id"))
@service.subscribe(OrderPlacedV1, idempotent=Idempotency(key="order_id"))
async def charge(event: OrderPlaced | OrderPlacedV1) -> None:
    if isinstance(event, OrderPlacedV1):
        event = upgrade(event)
    print(f"order {event.order_id}: {event.total}")


def upgrade(event: OrderPlacedV1) -> OrderPlaced:
    return OrderPlaced(order_id=event.order_id, total=f"{event.cents / 100:.2f} {event.currency}")


def from_a_producer(version: str, **data: object) -> str:
    envelope = {"specversion": "1.0", "type": "order.placed", "source": "shop", "id": version, "dataversion": version}
    return json.dumps({**envelope, "data": data})


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for body in (
            from_a_producer("1.0", order_id="1", cents=4200),
            from_a_producer("1.1", order_id="2", cents=4200, currency="CHF"),
            from_a_producer("1.2", order_id="3", cents=4200, currency="CHF", coupon="XMAS"),
            from_a_producer("2.0", order_id="4", total="42.00 CHF"),
            from_a_producer("1.1", order_id="4", cents=4200, currency="CHF"),  # the same order, as both versions
            from_a_producer("3.0", id=5),
        ):
            await broker.send("billing", body)
            await broker.drain()
        for dead in broker.dead_lettered():
            print("dead-lettered:", dead.reason)


if __name__ == "__main__":
    asyncio.run(main())
