"""The time of one publish after another: a bare Publish call of aiobotocore, and a Publisher with and without linger.

    python -m benchmarks.sequential

The three take turns on the local broker. Each line is the median of five rounds of 200 events, and the least and most.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING

from aiobotocore.session import get_session

from smartpipe import EmbeddedBroker, Event, Publisher, Service, Topic
from smartpipe.testing import provision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS, WARM, EVENTS = 5, 20, 200
LINGER_SECONDS = 0.005


class Numbered(Event, topic=Topic("sequential"), type="numbered", version="1.0"):
    number: int


async def measure(publish: Callable[[int], Awaitable[object]]) -> float:
    """Return the milliseconds that one publish takes."""
    for number in range(WARM):
        await publish(number)
    began = time.perf_counter()
    for number in range(EVENTS):
        await publish(number)
    return (time.perf_counter() - began) / EVENTS * 1e3


async def main() -> None:
    """Print a line for each way to publish."""
    service = Service("sequential")

    @service.subscribe(Numbered)
    async def handle(_: Numbered) -> None: ...

    await provision(service)
    arn = f"arn:aws:sns:{os.environ['AWS_REGION']}:{os.environ['SMARTPIPE_ACCOUNT_ID']}:sequential"
    async with (
        get_session().create_client("sns") as sns,
        Publisher("sequential") as publisher,
        Publisher("lingering", linger_seconds=LINGER_SECONDS) as lingering,
    ):
        ways: dict[str, Callable[[int], Awaitable[object]]] = {
            "bare Publish": lambda number: sns.publish(TopicArn=arn, Message=f'{{"number": {number}}}'),
            "publish": lambda number: publisher.publish(Numbered(number=number)),
            "publish, 5 ms linger": lambda number: lingering.publish(Numbered(number=number)),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                found[name].append(await measure(way))
    for name, values in found.items():
        print(f"{name:22} {statistics.median(values):5.2f} ms ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    with EmbeddedBroker() as broker:
        os.environ |= {**broker.environment, "SMARTPIPE_ACCOUNT_ID": "000000000000"}
        asyncio.run(main())
