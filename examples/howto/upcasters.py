"""One class and one handler for three major versions of an event: upcasters compute the data of the newest one."""

import asyncio
import json
from typing import Any

from smartpipe import Delivery, Event, Service, Topic
from smartpipe.testing import MemoryBroker

orders = Topic("orders")


class OrderPlaced(Event, topic=orders, type="order.placed", version="3.0"):
    order_id: str
    total: str  # such as "42.00 EUR"


@OrderPlaced.upcast(from_version="1")  # 1.x: order_id, cents
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR"}


@OrderPlaced.upcast(from_version="2")  # 2.x: order_id, cents, currency
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "total": f"{data['cents'] / 100:.2f} {data['currency']}"}


service = Service("billing")


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced, delivery: Delivery) -> None:
    print(f"order {event.order_id}: {event.total}, sent as {delivery.version}")


def from_a_producer(version: str, **data: object) -> str:
    envelope = {"specversion": "1.0", "type": "order.placed", "source": "shop", "id": version, "dataversion": version}
    return json.dumps({**envelope, "data": data})


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for body in (
            from_a_producer("1.0", order_id="1", cents=4200),
            from_a_producer("2.1", order_id="2", cents=4200, currency="CHF"),
            from_a_producer("3.0", order_id="3", total="42.00 CHF"),
            from_a_producer("2.0", order_id="4", cents="42", currency="CHF"),
            from_a_producer("1.0", order_id=5, cents=4200),
        ):
            await broker.send("billing", body)
            await broker.drain()
        for dead in broker.dead_lettered():
            print(f"{dead.kind}: {dead.reason}")


if __name__ == "__main__":
    asyncio.run(main())
