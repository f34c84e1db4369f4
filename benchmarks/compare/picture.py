"""Draw a run with matplotlib, in a separate venv: ``picture.py LINES.json PICTURE.svg [PICTURE.png]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

OURS, BARE, OTHERS = "#1a7f64", "#4a4a4a", "#b9bec6"
TEXT = "#222222"
MIN_MICROSECONDS, LABEL_FACTOR = 5, 2.2  # the start of the axis, and the space for labels at its end
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1}


def draw_panel(axes: Any, title: str, lines: list[dict[str, Any]], bare: str, most: float) -> None:
    """Draw part table as bars, the fastest client on top, with median, spread and ratio."""
    names = [line["name"] for line in lines]
    middles = [line["middle"] for line in lines]
    spread = [
        [line["middle"] - line["least"] for line in lines],
        [line["most"] - line["middle"] for line in lines],
    ]
    colors = [OURS if name.startswith("smartpipe") else BARE if name == bare else OTHERS for name in names]
    axes.barh(names, middles, color=colors, xerr=spread, error_kw={"ecolor": "#777777", "lw": 1, "capsize": 2})
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(MIN_MICROSECONDS, most * LABEL_FACTOR)
    for row, line in enumerate(lines):
        ratio = "" if line["ratio"] is None or line["name"] == bare else f"   {line['ratio']:.2f} of bare"
        axes.text(
            line["most"] * 1.08, row, f"{line['middle']:.0f} µs{ratio}", va="center", fontsize=9, color=TEXT, bbox=LABEL
        )
    base = next((line["middle"] for line in lines if line["name"] == bare), None)
    if base:
        axes.axvline(base, color=BARE, lw=0.8, ls=":", zorder=0)
    axes.set_title(title, loc="left", fontsize=11, color=TEXT)
    axes.tick_params(labelsize=9, colors=TEXT, length=0)
    axes.get_xaxis().set_visible(False)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text())
    mpl.rcParams["svg.hashsalt"] = "smartpipe"  # the same figures must yield the same file
    heights = [len(part["lines"]) for part in data["panels"]]
    inches = 0.42 * sum(heights) + 2
    figure, panels = plt.subplots(len(heights), 1, figsize=(9.5, inches), gridspec_kw={"height_ratios": heights})
    most = max(line["most"] for part in data["panels"] for line in part["lines"])
    for axes, part in zip(panels, data["panels"], strict=True):
        draw_panel(axes, part["title"], part["lines"], data["bare"], most)
    figure.suptitle("CPU of the client per message: median and spread, logarithmic", x=0.01, ha="left", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / inches))  # the title has the rest
    for path in sys.argv[2:]:
        metadata = {"Date": None} if path.endswith(".svg") else None
        figure.savefig(path, dpi=130, metadata=metadata)


if __name__ == "__main__":
    main()
