"""What each cache mode costs `text` in right answers, through the engine's own scheduler and worker.

    python -m benchmarks.text_modes --model out/text/model --base out/text/base --data out/text/data \
        --answers out/text/answers.jsonl --out benchmarks/results/text_modes.csv

Greedy answers at threshold 0.9, decoded to the end. A prefix comes from the first forward of another request, as in
serving, and in mode `lm` from its finished sequence (benchmarks/text_tasks.py says how the two requests differ). Drops
and equal texts are against mode `none` in the first dtype. `none` in another batch order and in the other dtype are the
noise floor. Summaries have no right answer: their NLL under the causal base and the share of repeated 4-grams stand in
their row. Answers are kept as they come: the same command answers what is missing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shoal import SamplingParams
from shoal.profile.lab import Asked, Lab, Wanted
from shoal.provenance import commit, hardware
from shoal.runtime.config import CACHE_MODES, CacheMode, EngineConfig
from shoal.runtime.model.digest import model_digest
from shoal.runtime.model.registry import load_config
from shoal.runtime.request.output import RequestOutput
from shoal.text.evaluate import token_nll
from shoal.text.network import Network

from .accuracy import paired, wilson
from .table import write_table
from .text_tasks import CANVAS, Question, held_out_questions, prefix_length

PAGE = 16
MARGIN = 16
DEPTHS = (4, 6, 8, 12, 30)
"""Depths of `bicache` unless others are given; the last is all layers of `text`."""
SALT = "text"


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


ROUNDED = ("none", "none:reversed", "prefix", "dual", "lm", *(f"bicache:{depth}" for depth in DEPTHS))
"""Runs in bfloat16: the reference, another order in the batch, and the modes."""
SUMMARY = ("bicache:6:16", "bicache:6:32", "bicache:6:64", "bicache:12:16", "bicache:12:32", "bicache:30:16")
"""Further runs of summaries: the other answers are one block long, so no refresh comes due."""
EXACT = ("none", "bicache:6")
"""Runs in float32: the other side of the noise floor."""
Key = tuple[str, float, str, str]
"""Task, ratio, dtype, run."""


class Answer(NamedTuple):
    """What the table counts of an answer."""

    tokens: list[int]
    text: str
    prompt_tokens: int
    cached_tokens: int
    nfe: int


class Store:
    """Answers on disk, a line for each run of a cell: a stopped measurement goes on from them.

    `settings` are everything that answers depend on; a file with others is refused (SystemExit).
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path, self.answers = path, dict[Key, list[Answer]]()
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n")
            return
        head, *lines = path.read_text().split("\n")[:-1]
        if json.loads(head) != json.loads(json.dumps(settings)):
            raise SystemExit(f"{path} was made with {head}: choose another --answers")
        for line in lines:
            task, ratio, dtype, run, answers = json.loads(line)
            self.answers[task, ratio, dtype, run] = [Answer(*each) for each in answers]

    def add(self, key: Key, outputs: Sequence[RequestOutput]) -> None:
        """Keep the answers of a run."""
        self.answers[key] = [
            Answer(list(o.token_ids), o.text, o.prompt_tokens, o.cached_tokens, o.nfe) for o in outputs
        ]  # fmt: skip
        with self._path.open("a") as file:
            file.write(json.dumps([*key, self.answers[key]]) + "\n")


class Bench:
    """One engine's parts, and questions to them."""

    def __init__(self, model: str, device: str, dtype: str, batch: int, longest: int, depths: Sequence[int]):
        config = EngineConfig(
            model_path=model, device=device, dtype=dtype, page_size=PAGE, layers_per_band=2, reuse_margin=0,
            max_running_requests=2 * batch, kv_cache_tokens=4 * batch * (longest + 4 * PAGE), disable_cuda_graph=True,
        )  # fmt: skip
        self.lab = Lab(config, depths)
        self._batch = batch

    def answers(
        self, task: str, ratio: float, questions: list[Question], runs: Sequence[Run]
    ) -> list[list[RequestOutput]]:
        """Of each run, in the order of the questions. All runs that share a batch order are decoded together."""
        out: list[list[RequestOutput]] = [[] for _ in runs]
        for begin in range(0, len(questions), self._batch):
            part = questions[begin : begin + self._batch]
            if any(run.mode == "bicache" for run in runs):
                self.lab.capture([
                    Wanted(salt=SALT, kind="first", tokens=q.donor, length=prefix_length(task, ratio),
                           canvas=CANVAS[task])
                    for q in part
                ])  # fmt: skip
            if any(run.mode == "lm" for run in runs):
                self.lab.decode([_asked(task, ratio, q.donor, Run("lm")) for q in part])
            for reverse in (False, True):
                which = [number for number, run in enumerate(runs) if run.reverse == reverse]
                order = part[::-1] if reverse else part
                found = self.lab.decode([_asked(task, ratio, q.prompt, runs[n]) for n in which for q in order])
                for place, number in enumerate(which):
                    mine = found[place * len(part) : (place + 1) * len(part)]
                    out[number] += mine[::-1] if reverse else mine
            self.lab.forget()
        for run, outputs in zip(runs, out, strict=True):
            if run.mode in ("lm", "bicache") and not all(output.cached_tokens for output in outputs):
                raise RuntimeError(f"{run.name} reused nothing for some of the {task} questions: the pool is too small")
        return out


def _asked(task: str, ratio: float, prompt: Sequence[int], run: Run) -> Asked:
    cut = (prefix_length(task, ratio) - MARGIN) // PAGE * PAGE
    return Asked(
        prompt=prompt, sampling=SamplingParams(max_new_tokens=CANVAS[task]), mode=run.mode, salt=SALT, depth=run.depth,
        interval=run.interval, cut=cut,
    )  # fmt: skip


def repeated(ids: Sequence[int]) -> float:
    """Share of 4-grams that stand earlier in the text."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def quality(base: Network | None, questions: list[Question], answers: list[Answer], batch: int = 32) -> tuple[Any, Any]:
    """Mean NLL a token of the texts under the causal base behind their prompts, and the share of repeated 4-grams."""
    share = round(float(np.mean([repeated(answer.tokens) for answer in answers])), 4)
    if base is None:
        return "", share
    pairs = [([*q.prompt, *a.tokens], len(q.prompt)) for q, a in zip(questions, answers, strict=True) if a.tokens]
    pairs.sort(key=lambda pair: len(pair[0]))
    nll: list[float] = []
    for begin in range(0, len(pairs), batch):
        part = pairs[begin : begin + batch]
        longest = max(len(row) for row, _ in part)
        # What stands behind a causal model's token does not change it.
        rows = torch.tensor([row + [0] * (longest - len(row)) for row, _ in part], device=base.mask.device)
        with torch.inference_mode():
            hidden = base(rows, causal=True)
            for states, (row, prompt) in zip(hidden, part, strict=True):
                targets = torch.tensor(row[prompt:], device=states.device)
                nll.append(token_nll(base, states[prompt - 1 : len(row) - 1], targets).mean().item())
    return round(float(np.mean(nll)), 4), share


def record(questions: list[Question], answers: list[Answer], reference: list[Answer], canvas: int) -> dict[str, Any]:
    """The numbers of one row; the drop is against the reference, question by question."""
    right, exact = (
        np.array([q.is_right(a.text) for q, a in zip(questions, given, strict=True)]) for given in (answers, reference)
    )
    count, lost, won = len(right), int((exact & ~right).sum()), int((right & ~exact).sum())
    wording = np.array([question.template for question in questions])
    drops = [float((exact[wording == t].astype(float) - right[wording == t]).mean()) for t in set(wording.tolist())]
    numbers = {
        "accuracy": right.mean(), "drop": (lost - won) / count, "worst_wording_drop": max(drops),
        "same_text": np.mean([a.tokens == b.tokens for a, b in zip(answers, reference, strict=True)]),
        "cached_share": np.mean([a.cached_tokens / (a.prompt_tokens + canvas) for a in answers]),
        "nfe": np.mean([a.nfe for a in answers]),
    }  # fmt: skip
    numbers |= zip(("low_95", "high_95"), wilson(int(right.sum()), count), strict=True)
    numbers |= zip(("drop_low_95", "drop_high_95"), paired(lost, won, count), strict=True)
    return {"questions": count, **{key: round(float(value), 4) for key, value in numbers.items()}}


def table(
    store: Store, work: dict[tuple[str, float], list[Question]], reference: str, base: Network | None
) -> list[dict[str, Any]]:
    """A row for each run of the cells whose reference, mode `none` in dtype `reference`, is there."""
    found = []
    for (task, ratio, dtype, name), answers in store.answers.items():
        exact = store.answers.get((task, ratio, reference, "none"))
        if exact is None or (task, ratio) not in work:
            continue
        run, questions = Run.parse(name), work[task, ratio]
        row = record(questions, answers, exact, CANVAS[task]) | {"base_nll": "", "repeated": ""}
        if task == "summary":
            row |= {key: "" for key in row if key.startswith(("accuracy", "low", "high", "drop", "worst"))}
            row |= zip(("base_nll", "repeated"), quality(base, questions, answers), strict=True)
        depth = run.depth if run.mode == "bicache" else ""
        interval = ("once" if not run.interval else run.interval) if run.mode == "bicache" else ""
        place = {"task": task, "ratio": ratio, "dtype": dtype, "mode": run.name, "depth": depth, "interval": interval}
        found.append({**place, "reference": reference, **row})
    return found


def measure(options: argparse.Namespace, store: Store, work: dict[tuple[str, float], list[Question]]) -> None:
    """Answer what the store lacks, a cell at a time, until the time is up."""
    begin, layers = time.monotonic(), load_config(options.model).num_layers
    names = [*options.bfloat16_runs, *options.float32_runs, *options.summary_runs]
    depths = sorted({layers, *(run.depth for run in map(Run.parse, names) if run.depth)})
    longest = max(len(q.prompt) + CANVAS[task] for (task, _), questions in work.items() for q in questions)
    for dtype in options.dtypes:
        bench: Bench | None = None
        for (task, ratio), questions in work.items():
            names = [*(options.bfloat16_runs if dtype == "bfloat16" else options.float32_runs)]
            names += options.summary_runs if task == "summary" and dtype == options.dtypes[0] else []
            missing = [name for name in names if (task, ratio, dtype, name) not in store.answers]
            if options.time_limit and time.monotonic() - begin > options.time_limit:
                return
            if not missing:
                continue
            bench = bench or Bench(str(options.model), options.device, dtype, options.batch, longest, depths)
            outputs = bench.answers(task, ratio, questions, [Run.parse(name) for name in missing])
            for name, of_run in zip(missing, outputs, strict=True):
                store.add((task, ratio, dtype, name), of_run)
            seconds = round(time.monotonic() - begin, 1)
            print(json.dumps({"task": task, "ratio": ratio, "dtype": dtype, "runs": missing, "s": seconds}), flush=True)
        del bench
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


def run_name(text: str) -> str:
    """A run by name; ArgumentTypeError for one that is none."""
    Run.parse(text)
    return text


def main(arguments: list[str] | None = None) -> None:
    """Answer, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/text/model"), help="folder of text")
    parser.add_argument("--base", type=Path, help="folder of the causal base, to judge summaries")
    parser.add_argument("--data", type=Path, default=Path("out/text/data"), help="folder that holds held.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True, help="file of all answers; the same command goes on")
    parser.add_argument("--tasks", nargs="+", choices=list(CANVAS), default=list(CANVAS))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--questions", type=int, default=256, help="of each task and ratio")
    parser.add_argument("--batch", type=int, default=64, help="questions whose prefixes are held at a time")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="the first is the reference's")
    for name, names in (("bfloat16", ROUNDED), ("float32", EXACT), ("summary", SUMMARY)):
        parser.add_argument(f"--{name}-runs", nargs="*", type=run_name, default=list(names), help=" ".join(names))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--time-limit", type=float, help="begin no further cell after so many seconds")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        print(f"no {options.model}: docs/text.md says how to make it")
        return
    maker = held_out_questions(options.model, options.data)
    cells = [(task, ratio) for ratio in options.ratios for task in options.tasks]
    work = {cell: maker.make(*cell, options.questions) for cell in cells}
    options.answers.parent.mkdir(parents=True, exist_ok=True)
    store = Store(options.answers, {"questions": options.questions, "model": model_digest(options.model)})
    measure(options, store, work)
    base = Network.load_base(options.base).to(options.device, torch.bfloat16) if options.base else None
    command = "python -m benchmarks.text_modes " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    origin = {
        "command": command, "commit": options.commit or commit(), "hardware": hardware(), "torch": torch.__version__,
    }  # fmt: skip
    rows = table(store, work, options.dtypes[0], base)
    if rows:
        write_table(options.out, [{**row, **origin} for row in rows])


if __name__ == "__main__":
    main()
