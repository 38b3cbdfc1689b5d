"""Accuracy of `shop` by cache mode, prefix ratio, depth, refresh interval and decoding strategy, with intervals.

    python benchmarks/accuracy.py modes --out benchmarks/results/accuracy.csv --plot docs/accuracy.png
    python benchmarks/accuracy.py grid --out benchmarks/results/accuracy_grid.csv

Lists, canvases and earlier turns are chosen so that the part shared by the questions about a list has the requested
ratio to prompt and canvas. The first question about a list is asked alone; rows count the others, which find its prefix
in the cache. Every row stands beside mode `none` on the same questions: `drop` is its accuracy less the row's, with an
interval for paired shares (Agresti and Min 2005); accuracies have Wilson's. All at 95 %. `reused` is cached tokens x
depth over shared tokens x layers. Every kind of question is asked equally often. Rows of what is done so far are
written after every tenth list.

`modes`: every cache mode as it comes (mode `bicache` with the model's depth profile), default decoding.
`grid`: mode `bicache` at constant depths and refresh intervals, and the decoding strategies; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from shoal import Engine, RequestOutput, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CACHE_MODES, CacheMode
from shoal.shop import vocabulary
from shoal.shop.evaluate import render
from shoal.shop.task import KINDS, MAX_ITEMS, Question, chat, make_list, make_question

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LONGEST = 640
STRATEGIES: dict[str, dict[str, Any]] = {
    "threshold 0.9": {},
    "quota of 2 a step": {"quota": 2},
    "factor 1": {"factor": 1.0},
    "entropy": {"strategy": "entropy", "threshold": 0.9},
    "margin": {"strategy": "margin", "threshold": 0.9},
}
GRID_DEPTHS = (4, 8, 12, 16)
GRID_INTERVALS = (0, 8, 1)


@dataclass(frozen=True)
class Asked:
    """Questions about one list: what they share (tokens, ratio) and how long the canvas is."""

    ratio: float
    shared: int
    canvas: int
    prompts: list[list[dict[str, str]]]
    questions: list[Question]


def make_asked(rng: random.Random, ratio: float, count: int) -> Asked:
    """One list whose shared part is about `ratio` of a whole request, and questions about it: one, and then `count`.

    `count` is rounded down to a multiple of the kinds of question (a canvas of 16 has no room for a total).
    """
    canvas = 96 if ratio < 0.75 else 64 if ratio < 0.85 else 32 if ratio < 0.92 else 16
    wanted = round(ratio / (1 - ratio) * (20 + canvas))
    prices = make_list(rng, max(3, min(MAX_ITEMS, (wanted - 3) // 5)), held_out=True)
    turns: list[tuple[str, str]] = []
    while True:
        earlier = make_question(rng, prices)
        longer = [*turns, (earlier.text, earlier.answer)]
        length = len(vocabulary.encode(render(chat(prices, longer, ""))))
        if length > min(wanted, LONGEST - canvas - 24):
            break
        turns = longer
    kinds = KINDS if canvas > 16 else ("price", "cheaper", "colour")
    count = max(1, count // len(kinds)) * len(kinds)
    questions = [make_question(rng, prices, kinds[index % len(kinds)], json=False) for index in range(count + 1)]
    prompts = [chat(prices, turns, question.text) for question in questions]
    shared = len(vocabulary.encode(render(chat(prices, turns, "")))) - 3  # without <|user|><|end|><|assistant|>
    return Asked(ratio, shared, canvas, prompts, questions)


def workload(seed: int, ratios: tuple[float, ...], lists: int, questions: int) -> list[Asked]:
    """Lists for each ratio; the same whatever else is measured."""
    return [
        make_asked(random.Random(f"accuracy-{seed}-{ratio}-{index}"), ratio, questions)
        for index in range(lists)
        for ratio in ratios
    ]


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(lost: int, won: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of (lost - won) / count (Agresti and Min 2005: half a pair added to each cell)."""
    lost_, won_, n = lost + 0.5, won + 0.5, count + 2
    middle = (lost_ - won_) / n
    half = 1.96 * math.sqrt(max(0.0, lost_ + won_ - (lost_ - won_) ** 2 / n)) / n
    return middle - half, middle + half


@dataclass
class Run:
    """One way to answer: an engine, a mode, and how to decode."""

    name: dict[str, Any]
    engine: Engine
    mode: CacheMode
    decoding: dict[str, Any]

    def answer(self, asked: Asked) -> list[RequestOutput]:
        """Outputs of all but the first question, which is asked alone before them."""
        options = dict(self.decoding)
        if "quota" in options:
            options["steps"] = asked.canvas // options.pop("quota")
        params = SamplingParams(max_new_tokens=asked.canvas, **options)
        self.engine.generate(asked.prompts[0], params, cache_mode=self.mode)
        outputs: list[RequestOutput] = self.engine.generate(asked.prompts[1:], params, cache_mode=self.mode)
        self.engine.flush_cache()
        return outputs


def mode_runs(device: str, modes: list[CacheMode]) -> tuple[list[Run], list[Engine]]:
    """Every cache mode on one engine; `none` first."""
    engine = Engine("shop", device=device, **SIZES)
    ordered: list[CacheMode] = ["none", *(mode for mode in modes if mode != "none")]
    names: list[dict[str, Any]] = [
        {"mode": mode, "depth": "profile" if mode == "bicache" else "", "interval": "", "decoding": "threshold 0.9"}
        for mode in ordered
    ]
    return [Run(name, engine, mode, {}) for name, mode in zip(names, ordered, strict=True)], [engine]


def grid_runs(device: str) -> tuple[list[Run], list[Engine]]:
    """Depths x intervals with the quota (so that requests take long enough for refreshes), and the strategies."""
    runs, engines = [], []
    plain = Engine("shop", device=device, **SIZES)
    engines.append(plain)
    for decoding, options in STRATEGIES.items():
        for mode, depth in (("none", ""), ("bicache", "profile")):
            name = {"mode": mode, "depth": depth, "interval": "", "decoding": decoding}
            runs.append(Run(name, plain, mode, options))  # type: ignore[arg-type]
    for layers in GRID_DEPTHS:
        for interval in GRID_INTERVALS:
            engine = Engine("shop", device=device, depth=layers, refresh_interval=interval, **SIZES)
            engines.append(engine)
            name = {"mode": "bicache", "depth": str(layers), "interval": str(interval or "once"),
                    "decoding": "quota of 2 a step"}  # fmt: skip
            runs.append(Run(name, engine, "bicache", STRATEGIES["quota of 2 a step"]))
    return runs, engines


SIZES: dict[str, Any] = {"kv_cache_tokens": 1 << 16, "max_running_requests": 16}
"""Memory of each engine: several share a GPU."""
Answers = dict[tuple[int, int], list[RequestOutput]]


def measure(work: list[Asked], runs: list[Run], batch: int) -> Iterator[tuple[list[Asked], Answers]]:
    """Outputs by (list, run); all runs answer about a list before any sees the next.

    Yields all questions and answers so far, after every `batch` entries of `work` and at the end.
    """
    out: Answers = {}
    with tqdm(total=len(work) * len(runs), unit="list") as bar:
        for index, asked in enumerate(work):
            for number, run in enumerate(runs):
                out[index, number] = run.answer(asked)
                bar.update()
            if (index + 1) % batch == 0 or index + 1 == len(work):
                yield work[: index + 1], out


def rows_of(work: list[Asked], runs: list[Run], answers: Answers, layers: int) -> Iterator[dict[str, Any]]:
    """Rows by run, ratio (and all) and kind (and all)."""
    none = {run.name["decoding"]: number for number, run in enumerate(runs) if run.mode == "none"}
    for number, run in enumerate(runs):
        reference = none[run.name["decoding"]]
        for ratio in (*sorted({asked.ratio for asked in work}), "all"):
            chosen = [index for index, asked in enumerate(work) if ratio in (asked.ratio, "all")]
            for kind in ("all", *KINDS):
                found = [
                    (asked, question, output, exact)
                    for index in chosen
                    for asked in (work[index],)
                    for question, output, exact in zip(
                        asked.questions[1:], answers[index, number], answers[index, reference], strict=True
                    )
                    if kind in (question.kind, "all")
                ]
                if found:
                    yield {**run.name, "ratio": ratio, "kind": kind, **_figures(found, layers)}


def _figures(found: list[tuple[Asked, Question, RequestOutput, RequestOutput]], layers: int) -> dict[str, Any]:
    count = len(found)
    right = [(output.text == question.answer, exact.text == question.answer) for _, question, output, exact in found]
    lost, won = (sum(pair == kind for pair in right) for kind in ((False, True), (True, False)))
    accuracy = sum(mine for mine, _ in right)
    low, high = wilson(accuracy, count)
    drop_low, drop_high = paired(lost, won, count)
    shared = sum(asked.shared for asked, *_ in found) * layers
    figures = {
        "questions": count,
        "mean_ratio": sum(a.shared / (o.prompt_tokens + a.canvas) for a, _, o, _ in found) / count,
        "accuracy": accuracy / count, "low_95": low, "high_95": high,
        "accuracy_none": sum(exact for _, exact in right) / count,
        "drop": (lost - won) / count, "drop_low_95": drop_low, "drop_high_95": drop_high,
        "agreement": sum(o.token_ids == e.token_ids for _, _, o, e in found) / count,
        "reused": sum(o.reused_token_layers for _, _, o, _ in found) / shared,
        "nfe": sum(o.nfe for _, _, o, _ in found) / count,
        "prefix_refreshes": sum(o.prefix_refreshes for _, _, o, _ in found) / count,
    }  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by ratio of each mode, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for mode in dict.fromkeys(row["mode"] for row in rows):
        mine = [row for row in rows if row["mode"] == mode and row["kind"] == "all" and row["ratio"] != "all"]
        values = [100 * row["accuracy"] for row in mine]
        below = [100 * (row["accuracy"] - row["low_95"]) for row in mine]
        above = [100 * (row["high_95"] - row["accuracy"]) for row in mine]
        axes.errorbar([row["mean_ratio"] for row in mine], values, [below, above], fmt="o-", capsize=3, label=mode)
    axes.set_xlabel("prefix ratio: shared tokens / (prompt + canvas)")
    axes.set_ylabel("right answers, % (95 % intervals)")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a table; replaces an existing file as a whole."""
    new = path.with_suffix(".part")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    new.replace(path)


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("modes", "grid"), nargs="?", default="modes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="what the table names as the commit; by default the checkout's")
    parser.add_argument("--plot", type=Path, help="with modes: a plot of accuracy by ratio")
    parser.add_argument("--modes", nargs="+", choices=CACHE_MODES, default=list(CACHE_MODES))
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--lists", type=int, default=104, help="lists for each ratio")
    parser.add_argument("--questions", type=int, default=9, help="most questions on each list, after the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    work = workload(options.seed, tuple(options.ratios), options.lists, options.questions)
    runs, engines = mode_runs(options.device, options.modes) if options.part == "modes" else grid_runs(options.device)
    layers = engines[0].model_config.num_layers
    constant = {
        "command": "python " + shlex.join(sys.argv), "commit": options.commit or commit(), "hardware": hardware(),
        "torch": torch.__version__,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    try:
        for done, answers in measure(work, runs, 10 * len(options.ratios)):
            rows = list(rows_of(done, runs, answers, layers))
            save([{**row, **constant} for row in rows], options.out)
    finally:
        for engine in engines:
            engine.shutdown()
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
