"""Measure the duration of a plan and an apply with many services, topics and queues on the local broker.

    python benchmarks/topology.py [--services 50]

Each service has a queue with a dead-letter queue, a topic that the service and its neighbour subscribe to, and a topic
that it only publishes to. With 50 services, these are 200 topics and queues.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from smartpipe import EmbeddedBroker, Event, Service, Topic
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.transports.open import open_aws_transport


def build_services(count: int) -> list[Service]:
    events = [_create_event(f"topic-{number}", number) for number in range(count)]
    unsubscribed = [_create_event(f"only-published-{number}", count + number) for number in range(count)]
    services = []
    for number in range(count):
        service = Service(f"service-{number}", publishes=[unsubscribed[number]])

        async def handle(_: Event) -> None: ...

        for event in (events[number], events[number - 1]):
            service.subscribe(event)(handle)
        services.append(service)
    return services


def _create_event(topic: str, number: int) -> type[Event]:
    return type(f"Event{number}", (Event,), {}, topic=Topic(topic), type=f"bench.e{number}", version="1.0")


async def measure(count: int) -> None:
    services = build_services(count)
    transport = open_aws_transport()
    provisioner = Provisioner(transport.session)
    for label, applies in (
        ("plan, with no resources yet", False),
        ("apply", True),
        ("plan, with all resources in place", False),
    ):
        started = time.perf_counter()
        context = await provisioner.compare(services)
        if applies:
            await provisioner.apply(context.pending)
        seconds = time.perf_counter() - started
        print(f"{label:34} {seconds:6.2f} s   {len(context.pending):4} changes of {len(context.changes)} resources")
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
