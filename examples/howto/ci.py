"""The gates of a pipeline with their exit codes, on a local broker."""

import os
import subprocess
import sys
from pathlib import Path

from smartpipe import EmbeddedBroker, Event, Service, Topic


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str


service = Service("billing")


@service.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...


def run(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "smartpipe", *command.split()],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"exit code {done.returncode}: smartpipe {command}")
    print(done.stderr, end="")


if __name__ == "__main__":
    with EmbeddedBroker() as broker:
        os.environ.update(broker.environment)
        run("topology plan ci:service")
        run("topology apply --yes ci:service")
        run("topology plan ci:service")
        run("topology plan ci:servise")
