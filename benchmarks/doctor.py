"""Measure ``smartpipe doctor`` as a whole command: on 50 services, and with the manifests of each of them.

Each figure is the median of several processes, from the start of the interpreter to its exit. A first run compiles the
bytecode and does not count, except in the row that says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

RUNS = 15
SERVICES = 50
MODULE = """
from smartpipe import Event, Service, Topic

for number in range({services}):
    class Happened(Event, topic=Topic(f"topic-{{number}}"), type=f"bench.happened-{{number}}", version="1.0"):
        number: int
        name: str
        tags: list[str]

    service = Service(f"service-{{number}}", publishes=[Happened])

    @service.subscribe(Happened)
    async def handle(event: Happened) -> None: ...

    globals()[f"service_{{number}}"] = service
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: service-{number}}}
spec:
  template:
    metadata: {{labels: {{app: service-{number}}}}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: worker
          command: [smartpipe, worker, "shop:service_{number}"]
          livenessProbe: {{httpGet: {{path: /livez, port: 8080}}}}
"""


def main() -> None:
    """Print the table."""
    table = Table("command", "median", "min to max")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "shop.py").write_text(MODULE.format(services=SERVICES))
        targets = ", ".join(f'"shop:service_{number}"' for number in range(SERVICES))
        (directory / "pyproject.toml").write_text(f"[tool.smartpipe]\nservices = [{targets}]\n")
        (directory / "workers.yaml").write_text("---".join(DEPLOYMENT.format(number=one) for one in range(SERVICES)))
        doctor = [sys.executable, "-m", "smartpipe", "doctor"]
        for title, command in {
            "python -c pass": [sys.executable, "-c", "pass"],
            "the import of the services": [sys.executable, "-c", "import shop"],
            f"smartpipe doctor, {SERVICES} services": doctor,
            f"… with {SERVICES} Deployments in YAML": [*doctor, "--manifest", "workers.yaml"],
        }.items():
            _add_row(table, title, _measure(command, directory, {}))
        uncompiled = _measure(
            doctor, directory, {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": f"{name}/none"}
        )
        _add_row(table, "… without compiled bytecode, as in a fresh checkout", uncompiled)
    Console(width=100).print(table)


def _measure(command: list[str], directory: Path, variables: dict[str, str]) -> list[float]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | variables
    durations = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=directory, env=environment)
        durations.append(time.perf_counter() - started)
    return durations[1:]


def _add_row(table: Table, title: str, durations: list[float]) -> None:
    spread = f"{min(durations) * 1000:.0f} to {max(durations) * 1000:.0f} ms"
    table.add_row(title, f"{median(durations) * 1000:.0f} ms", spread)


if __name__ == "__main__":
    main()
