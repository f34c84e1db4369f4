"""The time of ``smartpipe deploy export`` for many services, in every format, as a whole command.

    python -m benchmarks.deploy [--services N] [--rounds N]

Run it from the root of the checkout. Each service handles two events, publishes one, and scales by a promise. The
formats take turns, so that a busy moment of the machine does not meet only one of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smartpipe.cli.deploy.commands import DEPLOY_FORMATS

HEAD = "from smartpipe import Event, Service, Topic\n"
SERVICE = """
class Placed{number}(Event, topic=Topic("orders-{number}"), type="order{number}.placed", version="1.0"):
    order_id: str

class Paid{number}(Event, topic=Topic("orders-{number}"), type="order{number}.paid", version="1.0"):
    order_id: str
    cents: int

service_{number} = Service("service-{number}", publishes=[Paid{number}])

@service_{number}.subscribe(Placed{number})
async def place_{number}(event: Placed{number}) -> None: ...

@service_{number}.subscribe(Paid{number}, idempotent=True)
async def pay_{number}(event: Paid{number}) -> None: ...
"""
PROJECT = """
[project]
name = "shop"
version = "1"

[dependency-groups]
dev = ["smartpipe[local]"]

[tool.smartpipe]
services = [{targets}]

[tool.smartpipe.deploy]
image = "registry.example.com/shop:1"
cpu = 0.5
memory = "1Gi"
max_wait_seconds = 60
seconds_per_message = 0.1
"""


def write_project(directory: Path, services: int) -> None:
    """Write the module with all services, and the pyproject.toml that names them."""
    numbers = range(services)
    (directory / "shop.py").write_text(HEAD + "".join(SERVICE.format(number=number) for number in numbers))
    targets = ", ".join(f'"shop:service_{number}"' for number in numbers)
    (directory / "pyproject.toml").write_text(PROJECT.format(targets=targets))
    (directory / "uv.lock").touch()


def export(directory: Path, form: str) -> float:
    """Run the command, and return its time in seconds."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "smartpipe", "deploy", "export", "--format", form, "--output", f"{form}.out"],
        cwd=directory,
        env={**os.environ, "AWS_REGION": "eu-west-1", "SMARTPIPE_ACCOUNT_ID": "123456789012"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def main() -> None:
    """Print the median, the least and the longest time of each format."""
    parser = argparse.ArgumentParser(prog="benchmarks.deploy", description=__doc__)
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_project(directory, options.services)
        times: dict[str, list[float]] = {form: [] for form in DEPLOY_FORMATS}
        for _ in range(options.rounds):
            for form in DEPLOY_FORMATS:
                times[form].append(export(directory, form))
    print(f"{options.services} services, {options.rounds} rounds")
    for form, seconds in times.items():
        print(f"{form}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
