"""``python -m tests.chaos``: run all scenarios, print the table, and write docs/delivery-guarantees.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from rich.console import Console

from tests.chaos.pool import read_versions, run_all
from tests.chaos.report import Run, build_page, build_table
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.servers import RunSize
from tests.support.processes import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Run the crash matrix.")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices; default 1")
    parser.add_argument("--events", type=int, default=100, help="number of events in each scenario; default 100")
    parser.add_argument("--lanes", type=int, default=3, help="number of scenarios that run concurrently; default 3")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=list(SCENARIOS),
        metavar="KEY",
        help="run only this scenario; may be repeated",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs every __exit__, which end the processes
    console = Console(width=100 if not sys.stdout.isatty() else None)
    size, started = RunSize(events=arguments.events), time.monotonic()
    keys, outcomes = arguments.scenario or list(SCENARIOS), {}
    for outcome in run_all(keys, seed=arguments.seed, size=size, lanes=arguments.lanes):
        outcomes[outcome.key] = outcome
        result = "; ".join(outcome.violations) or "ok"
        console.print(f"{outcome.key}: {result}, {outcome.seconds:.0f} s", highlight=False, markup=False)
        for line in outcome.unexpected_exits:
            console.print(f"  ended unexpectedly: {line}", highlight=False, markup=False)
    in_order = [outcomes[key] for key in keys]
    run = Run(arguments.seed, size, arguments.lanes, time.monotonic() - started)
    if not arguments.scenario:
        (ROOT / "docs" / "delivery-guarantees.md").write_text(build_page(in_order, run, read_versions()))
    console.print(build_table(in_order))
    return 1 if any(outcome.violations for outcome in in_order) else 0


if __name__ == "__main__":
    sys.exit(main())
