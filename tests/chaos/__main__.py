"""``python -m tests.chaos``: the whole matrix, its table, and docs/delivery-guarantees.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from rich.console import Console

from tests.chaos.lanes import play_all, versions
from tests.chaos.report import Run, page, table
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stand import Extent
from tests.support.processes import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="The crash matrix.")
    parser.add_argument("--seed", type=int, default=1, help="of all lots; default 1")
    parser.add_argument("--events", type=int, default=100, help="in each scenario; default 100")
    parser.add_argument("--lanes", type=int, default=3, help="so many scenarios side by side; default 3")
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), metavar="KEY", help="only this one; may be repeated"
    )
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every __exit__, which end the processes
    console = Console(width=100 if not sys.stdout.isatty() else None)
    extent, started = Extent(events=asked.events), time.monotonic()
    keys, outcomes = asked.scenario or list(SCENARIOS), {}
    for outcome in play_all(keys, seed=asked.seed, extent=extent, lanes=asked.lanes):
        outcomes[outcome.key] = outcome
        told = "; ".join(outcome.broken) or "ok"
        console.print(f"{outcome.key}: {told}, {outcome.seconds:.0f} s", highlight=False, markup=False)
        for line in outcome.ended:
            console.print(f"  ended by itself: {line}", highlight=False, markup=False)
    in_order = [outcomes[key] for key in keys]
    run = Run(asked.seed, extent, asked.lanes, time.monotonic() - started)
    if not asked.scenario:
        (ROOT / "docs" / "delivery-guarantees.md").write_text(page(in_order, run, versions()))
    console.print(table(in_order))
    return 1 if any(outcome.broken for outcome in in_order) else 0


if __name__ == "__main__":
    sys.exit(main())
