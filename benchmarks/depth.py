"""How deep may a prefix be reused? Accuracy and agreement with mode `none` on `shop`, by prefix ratio and depth.

    python benchmarks/depth.py --out benchmarks/results/depth.csv
    python benchmarks/depth.py --out benchmarks/results/depth.csv --profile shoal/shop/model/depth_profile.json

For every list size one question is asked first; the others reuse its list (captured from its first forward) to the
depth of the row, refreshed once per request. Rows count those others only. With `--profile`, the largest depth at which
every kind of question agrees with `none` at least as often as `--min-agreement` becomes that ratio's entry.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import shoal
from shoal import DepthProfile, Engine, RequestOutput, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.runtime.model.digest import model_digest
from shoal.runtime.model.hub import resolve_model_folder
from shoal.shop.task import KINDS, PriceList, Question, chat, make_list, make_question

SIZES = (6, 10, 18, 32, 50, 70)
DEPTHS = (4, 8, 12, 16)
PARAMS = SamplingParams(max_new_tokens=32, block_length=8, steps=16)


def workload(seed: int, lists: int, questions: int) -> dict[int, list[tuple[PriceList, list[Question]]]]:
    """Lists and questions by list size; kinds of question in turn, a third of them in JSON."""
    rng = random.Random(f"depth-{seed}")
    out: dict[int, list[tuple[PriceList, list[Question]]]] = {}
    for size in SIZES:
        out[size] = []
        for _ in range(lists):
            prices = make_list(rng, size, held_out=True)
            asked = [make_question(rng, prices, KINDS[i % len(KINDS)]) for i in range(questions + 1)]
            out[size].append((prices, asked))
    return out


def ask(engine: Engine, prices: PriceList, questions: list[Question], mode: CacheMode) -> list[RequestOutput]:
    """One question, then the others together."""
    prompts = [chat(prices, [], question.text) for question in questions]
    first = engine.generate(prompts[:1], PARAMS, cache_mode=mode)
    return first + engine.generate(prompts[1:], PARAMS, cache_mode=mode)


def measure(seed: int, lists: int, questions: int) -> list[dict[str, object]]:
    """Rows of the table: size, depth, kind, counts, accuracy and agreement."""
    work = workload(seed, lists, questions)
    engines = {depth: Engine("shop", depth=depth) for depth in DEPTHS}
    counts: dict[tuple[int, int, str], list[tuple[bool, bool, bool, float]]] = defaultdict(list)
    with tqdm(total=len(SIZES) * lists * (1 + len(DEPTHS)), unit="list") as bar:
        for size, items in work.items():
            for prices, asked in items:
                reference = ask(engines[DEPTHS[0]], prices, asked, "none")
                bar.update()
                for depth in DEPTHS:
                    outputs = ask(engines[depth], prices, asked, "bicache")
                    bar.update()
                    for question, output, exact in list(zip(asked, outputs, reference, strict=True))[1:]:
                        if output.depth != depth:
                            raise RuntimeError(f"expected a hit at depth {depth}, got {output.depth}")
                        ratio = output.cached_tokens / (output.prompt_tokens + PARAMS.max_new_tokens)
                        row = (output.text == question.answer, exact.text == question.answer,
                               output.text == exact.text, ratio)  # fmt: skip
                        counts[size, depth, question.kind].append(row)
                        counts[size, depth, "all"].append(row)
    for engine in engines.values():
        engine.shutdown()
    rows: list[dict[str, object]] = []
    for (size, depth, kind), values in sorted(counts.items()):
        right, right_none, same, ratios = (sum(column) for column in zip(*values, strict=True))
        rows.append(
            {
                "items": size,
                "ratio": round(ratios / len(values), 3),
                "lowest_ratio": round(min(value[3] for value in values), 3),
                "depth": depth,
                "kind": kind,
                "questions": len(values),
                "accuracy": round(right / len(values), 4),
                "accuracy_none": round(right_none / len(values), 4),
                "agreement": round(same / len(values), 4),
            }
        )
    return rows


def make_profile(rows: list[dict[str, object]], min_agreement: float, seed: int, data: str) -> DepthProfile:
    """The deepest depth for each ratio at which every kind keeps the agreement; shallower ones must keep it too."""
    table: list[tuple[float, int]] = []
    for size in SIZES:
        mine = [row for row in rows if row["items"] == size]
        best = 0
        for depth in DEPTHS:
            if any(float(str(r["agreement"])) < min_agreement for r in mine if r["depth"] == depth):
                break
            best = depth
        ratio = min(float(str(row["lowest_ratio"])) for row in mine)
        if best and (not table or (ratio > table[-1][0] and best > table[-1][1])):
            table.append((ratio, best))
    return DepthProfile(
        num_layers=16,
        table=tuple(table),
        capture="first",
        refresh_interval=None,
        tolerance=min_agreement,
        metric="agreement of the text with mode none, worst kind of question",
        data_digest=data,
        model_digest=model_digest(resolve_model_folder("shop")),
        versions={"shoal": shoal.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        source=f"benchmarks/depth.py --seed {seed}, held-out price lists of {SIZES[0]} to {SIZES[-1]} items",
    )


def main() -> None:
    """Measure, write the CSV and, if asked, the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth.csv"))
    parser.add_argument("--profile", type=Path, help="write a depth profile made from the rows")
    parser.add_argument("--min-agreement", type=float, default=0.99)
    parser.add_argument("--lists", type=int, default=2, help="lists of each size")
    parser.add_argument("--questions", type=int, default=24, help="questions on each list, after the first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = measure(options.seed, options.lists, options.questions)
    command = "python " + shlex.join(sys.argv)
    constant = {"command": command, "commit": commit(), "hardware": hardware(), "torch": torch.__version__}
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *constant])
        writer.writeheader()
        writer.writerows({**row, **constant} for row in rows)
    if options.profile:
        work = workload(options.seed, options.lists, options.questions)
        text = "\n".join(p.text + "\n" + "\n".join(q.text for q in qs) for size in work for p, qs in work[size])
        data = hashlib.sha256(text.encode()).hexdigest()
        make_profile(rows, options.min_agreement, options.seed, data).save(options.profile)


if __name__ == "__main__":
    main()
