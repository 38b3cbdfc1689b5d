"""A plot of text_selective.csv: look-up accuracy by the share of prefix tokens that are computed again.

python -m benchmarks.plot_text_selective benchmarks/results/text_selective.csv docs/text_selective.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"attention": "tab:blue", "difference": "tab:green", "random": "tab:grey"}


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="?", default=Path("benchmarks/results/text_selective.csv"))
    parser.add_argument("png", type=Path, nargs="?", default=Path("docs/text_selective.png"))
    parser.add_argument("--task", default="look-up")
    parser.add_argument("--depth", default="6")
    parser.add_argument("--out", type=Path, help="ignored: so that every benchmark takes the same arguments")
    args = parser.parse_args()
    if not args.csv.exists():
        print(f"{args.csv} is not there: run benchmarks.text_selective first")
        return
    with args.csv.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["task"], row["depth"]) == (args.task, args.depth)]
    ratios = sorted({row["ratio"] for row in rows})
    figure, panels = pyplot.subplots(1, len(ratios), figsize=(3.4 * len(ratios), 3.4), sharey=True, squeeze=False)
    for axes, ratio in zip(panels[0], ratios, strict=True):
        of_ratio = [row for row in rows if row["ratio"] == ratio]
        ends = [(float(row["share"]), float(row["accuracy"])) for row in of_ratio if not row["chosen_by"]]
        for chosen_by, colour in COLOURS.items():
            inner = [(float(r["share"]), float(r["accuracy"])) for r in of_ratio if r["chosen_by"] == chosen_by]
            shares, accuracies = zip(*sorted(ends + inner), strict=True)
            axes.plot([100 * share for share in shares], accuracies, marker="o", color=colour, label=chosen_by)
        axes.set_title(f"prefix ratio {ratio}", fontsize=9)
        axes.set_xlabel("prefix tokens computed again, %")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"{args.task}: accuracy")
    panels[0][0].legend(title="chosen by", fontsize=8)
    figure.suptitle(f"text: layers below {args.depth} reused, above it only some tokens computed again", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.png, dpi=110)
    print(args.png)


if __name__ == "__main__":
    main()
