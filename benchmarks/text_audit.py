"""A wrong profile on natural text: reuse of all of `text`'s layers (or `--depth`), and what audits make of it.

    python -m benchmarks.text_audit --model out/text/model --data out/text/data --out benchmarks/results/text_audit.csv

Look-up questions in serving order: a question about each of eight documents, then another about each, which finds its
prefix in the cache. The second ones are counted, in windows of 32, for each audit rate beside mode `none`. With the
depth that is safe the audits should find nothing: `depth_limit` then stays empty, and `differed` small.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import write_table
from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.runtime.model.registry import load_config

from .text_tasks import CANVAS, Question, held_out_questions

TASK = "look-up"
WINDOW = 32
BATCH = 8


def window(engine: Engine, questions: list[Question], mode: CacheMode | None) -> dict[str, float]:
    """Ask and count one window of questions; mode None: the engine's own."""
    params = SamplingParams(max_new_tokens=CANVAS[TASK])
    right, depths = 0, []
    for begin in range(0, len(questions), BATCH):
        part = questions[begin : begin + BATCH]
        if mode is None:
            engine.generate([list(question.donor) for question in part], params)
        outputs = engine.generate([list(question.prompt) for question in part], params, cache_mode=mode)
        right += sum(question.is_right(output.text) for question, output in zip(part, outputs, strict=True))
        depths += [output.depth for output in outputs]
    return {"right": right, "mean_depth": round(float(np.mean(depths)), 2)}


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 5)


def main(arguments: list[str] | None = None) -> None:
    """Write the table after every window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/text/model"), help="folder of text")
    parser.add_argument("--data", type=Path, default=Path("out/text/data"), help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.05, 0.2, 1.0])
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--depth", type=int, help="layers that the profile allows; default: all")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further window after so many seconds")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        print(f"no {options.model}: docs/text.md says how to make it")
        return
    maker = held_out_questions(options.model, options.data)
    questions = maker.make(TASK, options.ratio, options.questions)
    command = "python -m benchmarks.text_audit " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    origin = {"command": command, "commit": options.commit or commit(), "hardware": hardware(),
              "torch": torch.__version__}  # fmt: skip
    begin, table = time.monotonic(), []
    depth = options.depth or load_config(options.model).num_layers
    for rate in options.rates:
        engine = Engine(
            str(options.model), device=options.device, depth=depth, audit_rate=rate, disable_cuda_graph=True,
            kv_cache_tokens=1 << 16, layers_per_band=2, page_size=16,
        )  # fmt: skip
        exact = right = 0
        for first in range(0, len(questions), WINDOW):
            if options.time_limit and time.monotonic() - begin > options.time_limit:
                break
            part = questions[first : first + WINDOW]
            none, found = window(engine, part, "none"), window(engine, part, None)
            exact, right = exact + int(none["right"]), right + int(found["right"])
            stats = engine.core.parts.scheduler.stats()
            table.append({
                "allowed": depth, "rate": rate, "questions": first + len(part), "right_none": none["right"],
                "right": found["right"], "lost_so_far": exact - right, "mean_depth": found["mean_depth"],
                "audits": stats.audits, "drifted": stats.audits_drifted, "predictions": stats.audit_predictions,
                "differed": stats.audits_differed, "mean_divergence": _rounded(stats.audit_divergence),
                "worst_divergence": _rounded(stats.audit_worst_divergence),
                "depth_limit": "" if stats.audit_depth_limit is None else stats.audit_depth_limit, **origin,
            })  # fmt: skip
            write_table(options.out, table)
            print(json.dumps({k: v for k, v in table[-1].items() if k not in origin}), flush=True)
        engine.shutdown()


if __name__ == "__main__":
    main()
