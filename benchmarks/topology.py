"""How long a plan and an apply take: many services, topics and queues on the embedded broker.

    python benchmarks/topology.py [--services 50]

Each service has a queue with its dead-letter queue, a topic and a subscription to its own and to its
neighbour's: with 50 services 200 topics and queues in all, counting each service's topic, queue and
dead-letter queue, and as many topics again that are only published to.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from smartpipe import EmbeddedBroker, Event, Service, Topic
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.transports.open import open_aws_transport


def services(count: int) -> list[Service]:
    made = [_event(f"topic-{number}", number) for number in range(count)]
    others = [_event(f"only-published-{number}", count + number) for number in range(count)]
    found = []
    for number in range(count):
        service = Service(f"service-{number}", publishes=[others[number]])

        async def handle(_: Event) -> None: ...

        for event in (made[number], made[number - 1]):
            service.subscribe(event)(handle)
        found.append(service)
    return found


def _event(topic: str, number: int) -> type[Event]:
    return type(f"Event{number}", (Event,), {}, topic=Topic(topic), type=f"bench.e{number}", version="1.0")


async def measure(count: int) -> None:
    wanted = services(count)
    transport = open_aws_transport()
    provisioner = Provisioner(transport)
    for label, work in (
        ("plan, with nothing there", False),
        ("apply", True),
        ("plan, with all in place", False),
    ):
        begun = time.perf_counter()
        context = await provisioner.compare(wanted)
        if work:
            await provisioner.apply(context.pending)
        seconds = time.perf_counter() - begun
        print(f"{label:26} {seconds:6.2f} s   {len(context.pending):4} changes of {len(context.changes)} resources")
    await transport.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--backend", default="ministack")
    arguments = parser.parse_args()
    with EmbeddedBroker(arguments.backend) as broker:
        os.environ.update(broker.environment)
        print(f"{broker.backend} {broker.version}, {arguments.services} services")
        asyncio.run(measure(arguments.services))


if __name__ == "__main__":
    main()
