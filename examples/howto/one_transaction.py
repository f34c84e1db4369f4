"""A handler whose database change, completion and outgoing event are committed in one transaction."""

import asyncio
import os

import asyncpg

from smartpipe import Delivery, Event, Queue, Service, Topic
from smartpipe.envelope import encode, wrap
from smartpipe.outbox import Outbox, Relay
from smartpipe.testing import MemoryBroker

orders = Topic("orders")


class OrderPlaced(Event, topic=orders, type="order.placed", version="1.0"):
    order_id: str
    cents: int


class OrderCharged(Event, topic=orders, type="order.charged", version="1.0"):
    order_id: str


service = Service("billing", queue=Queue("billing", visibility_timeout_seconds=10), publishes=[OrderCharged])
outbox = Outbox("billing")


@service.subscribe(OrderPlaced, idempotent=True)
async def charge(event: OrderPlaced, delivery: Delivery) -> None:
    async with delivery.transaction() as connection:
        await connection.execute("INSERT INTO charges (order_id, cents) VALUES ($1, $2)", event.order_id, event.cents)
        await outbox.publish(OrderCharged(order_id=event.order_id), connection=connection)


async def main() -> None:
    url = os.environ["SMARTPIPE_IDEMPOTENCY_URL"]
    database = await asyncpg.connect(url)
    await database.execute("CREATE TABLE IF NOT EXISTS charges (order_id text, cents integer)")
    copy = encode(wrap(OrderPlaced(order_id="1", cents=4200), source="shop"))
    async with MemoryBroker(service, virtual=False, idempotency_url=url) as broker:
        for _ in range(3):
            await broker.send("billing", copy)
        await broker.drain()
        await Relay(url, broker.transport).drain()  # as `smartpipe relay` does in its own process

        print(len(broker.handled(OrderPlaced)), "copies of OrderPlaced")
        print(await database.fetchval("SELECT count(*) FROM charges"), "charge")
        print(len(broker.published(OrderCharged)), "OrderCharged")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
