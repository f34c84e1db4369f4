"""A video that takes an hour to encode, on a queue with a visibility timeout of 30 seconds."""

import asyncio

from smartpipe import Delivery, Event, Service, Topic
from smartpipe.testing import MemoryBroker


class VideoUploaded(Event, topic=Topic("videos"), type="video.uploaded", version="1.0"):
    name: str


service = Service("encoder")


@service.subscribe(VideoUploaded, timeout_seconds=2 * 3_600, concurrency=2)
async def encode(event: VideoUploaded, delivery: Delivery) -> None:
    for minute in range(60):
        await asyncio.sleep(60)  # one part of the work
        if delivery.lease_lost:
            raise RuntimeError(f"another worker may have started to encode {event.name} after minute {minute}")


async def main() -> None:
    async with MemoryBroker(service) as broker:
        for name in ("one", "two", "three"):
            await broker.publish(VideoUploaded(name=name))
        await broker.drain()

        for event, hours in zip(broker.handled(VideoUploaded), (1, 1, 2), strict=True):
            print(
                event.name, "encoded once, after", hours, "h" if hours == 1 else "h, because it waited for a free slot"
            )


if __name__ == "__main__":
    asyncio.run(main())
