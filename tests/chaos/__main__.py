"""``python -m tests.chaos``: the whole matrix, its table, and docs/delivery-guarantees.md."""

from __future__ import annotations

import argparse
import signal
import sys

from rich.console import Console

from tests.chaos.driver import play
from tests.chaos.report import page, table
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stand import Extent, Stand
from tests.support.processes import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="The crash matrix.")
    parser.add_argument("--seed", type=int, default=1, help="of all lots; default 1")
    parser.add_argument("--events", type=int, default=100, help="in each scenario; default 100")
    keys = [scenario.key for scenario in SCENARIOS]
    parser.add_argument("--scenario", action="append", choices=keys, help="only this one; may be repeated")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every __exit__, which end the processes
    console = Console(width=100 if not sys.stdout.isatty() else None)
    outcomes, extent = [], Extent(events=asked.events)
    with Stand() as stand:
        for scenario in SCENARIOS:
            if asked.scenario and scenario.key not in asked.scenario:
                continue
            outcome = play(stand, scenario, seed=asked.seed, extent=extent)
            outcomes.append(outcome)
            told = "; ".join(outcome.broken) or "ok"
            console.print(f"{scenario.key}: {told}, {outcome.seconds:.0f} s", highlight=False)
            for line in outcome.ended:
                console.print(f"  ended by itself: {line}", highlight=False, markup=False)
        if not asked.scenario:
            written = page(outcomes, stand, seed=asked.seed, extent=extent)
            (ROOT / "docs" / "delivery-guarantees.md").write_text(written)
    console.print(table(outcomes))
    return 1 if any(outcome.broken for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
