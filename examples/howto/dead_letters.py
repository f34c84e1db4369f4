"""Messages in the dead-letter queue, each with the reason for it."""

import asyncio
import json

from smartpipe import Event, Reject, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str
    cents: int


service = Service("billing", retry=RetryPolicy(attempts=2, base_seconds=1))


@service.subscribe(OrderPlaced)
async def bill(event: OrderPlaced) -> None:
    if event.cents == 0:
        raise Reject("nothing to bill")
    raise ConnectionError("the bank is closed")


async def main() -> None:
    async with MemoryBroker(service) as broker:
        await broker.publish(OrderPlaced(order_id="free", cents=0))
        await broker.publish(OrderPlaced(order_id="1", cents=900))
        await broker.send("billing", "not even JSON")
        await broker.drain()

        dead_letters = await broker.transport.receive(
            "billing-dlq", max_messages=10, wait_seconds=0, visibility_timeout_seconds=30
        )
        reasons = [json.loads(letter.attributes["smartpipe_dead_letter"].value) for letter in dead_letters]
        for reason in sorted(reasons, key=lambda reason: reason["kind"]):
            print(f"{reason['kind']:<18} after {reason['receive_count']}: {reason['message'][:42]}")


if __name__ == "__main__":
    asyncio.run(main())
