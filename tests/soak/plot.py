"""Draw a soak: throughput, messages in the queues, memory and file descriptors, with all disturbances."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tests.soak.disturbances import NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.soak.record import Record

INK, GRID, SHORT_LIVED = "#374151", "#e5e7eb", "#c3c8d0"
COLOURS = ("#1d4ed8", "#b45309", "#047857", "#7c3aed", "#be185d")
SHADES = ("#fde68a", "#fecaca", "#bfdbfe", "#ddd6fe", "#fbcfe8", "#bbf7d0", "#e5e7eb", "#fed7aa")
SIZE_INCHES = (10.0, 11.0)
MAX_POINTS = 120
DOTS_PER_INCH = 110


def plot(record: Record, path: Path) -> None:
    """Write the picture to *path*, as SVG or PNG by its suffix."""
    mpl.rcParams["svg.hashsalt"] = "smartpipe"  # the same record must yield the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.suptitle(
        f"{record.minutes:g} minutes of kills and faults: {record.effects:,} effects, {record.lost} lost, "
        f"{record.doubled} doubled, {record.stranded} stranded",
        fontsize=12, x=0.01, ha="left", color=INK,
    )  # fmt: skip
    panels = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [1, 1, 1.6, 1.6]})
    _draw_throughput(panels[0], record)
    _draw_queues(panels[1], record)
    _draw_processes(panels[2], record, 1, 1e6, "resident set, MB")
    _draw_processes(panels[3], record, 2, 1, "file descriptors")
    for axes in panels:
        for name, start, end in record.disturbances:
            axes.axvspan(start / 60, end / 60, color=SHADES[NAMES.index(name)], alpha=0.45, lw=0, zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, record.progress[-1][0] / 60)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK)
    panels[-1].set_xlabel("minutes", color=INK)
    figure.legend(
        handles=_legend(record), loc="outside lower center", ncols=5, frameon=False, labelcolor=INK, fontsize=8
    )
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_throughput(axes: Any, record: Record) -> None:
    points = record.progress[:: max(1, len(record.progress) // MAX_POINTS)]
    pairs = list(itertools.pairwise(points))
    minutes = [after[0] / 60 for _, after in pairs]
    for column, colour, label in ((1, COLOURS[1], "accepted"), (2, COLOURS[0], "effects")):
        rates = [(after[column] - before[column]) / (after[0] - before[0]) for before, after in pairs]
        axes.plot(minutes, rates, color=colour, lw=1.2, label=label)
    axes.plot(
        [second / 60 for second in record.kills], [0.0] * len(record.kills), "|", color="#dc2626", ms=9, label="kill"
    )
    axes.set_ylabel("per second", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=3, loc="upper right")


def _draw_queues(axes: Any, record: Record) -> None:
    points = record.progress
    axes.plot([point[0] / 60 for point in points], [point[3] for point in points], color=INK, lw=0.8)
    axes.set_ylabel("in queues and outbox", color=INK)


def _draw_processes(axes: Any, record: Record, column: int, unit: float, label: str) -> None:
    """Draw one line for each process: coloured if it is never killed, otherwise grey."""
    for key, all_samples in record.samples.items():
        spared = key in record.spared
        samples = all_samples[:: max(1, len(all_samples) // MAX_POINTS)]
        axes.plot(
            [sample.seconds / 60 for sample in samples],
            [sample[column] / unit for sample in samples],
            color=COLOURS[record.spared.index(key)] if spared else SHORT_LIVED,
            lw=1.6 if spared else 0.7,
            zorder=3 if spared else 2,
        )
    axes.set_ylabel(label, color=INK)


def _legend(record: Record) -> list[Any]:
    long_lived = [
        Line2D([], [], color=COLOURS[position], label=f"{record.names[key]}, never killed")
        for position, key in enumerate(record.spared)
    ]
    short_lived = Line2D([], [], color=SHORT_LIVED, label="killed, stopped and replaced")
    shades = [Patch(color=SHADES[position], alpha=0.45, label=name) for position, name in enumerate(NAMES)]
    return [*long_lived, short_lived, *shades]
