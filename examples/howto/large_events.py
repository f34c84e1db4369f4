"""Two large events: compression makes one small enough, and the other is stored outside the queue."""

import asyncio
import os

from smartpipe import Delivery, Event, Service, Topic
from smartpipe.testing import MemoryBroker

# In production, set these in the environment, with the bucket as s3://BUCKET/PREFIX.
os.environ["SMARTPIPE_COMPRESSION"] = "gzip"
os.environ["SMARTPIPE_CLAIM_CHECK_URL"] = "memory://payloads"


class ReportMade(Event, topic=Topic("reports"), type="report.made", version="1.0"):
    lines: list[int]


service = Service("archive")


@service.subscribe(ReportMade)
async def keep(event: ReportMade, delivery: Delivery) -> None:
    message = delivery.message
    encoding = ", ".join(sorted(set(message.attributes) - {"type"}))
    print(f"{len(event.lines):,} lines in a message of {len(message.body) / 1_000:.1f} kB ({encoding})")


async def main() -> None:
    async with MemoryBroker(service) as broker:
        await broker.publish(ReportMade(lines=list(range(50_000))))
        await broker.publish(ReportMade(lines=list(range(500_000))))
        await broker.drain()


if __name__ == "__main__":
    asyncio.run(main())
