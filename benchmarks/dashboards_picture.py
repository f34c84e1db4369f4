"""Draw a dashboard with matplotlib, each panel from the answer of Prometheus to the panel's own query."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.prometheus import Prometheus

COLORS = ("#1a7f64", "#b45309", "#1d4ed8", "#be185d", "#6d28d9", "#0e7490", "#4d7c0f", "#9a3412", "#475569", "#a16207")
INK, GRID, FRAME, RED = "#1f2937", "#e5e7eb", "#d1d5db", "#b91c1c"
UNIT_INCHES = 0.30
WIDTH_INCHES = 17.0
DOTS_PER_INCH = 75
MAX_LEGEND = 6
VISIBLE = 0.01
SECONDS_UNITS = ((7_200, 3_600, "h"), (120, 60, "min"), (1, 1, "s"), (0, 0.001, "ms"))
"""From which value a unit is used, and its seconds."""


def draw(
    dashboard: Mapping[str, Any],
    prometheus: Prometheus,
    variables: Mapping[str, str],
    times: tuple[float, float, float],
    path: Path,
) -> None:
    """Draw the dashboard to *path*, for *times*: start, end and step in seconds since 1970."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1.6
    figure = Figure(figsize=(WIDTH_INCHES, rows * UNIT_INCHES), facecolor="white")
    figure.text(0.008, 1 - 0.8 / rows, dashboard["title"], fontsize=14, color=INK, va="center", weight="bold")
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        top, height = (place["y"] + 1.6) / rows, place["h"] / rows
        if panel["type"] == "row":
            figure.text(0.008, 1 - top - height / 2, panel["title"], fontsize=11.5, color=INK, va="center")
            continue
        text = 0.9 / rows
        figure.text(left + 0.012, 1 - top - text, panel["title"], fontsize=9.5, color=INK, va="center", weight="bold")
        inner = [left + 0.042, 1 - top - height + 2.4 / rows, width - 0.056, height - 4.2 / rows]
        if panel["type"] in {"stat", "text", "table"}:
            inner = [left + 0.008, 1 - top - height + 0.3 / rows, width - 0.016, height - 1.9 / rows]
        axes = figure.add_axes(inner)
        _DRAW[panel["type"]](axes, panel, _Source(prometheus, variables, times))
    figure.savefig(path, dpi=DOTS_PER_INCH)


class _Source:
    """Answers the queries of panels."""

    def __init__(self, prometheus: Prometheus, variables: Mapping[str, str], times: tuple[float, float, float]) -> None:
        self._prometheus, self._variables, self.times = prometheus, variables, times

    def now(self, target: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._prometheus.query(self._replace(target["expr"]))

    def series(self, target: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return the legend, the times from the start, and the values of each line."""
        found = self._prometheus.query_range(self._replace(target["expr"]), *self.times)
        lines = []
        for one in found:
            seconds, values = zip(*one["values"], strict=True)
            legend = re.sub(
                r"\{\{(\w+)\}\}", lambda name, one=one: one["metric"].get(name[1], ""), target["legendFormat"]
            )
            numbers = np.array([float(value) for value in values])
            lines.append((legend, np.array(seconds) - self.times[0], numbers))
        return sorted(lines, key=lambda line: line[0])

    def _replace(self, expression: str) -> str:
        for name, value in self._variables.items():
            expression = expression.replace(name, value)
        return expression


def _draw_lines(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    lines = [line for target in panel["targets"] for line in source.series(target)]
    custom = panel["fieldConfig"]["defaults"]["custom"]
    _prepare(axes, source)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format(value, unit)))
    if not any(np.isfinite(values).any() for _, _, values in lines):
        _say(axes, "no data")
        return
    if custom["stacking"]["mode"] == "normal":
        _stack(axes, [line for line in lines if np.nansum(line[2]) > 0], source)
    else:
        for color, (legend, seconds, values) in zip(_colors(len(lines)), lines, strict=True):
            axes.plot(seconds, values, color=color, lw=1.3, label=legend)
    axes.set_ylim(bottom=0)
    if not any(np.nanmax(values) > 0 for _, _, values in lines if np.isfinite(values).any()):
        axes.set_ylim(0, 1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[:MAX_LEGEND], [label[-44:] for label in labels[:MAX_LEGEND]], loc="upper left", ncols=2,
        bbox_to_anchor=(-0.08, -0.1), fontsize=7, frameon=False, labelcolor=INK, borderaxespad=0.2,
        handlelength=1.2, columnspacing=1.2, labelspacing=0.25,
    )  # fmt: skip


def _stack(axes: Any, lines: Sequence[tuple[str, Any, Any]], source: _Source) -> None:
    start, end, step = source.times
    grid = np.arange(0, end - start + step, step)
    below = np.zeros(len(grid))
    for color, (legend, seconds, values) in zip(_colors(len(lines)), lines, strict=True):
        places = np.clip(np.round(seconds / step).astype(int), 0, len(grid) - 1)
        whole = np.zeros(len(grid))
        whole[places] = np.nan_to_num(values)
        axes.fill_between(grid, below, below + whole, color=color, alpha=0.55, lw=0.8, label=legend)
        below = below + whole


def _draw_heatmap(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    [target] = panel["targets"]
    lines = sorted(source.series(target), key=lambda line: float(line[0].replace("+Inf", "inf")))
    _prepare(axes, source)
    start, end, step = source.times
    grid = np.arange(0, end - start + step, step)
    cumulated = np.zeros((len(lines), len(grid)))
    for index, (_, seconds, values) in enumerate(lines):
        cumulated[index, np.clip(np.round(seconds / step).astype(int), 0, len(grid) - 1)] = np.nan_to_num(values)
    if not cumulated.any():
        _say(axes, "no data")
        return
    counts = np.diff(np.vstack([np.zeros(len(grid)), cumulated]), axis=0)
    used = [index for index in range(len(lines)) if counts[index].max() > VISIBLE]
    first, last = max(0, used[0] - 1), min(len(lines) - 1, used[-1] + 1)
    shown = np.ma.masked_less_equal(counts[first : last + 1], VISIBLE)
    axes.pcolormesh(grid, np.arange(last - first + 1), shown, cmap="Oranges", shading="nearest", rasterized=True)
    bounds = [line[0] for line in lines[first : last + 1]]
    axes.set_yticks(
        range(len(bounds)), [f"≤ {_format(float(one), 's')}" if one != "+Inf" else "more" for one in bounds]
    )
    axes.grid(visible=False)


def _draw_stat(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    _frame(axes)
    found = source.now(panel["targets"][0])
    value = float(found[0]["value"][1]) if found else float("nan")
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    is_red = any(step["color"] == "red" and value >= step["value"] for step in steps)
    text = "no data" if np.isnan(value) else _format(value, defaults["unit"])
    color = "#9ca3af" if np.isnan(value) else RED if is_red else "#1a7f64" if steps else INK
    axes.text(0.5, 0.5, text, fontsize=20, color=color, ha="center", va="center", transform=axes.transAxes)


def _draw_table(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    _frame(axes)
    labels = [one["metric"] for one in source.now(panel["targets"][0])]
    rows = [("alert", "severity", "service", "queue")]
    rows += [tuple(one.get(name, "") for name in ("alertname", "severity", "service", "queue")) for one in labels]
    _write_rows(axes, rows if len(rows) > 1 else [*rows, ("none",)])


def _draw_text(axes: Any, panel: Mapping[str, Any], source: _Source) -> None:
    _frame(axes)
    lines = [line for line in panel["options"]["content"].splitlines() if not line.startswith("|---")]
    _write_rows(axes, [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines])


def _write_rows(axes: Any, rows: Sequence[Sequence[str]]) -> None:
    for index, row in enumerate(rows):
        for place, cell in zip((0.02, 0.42, 0.62, 0.82), row, strict=False):
            weight = "bold" if index == 0 else "normal"
            axes.text(
                place, 0.92 - index * 0.13, cell, fontsize=8.5, color=INK, va="top", weight=weight,
                transform=axes.transAxes,
            )  # fmt: skip


def _prepare(axes: Any, source: _Source) -> None:
    start, end, _ = source.times
    axes.set_xlim(0, end - start)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=7, colors=INK, length=0)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(FRAME)


def _frame(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(FRAME)


def _say(axes: Any, text: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, fontsize=10, color="#9ca3af", ha="center", va="center", transform=axes.transAxes)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _format(value: float, unit: str) -> str:
    if unit == "s":
        _, seconds, name = next(one for one in SECONDS_UNITS if value >= one[0] or one[0] == 0)
        return f"{value / seconds:.3g} {name}" if value else "0"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    return f"{value:.3g}{'/s' if unit == 'reqps' else ''}"


_DRAW = {
    "timeseries": _draw_lines,
    "heatmap": _draw_heatmap,
    "stat": _draw_stat,
    "table": _draw_table,
    "text": _draw_text,
}
