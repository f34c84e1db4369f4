"""From the figures of all runs to the lines of a table: medians, spread, ratios. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MICRO = 1e6


class Figures(NamedTuple):
    """What one run measured.

    Args:
        fault: Why it counts for nothing; empty where it does.
    """

    messages: int
    cpu_seconds: float
    wall_seconds: float
    versions: Mapping[str, str]
    fault: str = ""

    @classmethod
    def refused(cls, fault: str) -> Self:
        """A run that counts for nothing."""
        return cls(0, 0.0, 0.0, {}, fault)

    @property
    def micros(self) -> float:
        """CPU per message, in µs."""
        return self.cpu_seconds / self.messages * MICRO


class Line(NamedTuple):
    """One client over all rounds; times are µs of CPU per message.

    Args:
        ratio: Its median to that of the bare loop; None where either is missing.
        fault: Why there are no figures.
    """

    name: str
    middle: float = 0.0
    least: float = 0.0
    most: float = 0.0
    runs: int = 0
    ratio: float | None = None
    versions: Mapping[str, str] = {}
    fault: str = ""


def lines(runs: Mapping[str, Sequence[Figures]], *, bare: str) -> list[Line]:
    """Sum up each client's runs, the quickest client first; those without a valid run come last.

    Args:
        bare: The name of the client that ratios are to.
    """
    summed = [_line(name, figures) for name, figures in runs.items()]
    base = next((line.middle for line in summed if line.name == bare), 0.0)
    rated = [line._replace(ratio=line.middle / base if base and line.middle else None) for line in summed]
    return sorted(rated, key=lambda line: (bool(line.fault), line.middle))


def _line(name: str, figures: Sequence[Figures]) -> Line:
    valid = [one for one in figures if not one.fault]
    if not valid:
        return Line(name, fault=figures[0].fault if figures else "not run")
    micros = [one.micros for one in valid]
    return Line(name, median(micros), min(micros), max(micros), len(valid), versions=valid[0].versions)


def markdown(found: Sequence[Line], notes: Mapping[str, str]) -> str:
    """The table as Markdown."""
    rows = ["| client | CPU µs per message | min to max | relative to bare loop | setup |", "|---|--:|--:|--:|---|"]
    for line in found:
        if line.fault:
            rows.append(f"| {line.name} | not run: {_cell(line.fault)} | | | {notes[line.name]} |")
            continue
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        spread = f"{line.least:.0f} to {line.most:.0f}"
        rows.append(f"| {line.name} | {line.middle:.0f} | {spread} | {ratio} | {notes[line.name]} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
