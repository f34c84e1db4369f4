"""Plot the figures: the latency of events, and the throughput over time."""

from __future__ import annotations

from math import log10
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from smartpipe.bench.figures import SLOT_SECONDS, TimelinePoint
from smartpipe.bench.report import format_milliseconds, format_title, latency_warning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smartpipe.bench.figures import Figures

PUBLISHED, DELIVERED, INK, GRID = "#b45309", "#1d4ed8", "#374151", "#e5e7eb"
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
MARKED = (("p50", 50.0, "p50"), ("p90", 90.0, "p90"), ("p99", 99.0, "p99"), ("p99.9", 99.9, "p99_9"))
MAX_POINTS = 120
SIZE_INCHES = (10.0, 7.2)
DOTS_PER_INCH = 150


def plot(figures: Figures, path: Path) -> None:
    """Write the plot to *path*, as SVG or PNG by its suffix.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    first, second = format_title(figures)
    figure.suptitle(f"{first}\n{second}", fontsize=11, x=0.01, ha="left", color=INK)
    above, below = figure.subplots(2, 1)
    _draw_latency(above, figures)
    _draw_timeline(below, figures)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, which="both")
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_latency(axes: Any, figures: Figures) -> None:
    """Draw percentiles on the scale of HdrHistogram's own plots: each further nine is as wide as the one before."""
    axes.set_ylabel("publish → handled, ms", color=INK)
    axes.set_xlabel("percentile of deliveries", color=INK)
    latency = figures.latency
    if latency is None:
        return
    values = [seconds * 1_000 for _, seconds in latency.curve]
    axes.plot([_nines_of(percentile) for percentile, _ in latency.curve], values, color=DELIVERED, linewidth=2)
    highest = latency.curve[-1][0]
    for label, percentile, key in MARKED:
        if percentile <= highest:
            value = getattr(latency, key)
            where = (_nines_of(percentile), value * 1_000)
            axes.plot(*where, "o", color=DELIVERED, markersize=5)
            text = f"{label}  {format_milliseconds(value)} ms"
            axes.annotate(text, where, xytext=(7, -13), textcoords="offset points", ha="left", color=INK, fontsize=9)
    ticks = [percentile for percentile in TICKS if percentile <= highest]
    axes.set_xticks([_nines_of(percentile) for percentile in ticks], [f"{percentile:g} %" for percentile in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0, top=max(values) * 1.15)
    axes.yaxis.set_major_formatter(FuncFormatter(_with_commas))
    if warning := latency_warning(figures):
        axes.set_title(warning, loc="left", fontsize=8.5, color=PUBLISHED, wrap=True)


def _draw_timeline(axes: Any, figures: Figures) -> None:
    axes.set_ylabel("messages per second", color=INK)
    axes.set_xlabel("seconds since the first event was due", color=INK)
    points = downsample(figures.timeline)
    times = [point.seconds for point in points]
    queues = figures.load.queues
    for values, colour, label in (
        ([point.published_per_second for point in points], PUBLISHED, "published"),
        (
            [point.delivered_per_second for point in points],
            DELIVERED,
            f"delivered, {queues} per event" if queues > 1 else "delivered",
        ),
    ):
        axes.plot(times, values, color=colour, linewidth=2, label=label, drawstyle="steps-post")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(FuncFormatter(_with_commas))
    axes.legend(frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=2)


def downsample(timeline: Sequence[TimelinePoint]) -> list[TimelinePoint]:
    """Return the means of the timeline in at most 120 steps, with a last point at 0."""
    width = max(1, -(-len(timeline) // MAX_POINTS))
    groups = [timeline[first : first + width] for first in range(0, len(timeline), width)]
    steps = [
        group[0]._replace(
            published_per_second=sum(point.published_per_second for point in group) / len(group),
            delivered_per_second=sum(point.delivered_per_second for point in group) / len(group),
        )
        for group in groups
    ]
    if steps:
        steps.append(TimelinePoint(timeline[-1].seconds + SLOT_SECONDS, 0.0, 0.0))
    return steps


def _nines_of(percentile: float) -> float:
    """Return the x coordinate of a percentile: 0 for 0 %, 1 for 90 %, 2 for 99 %."""
    return -log10(1 - percentile / 100)


def _with_commas(value: float, _position: int) -> str:
    return f"{value:,g}"
