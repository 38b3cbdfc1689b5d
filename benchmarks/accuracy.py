"""Accuracy of every cache mode on held-out price lists, with confidence intervals.

    python benchmarks/accuracy.py --out benchmarks/results/accuracy.csv --questions 1000

Lists have 8 to 70 items; ten questions are asked about each, all kinds in turn, a third of them in JSON and some after
earlier turns. Decoding is the default (threshold 0.9). Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.request import CACHE_MODES
from shoal.shop.task import KINDS, Question, chat, make_list, make_question

PARAMS = SamplingParams(max_new_tokens=32)
_ON_A_LIST = 10


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def workload(count: int, seed: int) -> list[list[tuple[list[dict[str, str]], Question]]]:
    """Lists of (chat messages, question), ten to a price list."""
    rng = random.Random(f"accuracy-{seed}")
    out: list[list[tuple[list[dict[str, str]], Question]]] = []
    for _ in range(count // _ON_A_LIST):
        prices = make_list(rng, rng.randint(8, 70), held_out=True)
        group = []
        for index in range(_ON_A_LIST):
            earlier = [make_question(rng, prices) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
            question = make_question(rng, prices, KINDS[(index + len(out)) % len(KINDS)])
            group.append((chat(prices, [(q.text, q.answer) for q in earlier], question.text), question))
        out.append(group)
    return out


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy.csv"))
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--modes", nargs="+", choices=CACHE_MODES, default=list(CACHE_MODES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = workload(options.questions, options.seed)
    constant = {
        "command": "python " + " ".join(sys.argv), "commit": commit(), "hardware": hardware(),
        "torch": torch.__version__,
    }  # fmt: skip
    rows: list[dict[str, object]] = []
    for mode in options.modes:
        right: dict[str, list[bool]] = defaultdict(list)
        passes = 0
        with Engine("shop", cache_mode=mode) as engine:
            for group in tqdm(work, desc=mode):
                for (_, question), output in zip(group, engine.generate([m for m, _ in group], PARAMS), strict=True):
                    passes += output.nfe
                    for kind in ("all", question.kind, question.kind + ("/json" if question.json else "/plain")):
                        right[kind].append(output.text == question.answer)
        for kind, values in sorted(right.items()):
            low, high = wilson(sum(values), len(values))
            rows.append(
                {"mode": mode, "kind": kind, "questions": len(values), "accuracy": round(sum(values) / len(values), 4),
                 "low_95": round(low, 4), "high_95": round(high, 4),
                 "nfe": round(passes / len(right["all"]), 3), **constant}
            )  # fmt: skip
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
