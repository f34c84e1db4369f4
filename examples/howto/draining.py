"""A deployment while the worker is busy: the worker drains on SIGTERM, and no message is lost."""

import asyncio

from smartpipe import Event, Publisher, Service, Topic, Worker
from smartpipe.settings import WorkerSettings
from smartpipe.topology.derive import derive
from smartpipe.transports.memory.transport import NAMING, MemoryTransport


class Ticked(Event, topic=Topic("clock"), type="clock.ticked", version="1.0"):
    number: int


service = Service("watcher")
begun = asyncio.Event()
ended: list[int] = []


@service.subscribe(Ticked, concurrency=1)
async def watch(event: Ticked) -> None:
    begun.set()
    await asyncio.sleep(0.5)
    ended.append(event.number)


async def main() -> None:
    transport = MemoryTransport()  # instead of AWS
    transport.apply(derive([service], NAMING))
    async with Publisher("test", transport=transport) as publisher:
        await publisher.publish_many([Ticked(number=number) for number in range(3)])

    settings = WorkerSettings.load(host="127.0.0.1", port=0, drain_seconds=10, wait_seconds=1)
    worker = Worker(service, transport, settings)
    running = asyncio.create_task(worker.run())
    await begun.wait()
    worker.stop("SIGTERM")  # as `smartpipe worker` does on SIGTERM
    code = await running

    print("exit code", code)
    print(len(ended), "handled,", transport.queue("watcher").depth.visible, "still in the queue for the next worker")


if __name__ == "__main__":
    asyncio.run(main())
