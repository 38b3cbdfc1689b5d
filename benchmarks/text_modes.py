"""What each cache mode costs `text` in right answers, through the engine's own scheduler and worker.

    python -m benchmarks.text_modes --model out/text/model --base out/text/base --data out/text/data \
        --out benchmarks/results/text_modes.csv

Greedy answers at threshold 0.9, decoded to the end. A prefix comes from the first forward of another request, as in
serving (benchmarks/text_tasks.py says how they differ). The first row of each task and ratio is mode `none` in float32;
`none` in bfloat16 and `none` in another batch order are the noise floor of the agreement. Summaries have no right
answer: their NLL under the causal base and the share of repeated 4-grams stand in their row.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from shoal import SamplingParams
from shoal.profile.lab import Lab
from shoal.provenance import commit, hardware
from shoal.runtime.config import CACHE_MODES, CacheMode, EngineConfig
from shoal.runtime.request.output import RequestOutput
from shoal.text.asks import Documents
from shoal.text.corpus import held_out, label_of
from shoal.text.evaluate import causal_nll
from shoal.text.network import Network

from .accuracy import paired, wilson
from .text_tasks import CANVAS, TEMPLATES, Question, Questions, prefix_length

PAGE = 16
MARGIN = 16
DEPTHS = (4, 6, 8, 12, 30)
FIELDS = (
    "task", "ratio", "dtype", "mode", "depth", "interval", "questions", "accuracy", "low_95", "high_95", "drop",
    "drop_low_95", "drop_high_95", "worst_wording_drop", "same_text", "cached_share", "nfe", "base_nll", "repeated",
    "command", "commit", "hardware", "torch",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One way to answer. `reverse`: the batch in another order."""

    mode: CacheMode
    depth: int = 0
    interval: int = 0
    reverse: bool = False

    @classmethod
    def parse(cls, text: str) -> Run:
        """From `dual`, `none:reversed`, `bicache:6` (once per request) or `bicache:6:8` (every 8 NFE)."""
        mode, *rest = text.split(":")
        if mode not in CACHE_MODES or (mode == "bicache") != bool(rest and rest[0].isdecimal()):
            raise argparse.ArgumentTypeError(f"{text}: a cache mode, as in dual, none:reversed, bicache:6, bicache:6:8")
        if rest == ["reversed"]:
            return cls(mode, reverse=True)
        depth, interval = (*map(int, rest), 0, 0)[:2]
        return cls(mode, depth, interval)

    @property
    def name(self) -> str:
        """The mode, as the table has it."""
        return f"{self.mode}, batch reversed" if self.reverse else self.mode


EXACT = ("none", "dual", "bicache:6")
"""Runs in float32: the reference and what serving uses."""
ROUNDED = ("none", "none:reversed", "prefix", "dual", *(f"bicache:{depth}" for depth in DEPTHS))
"""Runs in bfloat16. Refresh intervals (`bicache:6:8`) tell only of summaries: the other answers are one block long."""


class Bench:
    """One engine and the questions of one task and ratio."""

    def __init__(self, model: str, device: str, dtype: str, batch: int, longest: int):
        positions = batch * (2 * longest + 4 * PAGE)
        config = EngineConfig(
            model_path=model, device=device, dtype=dtype, page_size=PAGE, layers_per_band=2, reuse_margin=0,
            max_running_requests=batch, kv_cache_tokens=positions, disable_cuda_graph=True,
        )  # fmt: skip
        self.lab = Lab(config, DEPTHS)
        self._batch = batch

    def answers(self, task: str, ratio: float, questions: list[Question], run: Run) -> list[RequestOutput]:
        """In the order of the questions."""
        params = SamplingParams(max_new_tokens=CANVAS[task])
        out: list[RequestOutput] = []
        for begin in range(0, len(questions), self._batch):
            part = questions[begin : begin + self._batch]
            if run.mode == "bicache":
                self._capture(task, ratio, part)
            order = part[::-1] if run.reverse else part
            found = self.lab.decode(
                [q.prompt for q in order], params, run.mode, salt="text", capture="first", depth=run.depth,
                interval=run.interval, cut=(prefix_length(task, ratio) - MARGIN) // PAGE * PAGE,
            )  # fmt: skip
            out += found[::-1] if run.reverse else found
            if run.mode == "bicache":
                self.lab.forget()
        return out

    def _capture(self, task: str, ratio: float, part: list[Question]) -> None:
        for question in part:
            self.lab.capture("text", "first", question.donor, prefix_length(task, ratio), CANVAS[task])


def repeated(ids: Sequence[int]) -> float:
    """Share of 4-grams that stand earlier in the text."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def quality(base: Network | None, questions: list[Question], outputs: list[RequestOutput]) -> tuple[Any, Any]:
    """Mean NLL a token of the texts under the causal base behind their prompts, and the share of repeated 4-grams."""
    share = round(float(np.mean([repeated(output.token_ids) for output in outputs])), 4)
    if base is None:
        return "", share
    nll = []
    for question, output in zip(questions, outputs, strict=True):
        if output.token_ids:
            row = torch.tensor([[*question.prompt, *output.token_ids]], device=base.mask.device)
            nll.append(causal_nll(base, row, len(question.prompt)).item())
    return round(float(np.mean(nll)), 4), share


def record(
    questions: list[Question], outputs: list[RequestOutput], reference: list[RequestOutput], canvas: int
) -> dict[str, Any]:
    """The numbers of one row; the drop is against the reference, question by question."""
    right, exact = (
        np.array([q.is_right(o.text) for q, o in zip(questions, answers, strict=True)])
        for answers in (outputs, reference)
    )
    count, lost, won = len(right), int((exact & ~right).sum()), int((right & ~exact).sum())
    wording = np.array([question.template for question in questions])
    drops = [float((exact[wording == t].astype(float) - right[wording == t]).mean()) for t in range(TEMPLATES)]
    numbers = {
        "accuracy": right.mean(), "drop": (lost - won) / count, "worst_wording_drop": max(drops),
        "same_text": np.mean([a.token_ids == b.token_ids for a, b in zip(outputs, reference, strict=True)]),
        "cached_share": np.mean([o.cached_tokens / (o.prompt_tokens + canvas) for o in outputs]),
        "nfe": np.mean([o.nfe for o in outputs]),
    }  # fmt: skip
    numbers |= zip(("low_95", "high_95"), wilson(int(right.sum()), count), strict=True)
    numbers |= zip(("drop_low_95", "drop_high_95"), paired(lost, won, count), strict=True)
    return {"questions": count, **{key: round(float(value), 4) for key, value in numbers.items()}}


def rows(options: argparse.Namespace, begin: float) -> Iterator[dict[str, Any]]:
    """Every row; float32 first, because its mode `none` is the reference."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    documents, names = held_out(options.data / "held.npz", 1741, 256)
    maker = Questions(Documents(documents.astype(np.uint16), [label_of(name) for name in names], tokenizer))
    cells = [(task, ratio) for ratio in options.ratios for task in options.tasks]
    work = {cell: maker.make(*cell, options.questions) for cell in cells}
    base = Network.load_base(options.base).to(options.device, torch.bfloat16) if options.base else None
    longest = max(len(q.prompt) + CANVAS[task] for (task, _), questions in work.items() for q in questions)
    reference: dict[tuple[str, float], list[RequestOutput]] = {}
    for dtype in options.dtypes:
        bench = Bench(str(options.model), options.device, dtype, options.batch, longest)
        for cell, questions in work.items():
            for run in options.float32_runs if dtype == "float32" else options.bfloat16_runs:
                if options.time_limit and time.monotonic() - begin > options.time_limit:
                    return
                outputs = bench.answers(*cell, questions, run)
                exact = reference.setdefault(cell, outputs)
                row = record(questions, outputs, exact, CANVAS[cell[0]])
                if cell[0] == "summary":
                    nll, share = quality(base, questions, outputs)
                    row |= {key: "" for key in row if key.startswith(("accuracy", "low", "high", "drop", "worst"))}
                    row |= {"base_nll": nll, "repeated": share}
                depth = run.depth if run.mode == "bicache" else ""
                interval = ("once" if not run.interval else run.interval) if run.mode == "bicache" else ""
                yield {
                    "task": cell[0], "ratio": cell[1], "dtype": dtype, "mode": run.name, "depth": depth,
                    "interval": interval, **row,
                }  # fmt: skip
        del bench
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    """Write the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/text/model"), help="folder of text")
    parser.add_argument("--base", type=Path, help="folder of the causal base, to judge summaries")
    parser.add_argument("--data", type=Path, default=Path("out/text/data"), help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(CANVAS), default=list(CANVAS))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--questions", type=int, default=256, help="of each task and ratio")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    for dtype, names in (("float32", EXACT), ("bfloat16", ROUNDED)):
        runs = [Run.parse(name) for name in names]
        parser.add_argument(f"--{dtype}-runs", nargs="+", type=Run.parse, default=runs, help=" ".join(names))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further row after so many seconds")
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        print(f"no {options.model}: docs/text.md says how to make it")
        return
    command = "python -m benchmarks.text_modes " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    origin = {"command": command, "commit": commit(), "hardware": hardware(), "torch": torch.__version__}
    begin = time.monotonic()
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for row in rows(options, begin):
            table.writerow({**row, **origin})
            file.flush()
            shown = {key: row[key] for key in ("task", "ratio", "dtype", "mode", "depth", "interval", "accuracy")}
            print(json.dumps({**shown, "seconds": round(time.monotonic() - begin, 1)}), flush=True)


if __name__ == "__main__":
    main()
