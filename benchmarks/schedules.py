"""Windows, refresh schedules and decoding rules on `shop`: accuracy, agreement with `none`, NFE; what a limit costs.

    python benchmarks/schedules.py schedules --device cuda --out out/schedules.csv
    python benchmarks/schedules.py rules --ratios 0.3 --out out/commit_rules.csv
    python benchmarks/schedules.py cost --out benchmarks/results/canvas_growth.csv

`schedules` and `rules` ask the questions of `accuracy.py` (lists, ratios, kinds) in every variant, on one engine. Each
row stands beside mode `none` with the whole canvas and a threshold of 0.9, on the same questions: `drop` is its
accuracy less the row's, with a 95 % interval for paired shares; `tokens_per_forward` counts canvas tokens, those behind
the end included. A GPU leaves out what it does not serve.

`cost` takes answers of about 20 tokens with a limit of 64 and of 2,048 new tokens, whole canvas and window: seconds for
each answer and token-layers, alternating; and the KV tokens that 32 running requests hold. It runs `shop` with its
longest text raised to 4,096 tokens, which a grown canvas never reaches.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.accuracy import Asked, make_asked, paired, wilson
from benchmarks.table import Table, write_table
from shoal import Engine, RequestOutput, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode, EngineConfig
from shoal.runtime.model.settings import load_tokenizer
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.intake import Intake
from shoal.runtime.request.request import Request
from shoal.runtime.scheduler.build import build_scheduler
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.gpu.slots import UNSERVED
from shoal.runtime.worker.null import build_null_worker
from shoal.shop import vocabulary
from shoal.shop.evaluate import render
from shoal.shop.task import chat, make_list, make_question

MODEL = Path(__file__).resolve().parents[1] / "shoal" / "shop" / "model"
LIMITS = (64, 2048)


@dataclass(frozen=True)
class Variant:
    """One way to answer. `window` None: the whole canvas."""

    mode: CacheMode
    window: int | None = None
    schedule: str = "full"
    every: int | None = None
    entropy: float | None = None
    rule: dict[str, Any] = field(default_factory=dict)

    def params(self, size: int) -> SamplingParams:
        """Sampling parameters for a canvas of so many positions."""
        return SamplingParams(
            max_new_tokens=size, canvas_window=self.window, full_refresh_every=self.every,
            refresh_schedule=None if self.mode == "none" else self.schedule, refresh_entropy=self.entropy, **self.rule,
        )  # fmt: skip

    def columns(self) -> dict[str, object]:
        """Its name, for the table."""
        rule = " ".join(f"{name}={value}" for name, value in self.rule.items()) or "threshold=0.9"
        return {
            "mode": self.mode, "window": "all" if self.window is None else self.window, "schedule": self.schedule,
            "full_every": self.every or "", "refresh_entropy": "" if self.entropy is None else self.entropy,
            "rule": rule,
        }  # fmt: skip


RULES: tuple[dict[str, Any], ...] = (
    {"threshold": 0.6}, {"factor": 1.0}, {"entropy_bound": 0.1}, {"entropy_bound": 0.5},
    {"threshold": 0.9, "threshold_decay": 0.3}, {"threshold": 0.6, "kl_threshold": 0.01, "kl_history": 2},
    {"threshold": 0.6, "kl_threshold": 0.01, "kl_history": 1},
)  # fmt: skip


def variants(part: str) -> list[Variant]:
    """Of `schedules` or `rules`, the reference first."""
    if part == "rules":
        return [Variant("none"), Variant("bicache"), *(Variant("bicache", rule=rule) for rule in RULES)]
    found = [Variant("none"), *(Variant("none", window) for window in (0, 8, 16, 32))]
    for mode in ("dual", "bicache"):
        for window in (None, 8, 16, 32):
            found += [Variant(mode, window), Variant(mode, window, "settled")]
    return [*found, Variant("bicache", 16, "settled", every=2), Variant("bicache", 16, "settled", entropy=0.3)]


def fidelity(options: argparse.Namespace, constant: dict[str, object]) -> None:
    """A row for each variant; every variant answers about a list before any sees the next.

    The rows of what is done so far are written after every second list.
    """
    chosen = [variant for variant in variants(options.part) if options.device == "cpu" or is_served(variant)]
    work = [
        make_asked(random.Random(f"schedules-{options.seed}-{ratio}-{index}"), ratio, options.questions)
        for index in range(options.lists)
        for ratio in options.ratios
    ]
    answers: list[list[list[RequestOutput]]] = [[] for _ in chosen]
    with Engine("shop", device=options.device, kv_cache_tokens=1 << 16, max_running_requests=16) as engine:
        began = time.monotonic()
        for number, asked in enumerate(tqdm(work, unit="list"), 1):
            for variant, outputs in zip(chosen, answers, strict=True):
                params = variant.params(asked.canvas)
                engine.generate(asked.prompts[0], params, cache_mode=variant.mode)
                outputs.append(engine.generate(asked.prompts[1:], params, cache_mode=variant.mode))
                engine.flush_cache()
            if number % 2 == 0 or number == len(work):
                write_table(options.out, [
                    {**variant.columns(), **_figures(work[:number], outputs, answers[0]), **constant}
                    for variant, outputs in zip(chosen, answers, strict=True)
                ])  # fmt: skip
                if time.monotonic() - began > options.time_limit:
                    return


def is_served(variant: Variant) -> bool:
    """Whether a GPU has it."""
    return variant.entropy is None and not any(name in UNSERVED for name in variant.rule)


def _figures(work: list[Asked], mine: list[list[RequestOutput]], exact: list[list[RequestOutput]]) -> dict[str, object]:
    triples = [
        (question, output, reference)
        for asked, outputs, references in zip(work, mine, exact, strict=True)
        for question, output, reference in zip(asked.questions[1:], outputs, references, strict=True)
    ]
    count = len(triples)
    right = [(output.text == q.answer, reference.text == q.answer) for q, output, reference in triples]
    lost, won = right.count((False, True)), right.count((True, False))
    accuracy = sum(one for one, _ in right)
    low, high = wilson(accuracy, count)
    drop_low, drop_high = paired(lost, won, count)
    nfe = sum(output.nfe for _, output, _ in triples)
    figures = {
        "questions": count, "accuracy": accuracy / count, "low_95": low, "high_95": high,
        "drop": (lost - won) / count, "drop_low_95": drop_low, "drop_high_95": drop_high,
        "agreement": sum(output.token_ids == reference.token_ids for _, output, reference in triples) / count,
        "nfe": nfe / count, "tokens_per_forward": sum(output.canvas_tokens for _, output, _ in triples) / nfe,
        "token_layers": sum(output.computed_token_layers for _, output, _ in triples) / count,
    }  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}


def long_shop(folder: Path) -> Path:
    """`shop` with a longest text of 4,096 tokens, and without its profile, which is of the other configuration."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("depth_profile.json"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_sequence_length": 4096}))
    return folder


def questions(count: int) -> list[str]:
    """Prompts whose right answers have 16 to 24 tokens: everything of a colour, in JSON."""
    found: list[str] = []
    rng = random.Random("canvas-growth")
    while len(found) < count:
        prices = make_list(rng, 24, held_out=True)
        question = make_question(rng, prices, "colour", json=True)
        if 16 <= len(vocabulary.encode(question.answer)) <= 24:
            found.append(render(chat(prices, [], question.text)))
    return found


def cost(options: argparse.Namespace, constant: dict[str, object]) -> None:
    """Rows by mode and window: one answer at a time, and 32 running requests."""
    table = Table(options.out, constant)
    prompts = questions(options.lists)
    with tempfile.TemporaryDirectory() as name:
        folder = long_shop(Path(name) / "shop")
        with Engine(str(folder), device=options.device, depth=8, kv_cache_tokens=8192) as engine:
            for mode, window, schedule in (
                ("bicache", 8, "settled"), ("dual", 8, "settled"), ("bicache", None, "full"),
            ):  # fmt: skip
                variant = Variant(mode, window, schedule)  # type: ignore[arg-type]
                asked = prompts if window is not None else prompts[:2]  # a whole canvas of 2,048 takes a minute
                table.add({**variant.columns(), **_one_by_one(engine, variant, asked), **_running(folder, variant)})
            engine.flush_cache()


def _one_by_one(engine: Engine, variant: Variant, prompts: list[str]) -> dict[str, object]:
    """The same answers with both limits, in turns; medians over prompts."""
    seconds: dict[int, list[float]] = {limit: [] for limit in LIMITS}
    layers = dict.fromkeys(LIMITS, 0)
    lengths, equal = [], 0
    for prompt in (prompts[0], *prompts):  # the first one warms up
        answers = []
        for limit in LIMITS:
            engine.flush_cache()
            started = time.perf_counter()
            output = engine.generate(prompt, variant.params(limit), cache_mode=variant.mode)
            seconds[limit].append(time.perf_counter() - started)
            layers[limit] += output.computed_token_layers
            answers.append(output.token_ids)
            lengths.append(output.completion_tokens)
        equal += answers[0] == answers[1] and len(seconds[LIMITS[0]]) > 1
    short, long = (statistics.median(seconds[limit][1:]) for limit in LIMITS)
    return {
        "answers": len(prompts), "answer_tokens": round(statistics.mean(lengths), 1), "equal": equal,
        "seconds_64": round(short, 4), "seconds_2048": round(long, 4), "ratio_seconds": round(long / short, 3),
        "ratio_token_layers": round(layers[LIMITS[1]] / layers[LIMITS[0]], 3),
    }  # fmt: skip


def _running(folder: Path, variant: Variant) -> dict[str, object]:
    """KV tokens held by 32 requests with the longer limit: when all run, and when each has 24 tokens.

    Pages are the scheduler's numbers, so a worker without a model is enough.
    """
    config = EngineConfig(
        model_path=str(folder), device="cpu", depth=8, kv_cache_tokens=96_000, max_refresh_tokens=1 << 20,
        reuse_margin=0,
    )  # fmt: skip
    worker, facts = build_null_worker(config, 8)
    scheduler = build_scheduler(config, facts, worker)
    memory, intake = scheduler.memory, Intake(config, facts, load_tokenizer(config, folder))
    params = replace(variant.params(LIMITS[1]), ignore_eos=True)
    for prompt in questions(32):
        (spec,) = intake.specs([GenerateInput(prompt=prompt, sampling=params, cache_mode=variant.mode)])
        scheduler.add(Request(spec, TextStream(None, ())))
    held = []
    for tokens in (8, 24):
        while scheduler.num_running < 32 or scheduler.counters.canvas_tokens < 32 * tokens:
            scheduler.step()
        pages = memory.kv.num_pages - memory.kv.num_free - memory.kv.num_reclaimable
        held.append(pages // memory.config.num_bands * memory.config.page_size)
    return {"running": 32, "held_tokens_at_8": held[0], "held_tokens_at_24": held[1]}


PARTS = {"schedules": fidelity, "rules": fidelity, "cost": cost}


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lists", type=int, default=24, help="lists for each ratio, or answers of `cost`")
    parser.add_argument("--questions", type=int, default=8, help="questions on each list, after the first")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds after which `fidelity` ends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args()
    constant: dict[str, object] = {
        "command": "python " + shlex.join(sys.argv), "commit": options.commit or commit(), "hardware": hardware(),
        "torch": torch.__version__,
    }  # fmt: skip
    PARTS[options.part](options, constant)


if __name__ == "__main__":
    main()
