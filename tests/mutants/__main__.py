"""``python -m tests.mutants``: change the source in random places, and find the changes that no test notices."""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from tests.mutants.run import TESTS, record_contexts, run_mutants
from tests.mutants.sample import choose_mutants
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutants.run import Result

JUDGED = Path(__file__).with_name("judged.toml")
CACHE = ROOT / ".mutants" / "contexts.json"
TARGET_PERCENT, FOLDER_PERCENT = 95.0, 90.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="Sample changes that tests must notice."
    )
    parser.add_argument("--seed", type=int, default=3, help="seed of the sample; default 3")
    parser.add_argument("--count", type=int, default=12, help="number of mutants in each folder; default 12")
    parser.add_argument(
        "--folder", action="append", default=[], help="only this folder of src/smartpipe; may be repeated"
    )
    parser.add_argument("--processes", type=int, default=2, help="number of mutants that run concurrently; default 2")
    parser.add_argument("--tests", nargs="+", default=TESTS, help=f"tests to choose from; default {' '.join(TESTS)}")
    options = parser.parse_args()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    mutants = choose_mutants(options.seed, options.count, options.folder)
    contexts = record_contexts(CACHE, options.processes, options.tests)
    judged = read_judged()
    results = []
    for result in run_mutants(mutants, contexts, options.processes):
        results.append(result)
        if result.verdict in {"survived", "not run"} and not judged.knows(result):
            console.print(f"{result.verdict} ({result.tests} tests): {describe(result)}")
    for line in format_scores(results, judged):
        console.print(line)
    return 0 if is_good(results, judged) else 1


class Judged(NamedTuple):
    """Survivors that need no test: their descriptions, and patterns that match whole descriptions."""

    survivors: frozenset[str]
    patterns: tuple[re.Pattern[str], ...] = ()

    def knows(self, result: Result) -> bool:
        found = describe(result)
        return found in self.survivors or any(pattern.fullmatch(found) for pattern in self.patterns)


def read_judged() -> Judged:
    """Return the survivors that were judged."""
    found = tomllib.loads(JUDGED.read_text())
    return Judged(
        frozenset(one["mutant"] for one in found["survivors"]),
        tuple(re.compile(one["pattern"]) for one in found["rules"]),
    )


def describe(result: Result) -> str:
    return f"{result.mutant.file.removeprefix('src/smartpipe/')}: {result.mutant.describe()}"


def _count(results: Sequence[Result], judged: Judged) -> tuple[int, int, int]:
    """Return the numbers of noticed, judged and unnoticed mutants."""
    unnoticed = [result for result in results if result.verdict in {"survived", "not run"}]
    known = sum(map(judged.knows, unnoticed))
    return len(results) - len(unnoticed), known, len(unnoticed) - known


def _percent(noticed: int, unnoticed: int) -> float:
    return 100.0 * noticed / max(1, noticed + unnoticed)


def format_scores(results: Sequence[Result], judged: Judged) -> list[str]:
    """Return the score of each folder: the share of noticed mutants, without those that were judged."""
    lines = []
    folders = sorted({result.mutant.folder for result in results})
    for name, found in [
        *((folder, [result for result in results if result.mutant.folder == folder]) for folder in folders),
        ("all", results),
    ]:
        noticed, known, unnoticed = _count(found, judged)
        timeouts = Counter(result.verdict for result in found)["timeout"]
        lines.append(
            f"{name:12} {_percent(noticed, unnoticed):5.1f} %: {noticed} noticed ({timeouts} by a timeout), "
            f"{unnoticed} not, {known} judged"
        )
    return lines


def is_good(results: Sequence[Result], judged: Judged) -> bool:
    folders = {result.mutant.folder for result in results}
    for folder in folders:
        noticed, _, unnoticed = _count([one for one in results if one.mutant.folder == folder], judged)
        if _percent(noticed, unnoticed) < FOLDER_PERCENT:
            return False
    noticed, _, unnoticed = _count(results, judged)
    return _percent(noticed, unnoticed) >= TARGET_PERCENT


if __name__ == "__main__":
    sys.exit(main())
