"""A search index that handles up to a hundred documents in one call, and reports the documents that it rejects."""

import asyncio

from smartpipe import Batch, BatchDelivery, Event, Reject, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker


class PageChanged(Event, topic=Topic("pages"), type="page.changed", version="1.0"):
    path: str


service = Service("search", retry=RetryPolicy(attempts=3, base_seconds=5))
indexed: set[str] = set()


@service.subscribe(PageChanged, batch=Batch(size=100, linger_seconds=1))
async def index(events: list[PageChanged], batch: BatchDelivery) -> None:
    print("a call with", len(events), "events")
    for number, event in enumerate(events):
        if event.path == "/forbidden":
            batch.fail(number, Reject("not for the index"))
        else:
            indexed.add(event.path)


async def main() -> None:
    async with MemoryBroker(service) as broker:
        pages = [PageChanged(path=f"/{number}") for number in range(149)]
        await asyncio.gather(*map(broker.publish, [*pages, PageChanged(path="/forbidden")]))
        await broker.drain()

        print(len(indexed), "indexed,", len(broker.dead_lettered(PageChanged)), "dead-lettered")


if __name__ == "__main__":
    asyncio.run(main())
