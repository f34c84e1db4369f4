"""Run three services under load and faults, and draw their dashboards from a real Prometheus: ``-m ... DIRECTORY``.

Grafana is not needed: each panel is drawn by dashboards_picture.py from the same queries. Needs the Debian package
prometheus. It takes six minutes.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import dashboard_services as services
from benchmarks.dashboards_picture import draw
from tests.support.loopback import free_port
from tests.support.processes import Process
from tests.support.prometheus import Prometheus

from smartpipe import EmbeddedBroker, Publisher
from smartpipe.monitoring.dashboards import FLEET, SERVICE, build_dashboards
from smartpipe.monitoring.prometheus_rules import write_rule_file
from smartpipe.monitoring.rules import AlertOptions
from smartpipe.telemetry import render
from smartpipe.testing import provision

SECONDS = 300
PREPARATION_SECONDS = 20
STEP_SECONDS = 2.0
WINDOW = "15s"
POISONED = 0.2
DECLARED = [services.shop, services.billing, services.mailer]


def main() -> None:
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    with EmbeddedBroker("ministack") as broker, TemporaryDirectory() as directory:
        os.environ.update(
            broker.environment,
            SMARTPIPE_WAIT_SECONDS="1",
            SMARTPIPE_CONCURRENCY="4",
            SMARTPIPE_QUEUE_METRICS_SECONDS="5",
        )
        asyncio.run(provision(*DECLARED))
        services.START = time.time() + PREPARATION_SECONDS
        os.environ["SCENARIO_START"] = str(services.START)
        ports = free_port(), free_port(), free_port()
        workers = [
            Process("worker", f"benchmarks.dashboard_services:{name}", "--port", str(port), "--processes", processes)
            for name, port, processes in (("billing", ports[0], "2"), ("mailer", ports[1], "1"))
        ]
        rules = write_rule_file(DECLARED, application="shop", options=AlertOptions(promise_seconds=60))
        rules = rules.replace("[5m]", "[30s]").replace("[10m]", "[30s]").replace("for: 10m", "for: 10s")
        try:
            with Prometheus(Path(directory), rules, *(f"127.0.0.1:{port}" for port in ports)) as prometheus:
                for worker in workers:
                    worker.wait_until(lambda: worker.logged("ready"))  # noqa: B023 - asked before the next one
                time.sleep(max(0.0, services.START - time.time()))
                asyncio.run(place_orders(ports[2]))
                _draw_all(prometheus, output)
        finally:
            for worker in workers:
                worker.signal(signal.SIGTERM)
                worker.wait()


def _draw_all(prometheus: Prometheus, output: Path) -> None:
    end = time.time()
    dashboards = build_dashboards(DECLARED, application="shop", labels={})
    for name, service in ((FLEET, "(billing|mailer|shop)"), (SERVICE, "billing")):
        values = {"$__rate_interval": WINDOW, "$service": service, "$queue": ".+", "[5m]": f"[{WINDOW}]"}
        path = output / f"{name.replace('smartpipe', 'dashboard')}.png"
        draw(dashboards[name], prometheus, values, (services.START, end, STEP_SECONDS), path)
        print(path)


async def place_orders(port: int) -> None:
    """Publish orders until the end of the scenario, and serve the metrics of the publisher."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = render(publisher.collect_metrics()).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n" + body)
        writer.close()

    async with Publisher("shop") as publisher, await asyncio.start_server(serve, "127.0.0.1", port):
        running = set[asyncio.Task[object]]()
        while (elapsed := time.time() - services.START) < SECONDS:
            rate = 90 if services.is_within(services.BURST) else 15 + 5 * math.sin(elapsed / 20)
            cents = -1 if services.is_within(services.POISON) and random.random() < POISONED else 100
            task = asyncio.create_task(publisher.publish(services.OrderPlaced(cents=cents)))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*running)


if __name__ == "__main__":
    main()
