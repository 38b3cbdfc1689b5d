"""A plot of capacity_h200.csv: latency of whole requests by their rate, for each cache mode.

python benchmarks/plot_capacity.py benchmarks/results/capacity_h200.csv benchmarks/results/capacity_h200.png
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"none": "tab:grey", "dual": "tab:orange", "bicache": "tab:blue", "bicache+settled": "tab:green"}


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="?", default=Path("benchmarks/results/capacity_h200.csv"))
    parser.add_argument("png", type=Path, nargs="?", default=Path("benchmarks/results/capacity_h200.png"))
    parser.add_argument("--out", type=Path, help="ignored: so that every benchmark takes the same arguments")
    args = parser.parse_args()
    with args.csv.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    limit = float(rows[0]["limit_total_s"])
    figure, axes = pyplot.subplots(figsize=(8.4, 3.6))
    for mode, colour in COLOURS.items():
        trials = sorted((row for row in rows if row["mode"] == mode), key=lambda row: float(row["rate"]))
        if not trials:
            continue
        rates = [float(row["rate"]) for row in trials]
        for name, style in (("p99", "-"), ("p50", ":")):
            times = [float(row[f"total_{name}_s"]) for row in trials]
            capped = [min(time, limit) for time in times]
            label = f"{mode}, {'slowest' if name == 'p99' else 'median'}"
            axes.plot(rates, capped, style, marker="o", markersize=4, color=colour, label=label)
            late = [rate for rate, time in zip(rates, times, strict=True) if not math.isfinite(time)]
            axes.plot(late, [limit] * len(late), "x", markersize=11, color=colour)
    axes.axhline(limit, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="requests a second (Poisson)", ylabel="seconds to the end", ylim=(0, limit * 1.08), xlim=(0, None))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title("LLaDA-8B's shape, one H200, HTTP; x: a request took longer than 30 s", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.png, dpi=110)


if __name__ == "__main__":
    main()
