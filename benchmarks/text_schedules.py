"""Windows, refresh schedules and decoding rules on `text`: accuracy, agreement with `none`, NFE.

    python -m benchmarks.text_schedules schedules --model out/text/model --data out/text/data \
        --out benchmarks/results/text_schedules.csv
    python -m benchmarks.text_schedules rules --model out/text/model --data out/text/data \
        --out benchmarks/results/text_commit_rules.csv

The variants of `schedules.py` on questions of `text_tasks.py` (look-up, quotation, missing word, in turns), answered on
a canvas of 64 in blocks of 16. `bicache` finds the first forward of another request, and reuses what the model's
profile allows. Each row stands beside mode `none` with the whole canvas and a threshold of 0.9: `drop` is its accuracy
less the row's, with a 95 % interval for paired shares, `worst_drop` that of the worst task.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shoal.profile.lab import Asked, Lab, Wanted
from shoal.provenance import commit, hardware
from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import EngineConfig
from shoal.runtime.model.registry import load_config
from shoal.runtime.request.output import RequestOutput

from .accuracy import paired, wilson
from .schedules import Variant, is_served, variants
from .table import Table
from .text_tasks import Question, held_out_questions, prefix_length

TASKS = ("look-up", "quotation", "missing word")
CANVAS, BLOCK, PAGE, MARGIN = 64, 16, 16, 16
SALT = "text"
Pair = tuple[str, Question]
"""A task and a question of it."""


class Bench:
    """One engine's parts, and questions to them."""

    def __init__(self, options: argparse.Namespace, longest: int):
        self._ratio = options.ratio
        self._depth = options.depth or DepthProfile.load(options.model / "depth_profile.json").depth(options.ratio)
        config = EngineConfig(
            model_path=str(options.model), device=options.device, dtype=options.dtype, page_size=PAGE,
            layers_per_band=2, reuse_margin=0, max_running_requests=options.batch, block_length=BLOCK,
            kv_cache_tokens=2 * options.batch * (longest + CANVAS + 4 * PAGE), disable_cuda_graph=True,
        )  # fmt: skip
        self._lab = Lab(config, (self._depth, load_config(options.model).num_layers))
        self._batch = options.batch

    def answers(self, pairs: Sequence[Pair], variant: Variant) -> list[RequestOutput]:
        """In the order of the questions."""
        out: list[RequestOutput] = []
        for begin in range(0, len(pairs), self._batch):
            part = pairs[begin : begin + self._batch]
            if variant.mode == "bicache":
                self._lab.capture([
                    Wanted(salt=SALT, kind="first", tokens=q.donor, length=prefix_length(task, self._ratio),
                           canvas=self._canvas(variant))
                    for task, q in part
                ])  # fmt: skip
            out += self._lab.decode([self._asked(task, question, variant) for task, question in part])
            self._lab.forget()
        return out

    def _canvas(self, variant: Variant) -> int:
        """Canvas positions of a first forward: with a window the first block and the window alone."""
        return CANVAS if variant.window is None else min(CANVAS, BLOCK + variant.window)

    def _asked(self, task: str, question: Question, variant: Variant) -> Asked:
        return Asked(
            prompt=question.prompt, sampling=replace(variant.params(CANVAS), block_length=BLOCK), mode=variant.mode,
            salt=SALT, depth=self._depth, cut=(prefix_length(task, self._ratio) - MARGIN) // PAGE * PAGE,
        )  # fmt: skip


def figures(
    pairs: Sequence[Pair], outputs: Sequence[RequestOutput], exact: Sequence[RequestOutput]
) -> dict[str, object]:
    """The numbers of one variant beside those of the reference."""
    right, reference = (
        np.array([q.is_right(o.text) for (_, q), o in zip(pairs, given, strict=True)]) for given in (outputs, exact)
    )
    task = np.array([name for name, _ in pairs])
    count, lost, won = len(pairs), int((reference & ~right).sum()), int((right & ~reference).sum())
    drops = [float((reference[task == t].astype(float) - right[task == t]).mean()) for t in sorted(set(task.tolist()))]
    nfe = sum(output.nfe for output in outputs)
    found: dict[str, float] = {"accuracy": float(right.mean())}
    found |= zip(("low_95", "high_95"), wilson(int(right.sum()), count), strict=True)
    found |= {"drop": (lost - won) / count}
    found |= zip(("drop_low_95", "drop_high_95"), paired(lost, won, count), strict=True)
    found |= {
        "worst_drop": max(drops),
        "agreement": float(np.mean([a.token_ids == b.token_ids for a, b in zip(outputs, exact, strict=True)])),
        "nfe": nfe / count,
        "tokens_per_forward": sum(output.canvas_tokens for output in outputs) / nfe,
        "token_layers": sum(output.computed_token_layers for output in outputs) / count,
        "cached_share": float(np.mean([o.cached_tokens / (o.prompt_tokens + CANVAS) for o in outputs])),
    }
    return {"questions": count, **{name: round(value, 4) for name, value in found.items()}}


def main(arguments: list[str] | None = None) -> None:
    """Write the table row by row, the reference first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("schedules", "rules"))
    parser.add_argument("--model", type=Path, default=Path("out/text/model"), help="folder of text")
    parser.add_argument("--data", type=Path, default=Path("out/text/data"), help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=128, help="of each task")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--depth", type=int, help="layers that bicache reuses; default: what the profile says")
    parser.add_argument("--batch", type=int, default=128, help="requests that run together")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further row after so many seconds")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        print(f"no {options.model}: docs/text.md says how to make it")
        return
    maker = held_out_questions(options.model, options.data)
    pairs = [(task, q) for task in TASKS for q in maker.make(task, options.ratio, options.questions)]
    bench = Bench(options, max(len(question.prompt) for _, question in pairs))
    command = "python -m benchmarks.text_schedules " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    table = Table(options.out, {
        "command": command, "commit": options.commit or commit(), "hardware": hardware(), "torch": torch.__version__,
    })  # fmt: skip
    begin, exact = time.monotonic(), None
    for variant in variants(options.part):
        seconds = time.monotonic() - begin
        if options.time_limit and seconds > options.time_limit:
            break
        if options.device != "cpu" and not is_served(variant):
            continue
        outputs = bench.answers(pairs, variant)
        exact = exact or outputs
        row = {**variant.columns(), "ratio": options.ratio, **figures(pairs, outputs, exact)}
        table.add(row)
        print(json.dumps({**variant.columns(), "accuracy": row["accuracy"], "seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
