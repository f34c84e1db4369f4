"""Draw rates over distances with matplotlib, in a separate venv: ``latency_picture.py DATA.json SVG PNG``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

OURS, BARE, OTHERS, TEXT = ("#1a7f64", "#5fb89e", "#0f4c3a"), "#4a4a4a", "#b0b5bd", "#222222"
ROUND_TRIPS = 2
LABEL_FACTOR = 0.84
"""The distance of two labels on the logarithmic axis."""


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text())
    mpl.rcParams["svg.hashsalt"] = "smartpipe"  # the same figures must yield the same file
    figure, axes = plt.subplots(figsize=(9.5, 6))
    ours, lowest = iter(OURS), math.inf
    for name, points in sorted(data["rates"].items(), key=lambda item: -item[1][-1][1]):
        mine = name in data["ours"]
        color = next(ours) if mine else BARE if name in data["limits"] else OTHERS
        distances, rates = zip(*points, strict=True)
        axes.plot(range(len(distances)), rates, color=color, lw=2.2 if mine else 1.2, marker="o", ms=5 if mine else 3)
        lowest = min(rates[-1], lowest * LABEL_FACTOR)
        axes.text(len(distances) - 0.95, lowest, name, va="center", fontsize=8, color=color if mine else TEXT)
    for in_flight in data["limits"].values():
        places = [(place, distance) for place, distance in enumerate(distances) if distance]
        axes.plot(
            [place for place, _ in places],
            [in_flight / (ROUND_TRIPS * distance / 1_000) for _, distance in places],
            color=BARE, lw=1, ls="--",
        )  # fmt: skip
    axes.axhline(data["cpu"], color=OURS[0], lw=1, ls=":")
    axes.text(0, data["cpu"] * 1.06, "one core at smartpipe's CPU time for a message", fontsize=8, color=OURS[0])
    axes.set_yscale("log")
    axes.set_xticks(range(len(distances)), [f"{distance} ms" for distance in distances])
    axes.set_xlim(-0.15, len(distances) - 1 + 1.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("Messages per second over the round trip to the broker, logarithmic", loc="left", fontsize=12)
    axes.grid(axis="y", color="#eeeeee")
    axes.tick_params(labelsize=9, colors=TEXT, length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    for path in sys.argv[2:]:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.endswith(".svg") else None)


if __name__ == "__main__":
    main()
