"""A plot of throughput.csv: `bicache` against `dual`, by prefix length and by batch size.

python benchmarks/plot_throughput.py benchmarks/results/throughput.csv benchmarks/results/throughput.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, str]
VARIANTS = (("16", "a prefix refresh every 16 NFE", "tab:blue"), ("0", "one prefix refresh a request", "tab:green"))


def speed_up(rows: Sequence[Row], interval: str, **where: str) -> float | None:
    """Tokens a second of `bicache` over those of `dual`, when both were measured."""

    def rate(variant: str, of_interval: str) -> float | None:
        wanted = {**where, "variant": variant, "interval": of_interval}
        found = [row for row in rows if row["requests"] != "cold" and all(row[k] == v for k, v in wanted.items())]
        return float(found[0]["tokens_per_s"]) if found else None

    ours, dual = rate("bicache", interval), rate("dual", "0")
    return None if ours is None or dual is None else ours / dual


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="?", default=Path("benchmarks/results/throughput.csv"))
    parser.add_argument("png", type=Path, nargs="?", default=Path("benchmarks/results/throughput.png"))
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--out", type=Path, help="ignored: so that every benchmark takes the same arguments")
    args = parser.parse_args()
    if not args.csv.exists():
        print(f"{args.csv} is not there: run benchmarks/throughput.py on a GPU first")
        return
    with args.csv.open(encoding="utf-8") as file:
        whole = [
            row for row in csv.DictReader(file) if None not in row.values()
        ]  # a run that was killed may end amid one
    rows = [row for row in whole if row["shape"] == args.shape and row["nfe_per_block"] == "8"]
    if not rows:
        print(f"{args.csv} has no rows of {args.shape} with 8 NFE a block")
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for interval, label, colour in VARIANTS:
        for batch, style in (("32", "-"), ("1", "--")):
            points = [(p, speed_up(rows, interval, batch=batch, prefix=str(p))) for p in (250, 1000, 2000, 4000)]
            known = [(p, value) for p, value in points if value is not None]
            if known:
                left.plot(*zip(*known, strict=True), style, marker="o", color=colour, label=f"batch {batch}: {label}")
        points = [(b, speed_up(rows, interval, batch=str(b), prefix="2000")) for b in (1, 4, 8, 16, 32)]
        known = [(b, value) for b, value in points if value is not None]
        if known:
            right.plot(*zip(*known, strict=True), "-", marker="o", color=colour, label=label)
    left.set_xlabel("shared prefix, tokens")
    left.set_ylabel("throughput of bicache / dual")
    right.set_xlabel("batch size (prefix 2,000)")
    right.set_xscale("log", base=2)
    right.set_xticks((1, 2, 4, 8, 16, 32), labels=("1", "2", "4", "8", "16", "32"))
    for axes in (left, right):
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        if axes.lines[1:]:
            axes.legend(fontsize=8)
    first = rows[0]
    title = f"{args.shape} shape, random weights, 8 NFE a block of 32, canvas 256; {first['hardware']}"
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(args.png, dpi=150)
    print(args.png)


if __name__ == "__main__":
    main()
