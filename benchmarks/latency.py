"""Throughput over a distance: each client with 0, 2, 15 and 80 ms of round trip between it and the broker.

    python -m benchmarks.latency

It writes ``benchmarks/LATENCY.md`` and ``benchmarks/latency.svg``. Venvs, broker and clients are those of
``benchmarks.compare``. In each round, every client runs once over each distance, in rotating order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.compare.broker import put_at_distance, run_broker
from benchmarks.compare.contenders import BARE, DEFAULT, FAR_CONSUMERS, FORTY_TASKS, PICTURE, SMARTPIPE, Contender
from benchmarks.compare.machine import describe_machine, load_averages
from benchmarks.compare.runs import WARM_UP, run
from benchmarks.compare.venvs import ROOT, install_python

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.compare.table import Figures

PAGE, SVG = ROOT / "benchmarks" / "LATENCY.md", ROOT / "benchmarks" / "latency.svg"
MILLISECONDS = (0, 2, 15, 80)
IN_FLIGHT = {BARE: 80, FORTY_TASKS: 400}
"""The messages that these clients have on their way at most. Over a distance, this number limits their rate."""
SLOW_MILLISECONDS = 80
FEWEST = 500

HEAD = """# Throughput over a distance

Messages that each client receives, handles and deletes in a second of wall time, if each answer of the broker takes a
round trip longer, and the CPU time for each message in µs. Handlers do nothing. Each figure is {figure}.
To make this page again, run `{command}`.

{table}

![Messages per second of each client over the round trip, with the limits of the CPU and of the messages on their way
](latency.svg)

- **A client that has *n* messages on their way handles at most *n* in two round trips**: one for the receive and one
  for the delete, unless it does not wait for deletes. The dashed line shows this limit for the bare loop, whose 8 tasks
  have 80 messages on their way, without any time for work.
- **The dotted line is the limit of the CPU**: one core divided by smartpipe's CPU time for a message without a
  distance. Broker, proxy and client share {cores} cores, so no client reaches it.
- The proxy is that of `smartpipe bench --latency`. It holds each byte for half of the round trip in each direction.
- The runs over 80 ms have fewer messages, and those without a distance have most, so that each run takes some seconds.
- {machine}
"""


class Point(NamedTuple):
    """The figures of one client over one distance: medians of messages per second and CPU time in µs."""

    rate: float
    microseconds: float


def choose_count(contender: Contender, milliseconds: float, messages: int) -> int:
    """Return the number of messages for each unit of the client's weight, so that a run takes a few seconds."""
    return max(FEWEST // contender.weight, messages // 4) if milliseconds >= SLOW_MILLISECONDS else messages


def measure(contenders: Sequence[Contender], options: argparse.Namespace) -> tuple[dict[str, dict[int, Point]], str]:
    """Run each client over each distance, and return the medians and a line about the machine."""
    pythons = {one.venv: install_python(one.venv, options.cache) for one in contenders}
    found: dict[tuple[str, int], list[Figures]] = {}
    with run_broker(options.cache / "node") as broker:
        machine = describe_machine(broker.name, "")
        for number in range(options.rounds):
            turn = number * len(contenders) // options.rounds
            for milliseconds in MILLISECONDS:
                for one in [*contenders[turn:], *contenders[:turn]]:
                    each = choose_count(one, milliseconds, options.messages)
                    with put_at_distance(broker, milliseconds) as placed:
                        figures = run(one, "consume", pythons[one.venv], placed, messages_per_weight=each)
                    found.setdefault((one.name, milliseconds), []).append(figures)
                    rate = "" if figures.error else f"{figures.messages / figures.wall_seconds:8,.0f} per second"
                    print(f"{number + 1} {milliseconds:3} ms  {one.name:45} {rate}{figures.error}", flush=True)
    points: dict[str, dict[int, Point]] = {}
    for (name, milliseconds), runs in found.items():
        if valid := [one for one in runs if not one.error]:
            rate = median(one.messages / one.wall_seconds for one in valid)
            points.setdefault(name, {})[milliseconds] = Point(rate, median(one.microseconds for one in valid))
    told = ", ".join(
        f"{name}: {machine[name]}" for name in ("date", "checkout", "broker", "CPU", "Python", "load before")
    )
    return points, f"{told}; load after: {load_averages()}"


def format_rows(points: dict[str, dict[int, Point]]) -> str:
    """Return the table as Markdown, the fastest client over 15 ms first."""
    rows = [
        "| client | " + " | ".join(f"{one} ms" for one in MILLISECONDS) + " |",
        "|---|" + "--:|" * len(MILLISECONDS),
    ]
    for name, by_distance in sorted(points.items(), key=lambda item: -item[1].get(15, Point(0, 0)).rate):
        cells = [
            f"{point.rate:,.0f} ({point.microseconds:.0f} µs)" if (point := by_distance.get(one)) else "not run"
            for one in MILLISECONDS
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def write(points: dict[str, dict[int, Point]], machine: str, options: argparse.Namespace) -> None:
    command = " ".join(["python -m benchmarks.latency", *sys.argv[1:]])
    figure = "that of one run" if options.rounds == 1 else f"the median of {options.rounds} runs"
    cores = machine.partition(" cores")[0].rpartition(" ")[2]
    text = HEAD.format(figure=figure, command=command, table=format_rows(points), cores=cores, machine=machine)
    PAGE.write_text(text)
    lines = {
        "rates": {name: [[one, point.rate] for one, point in found.items()] for name, found in points.items()},
        "ours": [name for name in points if name.startswith(SMARTPIPE)],
        "limits": {BARE: IN_FLIGHT[BARE]},
        "cpu": 1e6 / points[DEFAULT][0].microseconds,
    }
    data = options.cache / "latency.json"
    data.write_text(json.dumps(lines))
    python = str(install_python(PICTURE, options.cache))
    script = str(Path(__file__).parent / "latency_picture.py")
    subprocess.run([python, script, str(data), str(SVG), str(options.cache / "latency.png")], check=True)
    print(f"written: {PAGE.relative_to(ROOT)} and {SVG.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description="Measure over distances.")
    parser.add_argument("--rounds", type=int, default=3, help="number of runs for each figure; default 3")
    parser.add_argument("--messages", type=int, default=1_000, help=f"as for benchmarks.compare, after {WARM_UP}")
    parser.add_argument("--only", default="", help="run only clients whose name contains this text; write no files")
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-compare", help="directory for venvs and fauxqs")
    options = parser.parse_args()
    points, machine = measure([one for one in FAR_CONSUMERS if options.only in one.name], options)
    print(format_rows(points))
    if not options.only:
        write(points, machine, options)


if __name__ == "__main__":
    main()
