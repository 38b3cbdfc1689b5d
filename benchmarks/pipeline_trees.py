"""Cost of the pipeline in two trees, measured in turns: for changes that must not make it slower.

    git worktree add --detach /tmp/before 9b7edf4
    python benchmarks/pipeline_trees.py /tmp/before . --out benchmarks/results/pipeline_trees.csv

Each round runs `benchmarks/pipeline.py` of each tree, one part after the other, so that a slow spell of the machine
hits both. A row has a tree's median over the rounds, its least, and the ratio of the medians to the first tree's.
CPU times count what the processes did; wall times also count what else ran.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.table import Table
from shoal.provenance import hardware

PARTS = ("scheduling", "steps", "service")
Key = tuple[str, str, str, str]
"""Measurement, streaming, metric, unit."""


def measure(tree: Path, part: str, repeats: int, requests: int) -> dict[Key, float]:
    """The numbers of one run of a tree's own benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pipeline.csv"
        subprocess.run(
            [sys.executable, "benchmarks/pipeline.py", "--only", part, "--repeats", str(repeats), "--requests",
             str(requests), "--out", str(out)],
            cwd=tree, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip
        with out.open(newline="") as file:
            return {
                (row["measurement"], row["streaming"], row["metric"], row["unit"]): float(row["value"])
                for row in csv.DictReader(file)
            }


def commit_of(tree: Path) -> str:
    """The tree's commit, with `+` for changes since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    run = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def main() -> None:
    """Measure, and write one row for each number of each tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/pipeline_trees.csv"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="of a run of pipeline.py")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    trees = {commit_of(tree): tree.resolve() for tree in (args.before, args.after)}
    values: dict[str, dict[Key, list[float]]] = {name: defaultdict(list) for name in trees}
    for number in range(args.rounds):
        for part in args.parts:
            for name in trees if number % 2 == 0 else reversed(trees):
                for key, value in measure(trees[name], part, args.repeats, args.requests).items():
                    values[name][key].append(value)
        print(f"round {number + 1} of {args.rounds}", flush=True)
    constant = {"rounds": args.rounds, "load": f"{os.getloadavg()[0]:.1f}", "hardware": hardware(),
                "command": "python " + shlex.join(sys.argv)}  # fmt: skip
    table = Table(args.out, constant)
    first = next(iter(trees))
    for key in values[first]:
        for name in trees:
            median = statistics.median(values[name][key])
            ratio = median / statistics.median(values[first][key])
            table.add(dict(zip(("measurement", "streaming", "metric", "unit"), key, strict=True)) | {
                "commit": name, "median": f"{median:.4g}", "least": f"{min(values[name][key]):.4g}",
                "ratio": f"{ratio:.2f}",
            })  # fmt: skip
            print(f"{' '.join(key):60} {name:12} {median:8.4g} {ratio:6.2f}")


if __name__ == "__main__":
    main()
