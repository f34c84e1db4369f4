"""smartpipe beside its peers, in one command: ``python -m benchmarks.compare``, or ``make compare``.

Makes a venv for each client, starts a broker, and runs every client once a round, in rotating order. Writes
``benchmarks/RESULTS.md`` and ``benchmarks/results.svg``; the figures stay in ``figures.json`` beside the venvs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare.broker import running
from benchmarks.compare.contenders import BARE, IDLE, PICTURE, TABLES
from benchmarks.compare.machine import described, load
from benchmarks.compare.report import TITLES, figures_of, report
from benchmarks.compare.runs import WARM, run
from benchmarks.compare.table import Figures, lines
from benchmarks.compare.venvs import ROOT, python_of

if TYPE_CHECKING:
    from benchmarks.compare.contenders import Contender
    from benchmarks.compare.report import Runs

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SVG = ROOT / "benchmarks" / "results.svg"
QUICK_ROUNDS, QUICK_THOUSAND = 1, 200


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--messages", type=int, default=1_000, help="of a run, times the client's weight (default: 1000)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of few messages, to see that all run; writes nothing"
    )
    parser.add_argument("--only", default="", help="clients whose name has this in it; writes nothing")
    parser.add_argument(
        "--render", action="store_true", help="write table and picture anew, from the last run's figures"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-compare", help="for venvs and fauxqs")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> tuple[Runs, dict[str, str]]:
    """Run every client in every round."""
    rounds, thousand = (QUICK_ROUNDS, QUICK_THOUSAND) if arguments.quick else (arguments.rounds, arguments.messages)
    chosen = [(what, one) for what, ones in TABLES.items() for one in ones if arguments.only in one.name]
    venvs = {one.venv for _, one in chosen} | {IDLE.venv}
    print(f"installing into {arguments.cache}, where it is not there yet")
    pythons = {venv: python_of(venv, arguments.cache) for venv in sorted(venvs, key=lambda venv: venv.name)}
    runs: Runs = {what: {one.name: [] for one in ones if arguments.only in one.name} for what, ones in TABLES.items()}
    with running(arguments.cache / "node") as broker:
        machine = described(broker.name, " ".join(["python -m benchmarks.compare", *sys.argv[1:]]))
        for number in range(rounds):
            turn = number * len(chosen) // rounds
            for what, one in chosen[turn:] + chosen[:turn]:
                figures = run(one, what, pythons[one.venv], broker, thousand=thousand)
                runs[what][one.name].append(figures)
                tell(f"{number + 1}/{rounds} {what}", one, figures)
        idle = run(IDLE, "idle", pythons[IDLE.venv], broker, thousand=thousand)
        print(f"idle: {100 * idle.cpu_seconds / idle.wall_seconds:.2f} %" if not idle.fault else f"idle: {idle.fault}")
    runs["idle"] = {IDLE.name: [idle]}
    return runs, {**machine, "load after": load()}


def tell(when: str, one: Contender, figures: Figures) -> None:
    said = figures.fault or f"{figures.micros:8.1f} µs CPU, {figures.messages / figures.wall_seconds:8.0f} a second"
    print(f"{when:20} {one.name:40} {said}", flush=True)


def write(runs: Runs, machine: dict[str, str], cache: Path) -> None:
    """Write the page and the picture."""
    RESULTS.write_text(report(runs, machine, warm=WARM))
    panels: list[dict[str, Any]] = [
        {"title": title, "lines": [line._asdict() for line in lines(runs[what], bare=BARE) if not line.fault]}
        for what, title in TITLES.items()
    ]
    given = cache / "lines.json"
    given.write_text(json.dumps({"bare": BARE, "panels": panels}))
    script = str(Path(__file__).parent / "picture.py")
    png = str(cache / "results.png")
    subprocess.run([str(python_of(PICTURE, cache)), script, str(given), str(SVG), png], check=True)
    print(f"written: {RESULTS.relative_to(ROOT)}, {SVG.relative_to(ROOT)}; the same as a bitmap: {png}")


def main() -> int:
    """Return 1 if a run does not count."""
    arguments = options()
    kept = arguments.cache / "figures.json"
    if arguments.render:
        read = json.loads(kept.read_text())
        write(figures_of(read["runs"]), read["machine"], arguments.cache)
        return 0
    runs, machine = measure(arguments)
    if not (arguments.quick or arguments.only):
        kept.write_text(json.dumps({"runs": runs, "machine": machine}))
        write(runs, machine, arguments.cache)
    return int(any(one.fault for clients in runs.values() for found in clients.values() for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
