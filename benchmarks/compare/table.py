"""Summarize the figures of all runs as a table: medians, spread and ratios. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MICRO = 1e6


class Figures(NamedTuple):
    """The figures of one run.

    Args:
        error: The reason why the run is not valid; empty if it is valid.
    """

    messages: int
    cpu_seconds: float
    wall_seconds: float
    versions: Mapping[str, str]
    error: str = ""

    @classmethod
    def invalid(cls, error: str) -> Self:
        """Return the figures of a run that is not valid."""
        return cls(0, 0.0, 0.0, {}, error)

    @property
    def microseconds(self) -> float:
        """CPU time per message, in µs."""
        return self.cpu_seconds / self.messages * MICRO


class Line(NamedTuple):
    """One client over all rounds. Times are CPU time per message, in µs.

    Args:
        rates: Messages per second of wall time in each run.
        ratio: The ratio of its median to that of the bare loop; None if either is missing.
        error: The reason why there are no figures.
    """

    name: str
    middle: float = 0.0
    least: float = 0.0
    most: float = 0.0
    rates: tuple[float, ...] = ()
    runs: int = 0
    ratio: float | None = None
    versions: Mapping[str, str] = {}
    error: str = ""

    @property
    def per_second(self) -> float:
        """The median of its messages per second; 0 if it has not run."""
        return median(self.rates) if self.rates else 0.0


def build_lines(runs: Mapping[str, Sequence[Figures]], *, bare: str) -> list[Line]:
    """Summarize the runs of each client, the fastest client first. Clients without a valid run come last.

    Args:
        bare: The name of the client that ratios refer to.
    """
    summaries = [_build_line(name, figures) for name, figures in runs.items()]
    base = next((line.middle for line in summaries if line.name == bare), 0.0)
    rated = [line._replace(ratio=line.middle / base if base and line.middle else None) for line in summaries]
    return sorted(rated, key=lambda line: (bool(line.error), line.middle))


def _build_line(name: str, figures: Sequence[Figures]) -> Line:
    valid = [run for run in figures if not run.error]
    if not valid:
        return Line(name, error=figures[0].error if figures else "not run")
    microseconds = [run.microseconds for run in valid]
    rates = tuple(run.messages / run.wall_seconds for run in valid)
    return Line(
        name, median(microseconds), min(microseconds), max(microseconds), rates, len(valid), versions=valid[0].versions
    )


def format_table(found: Sequence[Line], notes: Mapping[str, str]) -> str:
    """Return the table as Markdown."""
    rows = ["| client | CPU µs per message | min to max | relative to bare loop | setup |", "|---|--:|--:|--:|---|"]
    for line in found:
        if line.error:
            rows.append(f"| {line.name} | not run: {_format_cell(line.error)} | | | {notes[line.name]} |")
            continue
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        spread = f"{line.least:.0f} to {line.most:.0f}"
        rows.append(f"| {line.name} | {line.middle:.0f} | {spread} | {ratio} | {notes[line.name]} |")
    return "\n".join(rows)


def format_rates(found: Sequence[Line], near: Sequence[Line], notes: Mapping[str, str]) -> str:
    """Return the table of messages per second as Markdown, the fastest client first.

    Args:
        near: The same clients without a distance.
    """
    rows = [
        "| client | messages per second | min to max | relative to no distance | CPU µs per message | setup |",
        "|---|--:|--:|--:|--:|---|",
    ]
    without = {line.name: line.per_second for line in near}
    for line in sorted(found, key=lambda line: (bool(line.error), -line.per_second)):
        if line.error:
            rows.append(f"| {line.name} | not run: {_format_cell(line.error)} | | | | {notes[line.name]} |")
            continue
        share = f"{line.per_second / without[line.name]:.2f}" if without.get(line.name) else ""
        spread = f"{min(line.rates):,.0f} to {max(line.rates):,.0f}"
        rows.append(
            f"| {line.name} | {line.per_second:,.0f} | {spread} | {share} | {line.middle:.0f} | {notes[line.name]} |"
        )
    return "\n".join(rows)


def _format_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
