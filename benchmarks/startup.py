"""Measure the start-up time of commands, and the CPU time and memory of an idle worker. Run it with ``make bench``.

Each figure is the median of several runs of a whole process, with its spread. Times are not measured inside a process
that is already warm. A first run compiles the bytecode and does not count.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from smartpipe import EmbeddedBroker

RUNS = 9
IDLE_SECONDS = 60
SERVICE = """
from smartpipe import Event, Service, Topic

class Happened(Event, topic=Topic("things"), type="thing.happened", version="1.0"):
    name: str

service = Service("idle")

@service.subscribe(Happened)
async def handle(event: Happened) -> None: ...
"""


def measure_seconds(command: list[str]) -> list[float]:
    """Return the wall time of each counted run, with the start of the interpreter."""
    durations = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        durations.append(time.perf_counter() - started)
    return durations[1:]


def measure_worker(directory: Path, environment: dict[str, str]) -> tuple[list[float], float, float]:
    """Return the seconds from command to "ready" of each run, and the idle CPU percent and RSS (MB) of the last."""
    command = [sys.executable, "-m", "smartpipe", "worker", "service:service", "--port", "0"]
    environment = {**os.environ, **environment, "SMARTPIPE_LOG_FORMAT": "json"}
    durations, percent, megabytes = [], 0.0, 0.0
    for run in range(RUNS + 1):
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            while '"ready' not in worker.stdout.readline():
                pass
            durations.append(time.perf_counter() - started)
            if run == RUNS:
                percent, megabytes = measure_idle(worker.pid)
            worker.kill()
    return durations[1:], percent, megabytes


def measure_idle(pid: int) -> tuple[float, float]:
    """Return the CPU percent over a minute of long polls on an empty queue, and the resident set in MB at its end."""
    time.sleep(2)
    before = cpu_seconds(pid)
    time.sleep(IDLE_SECONDS)
    percent = 100 * (cpu_seconds(pid) - before) / IDLE_SECONDS
    status = Path(f"/proc/{pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    return percent, int(resident[1]) / 1000


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    table = Table("figure", "target", "median", "min to max")
    python = sys.executable

    def row(figure: str, limit: str, durations: list[float]) -> None:
        spread = f"{min(durations) * 1000:.0f} to {max(durations) * 1000:.0f} ms"
        table.add_row(figure, limit, f"{median(durations) * 1000:.0f} ms", spread)

    row("python -c pass", "", measure_seconds([python, "-c", "pass"]))
    row("import smartpipe", "< 200 ms", measure_seconds([python, "-c", "import smartpipe"]))
    everything = "from smartpipe import Event, Publisher, RetryPolicy, Service, Topic"
    row("… with Event, Publisher, RetryPolicy, Service, Topic", "", measure_seconds([python, "-c", everything]))
    row("smartpipe --help", "< 300 ms", measure_seconds([python, "-m", "smartpipe", "--help"]))
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "service.py").write_text(SERVICE)
        apply = [python, "-m", "smartpipe", "topology", "apply", "--yes", "service:service"]
        subprocess.run(apply, cwd=directory, env={**os.environ, **broker.environment}, check=True, capture_output=True)
        durations, percent, megabytes = measure_worker(directory, broker.environment)
    row("worker, from command to ready", "< 1500 ms", durations)
    table.add_row(f"idle worker, CPU over {IDLE_SECONDS} s", "< 1 %", f"{percent:.2f} %", "")
    table.add_row("idle worker, resident set", "< 90 MB", f"{megabytes:.0f} MB", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
