"""Three copies of one event, one of which arrives while the first is being handled. The handler runs once."""

import asyncio

from smartpipe import Event, Queue, Service, Topic
from smartpipe.envelope import encode, wrap
from smartpipe.testing import MemoryBroker


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str


service = Service("billing", queue=Queue("billing", visibility_timeout_seconds=30))


@service.subscribe(OrderPlaced, idempotent=True)
async def charge(event: OrderPlaced) -> None:
    await asyncio.sleep(10)
    print(f"charged {event.order_id}")


async def main() -> None:
    copy = encode(wrap(OrderPlaced(order_id="1"), source="shop"))
    async with MemoryBroker(service) as broker:
        await broker.send("billing", copy)
        await asyncio.sleep(1)
        await broker.send("billing", copy)  # while the first is being handled
        await broker.drain()
        await broker.send("billing", copy)  # afterwards
        await broker.drain()

        for record in broker.retried(OrderPlaced):
            print(f"deferred for {record.after_seconds:.0f} s: {record.error}")
        print(f"{len(broker.handled(OrderPlaced))} deliveries, all done")


if __name__ == "__main__":
    asyncio.run(main())
