"""Measure the throughput and latency of a relay, on the local broker and a new PostgreSQL server.

    python -m benchmarks.outbox [--events 20000] [--url postgresql://...]

Run it from the root of the checkout. Latency is measured in the database, from the insertion of a row until it is
marked as published. For this, single events are committed one after the other while the relay is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from contextlib import ExitStack

import asyncpg
from tests.support.servers import PostgresServer

from smartpipe import EmbeddedBroker, Event, Service, Topic
from smartpipe.idempotency.stores.migrate import migrate
from smartpipe.outbox import Outbox, Relay
from smartpipe.testing import provision
from smartpipe.transports.open import open_aws_transport

OUTBOX = Outbox("benchmark")
SINGLE = 200


class Ordered(Event, topic=Topic("ordered"), type="bench.ordered", version="1.0"):
    number: int
    text: str = "x" * 200


async def measure(url: str, count: int) -> None:
    await provision(Service("shop", publishes=[Ordered]))
    await migrate(url)
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE smartpipe_outbox")
    transport = open_aws_transport()
    started = time.perf_counter()
    async with connection.transaction():
        for number in range(count):
            await OUTBOX.publish(Ordered(number=number), connection=connection)
    written = time.perf_counter() - started
    relay = Relay(url, transport)
    started, cpu = time.perf_counter(), time.process_time()
    await relay.drain()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"written    {count / written:8,.0f} events/s, one statement each, in one transaction")
    print(f"published  {count / seconds:8,.0f} events/s, {cpu / count * 1e6:.0f} µs of the relay's CPU each")

    running = asyncio.create_task(relay.run())
    await asyncio.sleep(0.5)
    await connection.execute("TRUNCATE smartpipe_outbox")
    for number in range(SINGLE):
        await OUTBOX.publish(Ordered(number=number), connection=connection, autocommit=True)
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    rows = await connection.fetch(
        "SELECT extract(epoch FROM published_at - created_at)::float AS s FROM smartpipe_outbox"
    )
    relay.stop()
    await running
    waits = sorted(row["s"] * 1_000 for row in rows)
    p50, p99 = statistics.median(waits), waits[int(len(waits) * 0.99)]
    print(f"idle       p50 {p50:.1f} ms, p99 {p99:.1f} ms, of {len(waits)} from commit to published and marked")
    await transport.aclose()
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        os.environ.update(broker.environment)
        url = arguments.url or stack.enter_context(PostgresServer()).url
        asyncio.run(measure(url, arguments.events))


if __name__ == "__main__":
    main()
