"""Compare smartpipe with similar libraries: ``python -m benchmarks.compare``, or ``make compare``.

It creates a venv for each client, starts a broker, and runs every client once in each round, in rotating order. It
writes ``benchmarks/RESULTS.md`` and ``benchmarks/results.svg``, and the figures to ``figures.json`` next to the venvs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare.broker import put_at_distance, run_broker
from benchmarks.compare.contenders import BARE, IDLE, PICTURE, TABLES
from benchmarks.compare.machine import describe_machine, load_averages
from benchmarks.compare.report import build_page, figures_of
from benchmarks.compare.runs import WARM_UP, run
from benchmarks.compare.table import Figures, build_lines
from benchmarks.compare.venvs import ROOT, install_python

if TYPE_CHECKING:
    from benchmarks.compare.contenders import Contender
    from benchmarks.compare.report import Runs

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SVG = ROOT / "benchmarks" / "results.svg"
QUICK_ROUNDS, QUICK_MESSAGES = 1, 200


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--messages",
        type=int,
        default=1_000,
        help="messages of a run for each unit of a client's weight (default: 1000)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run one round of few messages to check that all clients work; write no files",
    )
    parser.add_argument("--only", default="", help="run only clients whose name contains this text; write no files")
    parser.add_argument("--table", default="", help=f"run only one of {', '.join(TABLES)}; write no files")
    parser.add_argument(
        "--render", action="store_true", help="write the table and the picture again from the figures of the last run"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-compare", help="directory for venvs and fauxqs")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> tuple[Runs, dict[str, str]]:
    """Run every client in every round."""
    rounds, messages_per_weight = (
        (QUICK_ROUNDS, QUICK_MESSAGES) if arguments.quick else (arguments.rounds, arguments.messages)
    )
    chosen = [
        (key, one)
        for key, table in TABLES.items()
        if arguments.table in ("", key)
        for one in table.contenders
        if arguments.only in one.name
    ]
    venvs = {one.venv for _, one in chosen} | {IDLE.venv}
    print(f"installing missing packages into {arguments.cache}")
    pythons = {venv: install_python(venv, arguments.cache) for venv in sorted(venvs, key=lambda venv: venv.name)}
    runs: Runs = {key: {one.name: [] for of, one in chosen if of == key} for key in TABLES}
    with run_broker(arguments.cache / "node") as broker:
        machine = describe_machine(broker.name, " ".join(["python -m benchmarks.compare", *sys.argv[1:]]))
        for number in range(rounds):
            turn = number * len(chosen) // rounds
            for key, one in chosen[turn:] + chosen[:turn]:
                with put_at_distance(broker, TABLES[key].milliseconds) as placed:
                    figures = run(
                        one, TABLES[key].mode, pythons[one.venv], placed, messages_per_weight=messages_per_weight
                    )
                runs[key][one.name].append(figures)
                print_result(f"{number + 1}/{rounds} {key}", one, figures)
        idle = run(IDLE, "idle", pythons[IDLE.venv], broker, messages_per_weight=messages_per_weight)
        print(f"idle: {100 * idle.cpu_seconds / idle.wall_seconds:.2f} %" if not idle.error else f"idle: {idle.error}")
    runs["idle"] = {IDLE.name: [idle]}
    return runs, {**machine, "load after": load_averages()}


def print_result(step: str, contender: Contender, figures: Figures) -> None:
    result = (
        figures.error
        or f"{figures.microseconds:8.1f} µs CPU, {figures.messages / figures.wall_seconds:8.0f} per second"
    )
    print(f"{step:20} {contender.name:40} {result}", flush=True)


def write(runs: Runs, machine: dict[str, str], cache: Path) -> None:
    """Write the page and the picture."""
    RESULTS.write_text(build_page(runs, machine, warm=WARM_UP))
    panels: list[dict[str, Any]] = [
        {
            "title": table.title,
            "lines": [line._asdict() for line in build_lines(runs[key], bare=BARE) if not line.error],
        }
        for key, table in TABLES.items()
    ]
    lines_path = cache / "lines.json"
    lines_path.write_text(json.dumps({"bare": BARE, "panels": panels}))
    script = str(Path(__file__).parent / "picture.py")
    png = str(cache / "results.png")
    subprocess.run([str(install_python(PICTURE, cache)), script, str(lines_path), str(SVG), png], check=True)
    print(f"written: {RESULTS.relative_to(ROOT)}, {SVG.relative_to(ROOT)}, and as a bitmap {png}")


def main() -> int:
    """Return 1 if a run is not valid."""
    arguments = parse_options()
    figures_path = arguments.cache / "figures.json"
    if arguments.render:
        saved = json.loads(figures_path.read_text())
        write(figures_of(saved["runs"]), saved["machine"], arguments.cache)
        return 0
    runs, machine = measure(arguments)
    if not (arguments.quick or arguments.only or arguments.table):
        figures_path.write_text(json.dumps({"runs": runs, "machine": machine}))
        write(runs, machine, arguments.cache)
    return int(any(one.error for clients in runs.values() for found in clients.values() for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
