"""``python -m tests.soak``: run producers and services under random kills and faults, and count every effect."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import TYPE_CHECKING

from benchmarks.compare.machine import describe_machine
from rich.console import Console

from tests.soak.flood import Flood, run_flood
from tests.soak.page import PICTURE, format_flood, format_soak, write_section
from tests.soak.plot import plot
from tests.soak.record import Record
from tests.soak.run import run_soak
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORD = ROOT / ".soak" / "record.json"
PAGE_MINUTES = 60.0
PAGE_POISON = 200_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Run the soak.")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="duration of the disturbances; default 60, and then docs/soak.md is written",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices; default 1")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="events of each class per second, from each of two producers; default 1"
    )
    parser.add_argument(
        "--poison",
        type=int,
        default=0,
        metavar="COUNT",
        help="instead, measure a worker that gets this number of poison messages",
    )
    parser.add_argument("--render", action="store_true", help="instead, write the page and the picture of the last run")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs every __exit__, which end the processes
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the proxy's own connections are cut on purpose
    console = Console(width=100 if not sys.stdout.isatty() else None, highlight=False, markup=False)
    if options.poison:
        return _run_flood(options.poison, console)
    if options.render:
        record = Record.read(RECORD)
    else:
        command = f"`python -m tests.soak --minutes {options.minutes:g} --seed {options.seed} --rate {options.rate:g}`"
        record = Record(
            minutes=options.minutes,
            seed=options.seed,
            rate=options.rate,
            machine=describe_machine("ministack", command),
        )
        run_soak(record, lambda line: console.print(line))
        record.write(RECORD)
    plot(record, RECORD.with_suffix(".svg"))
    if record.minutes >= PAGE_MINUTES or options.render:
        plot(record, PICTURE)
        write_section("soak", format_soak(record))
    return _print_result(console, format_soak(record), record.violations)


def _run_flood(count: int, console: Console) -> int:
    flood = Flood(poison=count, machine=describe_machine("ministack", f"`python -m tests.soak --poison {count}`"))
    run_flood(flood, lambda line: console.print(line))
    if count >= PAGE_POISON:
        write_section("poison", format_flood(flood))
    return _print_result(console, format_flood(flood), flood.violations)


def _print_result(console: Console, text: str, violations: Sequence[str]) -> int:
    console.print(text)
    for violation in violations:
        console.print(f"BROKEN: {violation}")
    console.print("FAILED" if violations else "All promises were kept.")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
