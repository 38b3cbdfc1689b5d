"""The demo's plot: accuracy and speed against the depth of reuse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".svg", ".pdf")
LOSS_SHOWN = 0.005
"""Depths that lose more accuracy than this are drawn hollow."""


def plot_depths(
    depths: Mapping[str, Mapping[str, Any]], path: Path, *, caption: str, safe_depth: int | None = None
) -> None:
    """Write the plot to `path` (its suffix, one of `SUFFIXES`, decides the format). Needs no display.

    `depths` is what `report.depth_figures` returns; `safe_depth` is marked as what the depth profile chooses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    at = [int(depth) for depth in depths]
    figure = Figure(figsize=(8.6, 3.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    quality, speed = figure.subplots(1, 2)

    quality.plot(at, [100 * f["accuracy"] for f in depths.values()], "o-", color="#1f6f8b", label="all questions")
    colours = [(d, 100 * f["accuracy_colour"]) for d, f in zip(at, depths.values(), strict=True)
               if f["accuracy_colour"] is not None]  # fmt: skip
    if colours:
        quality.plot(*zip(*colours, strict=True), "s--", color="#c8553d", label="“Which things are red?”")
    quality.set_ylim(-4, 104)
    quality.set_ylabel("right answers, %")
    quality.set_title("Accuracy", loc="left", fontweight="bold")

    ratios = [f["speedup_over_dual"] or 0.0 for f in depths.values()]
    best = max(f["accuracy"] for f in depths.values())
    speed.plot(at, ratios, "-", color="#1f6f8b")
    for depth, ratio, f in zip(at, ratios, depths.values(), strict=True):
        right = f["accuracy"] >= best - LOSS_SHOWN
        speed.plot([depth], [ratio], "o", color="#1f6f8b", markerfacecolor="#1f6f8b" if right else "white", zorder=3)
        speed.annotate(
            f"{ratio:.1f}×", (depth, ratio), (0, 8), textcoords="offset points", ha="center", fontsize=9, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    speed.plot([], [], "o", color="#1f6f8b", markerfacecolor="white", label="answers are lost")
    speed.legend(loc="lower right", fontsize=9, framealpha=1, edgecolor="none")
    speed.set_ylim(0, max([*ratios, 1.0]) * 1.2)
    speed.set_ylabel("tokens/s, times mode dual")
    speed.set_title("Speed", loc="left", fontweight="bold")

    for axes in (quality, speed):
        axes.set_xticks(at)
        axes.set_xlabel("layers in which the shared prefix is reused")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if safe_depth is not None:
            axes.axvline(
                safe_depth, color="#777777", linestyle=":", linewidth=1.5, label="what the depth profile allows"
            )
    quality.legend(loc="lower left", fontsize=9, framealpha=1, edgecolor="none")
    figure.supxlabel(caption, fontsize=8, color="#555555")
    figure.savefig(path)
