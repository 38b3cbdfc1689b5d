"""What programs cost beside direct engine calls, and what forks and holes save; on `shop`, on a CPU.

    python benchmarks/frontend.py --out benchmarks/results/frontend.csv

batch   64 questions over 4 lists: `run_batch`, given in shuffled order, against the faster of two hand-ordered ways to
        call the engine (all prompts in one call sorted by list; one call a list). Runs alternate, each on a cold
        cache; the throughput is the median of the runs, and beside it that of the fastest runs and by CPU seconds (a
        busy machine disturbs them less). Hit rate: of the lists' tokens, those reused, after the first question of each
        list.
fork    8 branches of one parent with a question each: token-layers of the parent's prompt computed below the depth that
        is reused, warm-up and branches together, over those of one branch that reuses nothing. What no whole page of
        the prompt covers is computed by every branch: so by page size.
fill    4 price questions in one canvas, answers as holes, against 4 turns with a gen each (threshold 0.9 both).

The CSV has one row a figure; beside it a JSON file holds the same with every run.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import shoal
from benchmarks.table import write_table
from shoal.provenance import commit, hardware
from shoal.shop.task import PriceList, Question, chat, make_list, make_question

LISTS, QUESTIONS, RUNS, BRANCHES, HOLES, FILLS = 4, 64, 5, 8, 4, 40
PARAMS = shoal.SamplingParams(max_new_tokens=32, block_length=8, steps=16)
PAGE_SIZES = (1, 2, 4, 16)


@shoal.function
def answer(s, prices, question):
    s += shoal.system(prices)
    s += shoal.user(question)
    s += shoal.assistant(shoal.gen("answer", max_tokens=32, block_length=8, steps=16))


@shoal.function
def branches(s, prices, names):
    s += shoal.system(prices)
    forks = s.fork(len(names))
    for fork, name in zip(forks, names, strict=True):
        fork += shoal.user(f"How much is the {name}?")
        fork += shoal.assistant(shoal.gen("price", max_tokens=8))
    forks.join()


@shoal.function
def one_by_one(s, prices, names):
    s += shoal.system(prices)
    for index, name in enumerate(names):
        s += shoal.user(f"How much is the {name}?")
        s += shoal.assistant(shoal.gen(f"price{index}", max_tokens=4))


@shoal.function
def together(s, prices, names):
    s += shoal.system(prices)
    s += shoal.user(f"How much is the {names[0]}?")
    parts: list[Any] = [shoal.assistant_begin(), shoal.gen("price0", max_tokens=4)]
    for index, name in enumerate(names[1:], 1):
        parts += [shoal.assistant_end(), shoal.user(f"How much is the {name}?"), shoal.assistant_begin()]
        parts += [shoal.gen(f"price{index}", max_tokens=4)]
    s += parts[0]
    s.fill(*parts[1:])
    s += shoal.assistant_end()


def workload(seed: int) -> list[tuple[PriceList, list[Question]]]:
    """Four held-out lists with different questions about each."""
    rng = random.Random(f"frontend-{seed}")
    out = []
    for size in (44, 52, 60, 68):
        prices = make_list(rng, size, held_out=True)
        asked: list[Question] = []
        while len(asked) < QUESTIONS // LISTS:
            question = make_question(rng, prices)
            if question not in asked:
                asked.append(question)
        out.append((prices, asked))
    return out


def timed(engine: shoal.Engine, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds and CPU seconds on a cold cache, and what came out."""
    engine.flush_cache()
    wall, cpu = time.perf_counter(), time.process_time()
    out = work()
    return time.perf_counter() - wall, time.process_time() - cpu, out


def batch(seed: int) -> dict[str, Any]:
    """The batch of 64."""
    work = workload(seed)
    items = [(prices, question) for prices, asked in work for question in asked]
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    arguments = [{"prices": prices.text, "question": question.text} for prices, question in shuffled]
    prompts = [chat(prices, [], question.text) for prices, question in items]
    each = QUESTIONS // LISTS
    with shoal.Engine("shop") as engine:
        tokens = {prices.text: len(engine.encode(f"<|system|>{prices.text}<|end|>")) for prices, _ in work}

        def by_list() -> list[Any]:
            groups = [prompts[at : at + each] for at in range(0, len(prompts), each)]
            return [output for group in groups for output in engine.generate(group, PARAMS)]

        ways: dict[str, Callable[[], Any]] = {
            "run_batch": lambda: answer.run_batch(arguments, backend=engine),
            "one_call": lambda: engine.generate(prompts, PARAMS),
            "call_a_list": by_list,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        results: dict[str, Any] = {}
        for run in range(RUNS + 1):
            for name, way in ways.items():
                wall, used, results[name] = timed(engine, way)
                if run:  # the first warms up
                    seconds[name].append(wall)
                    cpu[name].append(used)
        states = results["run_batch"]
        engine.check()
    hits: dict[str, list[int]] = {}
    for (prices, _), state in zip(shuffled, states, strict=True):
        cached = state.get_meta_info("answer")["cached_tokens"]
        hits.setdefault(prices.text, []).append(min(cached, tokens[prices.text]))
    after_first = [(sum(sorted(found)[1:]), (len(found) - 1) * tokens[text]) for text, found in hits.items()]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu_median = {name: statistics.median(values) for name, values in cpu.items()}
    best = min(median["one_call"], median["call_a_list"])
    accuracy = {
        "run_batch": [
            state["answer"] == question.answer for (_, question), state in zip(shuffled, states, strict=True)
        ],
        "one_call": [o.text == q.answer for (_, q), o in zip(items, results["one_call"], strict=True)],
    }
    return {
        "throughput_over_best_calls": best / median["run_batch"],
        "throughput_over_best_calls_fastest_runs": (
            min(*seconds["one_call"], *seconds["call_a_list"]) / min(seconds["run_batch"])
        ),
        "cpu_over_best_calls": min(cpu_median["one_call"], cpu_median["call_a_list"]) / cpu_median["run_batch"],
        "questions_per_s": QUESTIONS / median["run_batch"],
        "questions_per_s_one_call": QUESTIONS / median["one_call"],
        "questions_per_s_call_a_list": QUESTIONS / median["call_a_list"],
        "prefix_hit_rate_after_first": sum(a for a, _ in after_first) / sum(b for _, b in after_first),
        "accuracy": statistics.mean(accuracy["run_batch"]),
        "accuracy_engine_calls": statistics.mean(accuracy["one_call"]),
        "token_layers_saved": states.usage.token_layers_saved,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def fork(seed: int, page_size: int) -> dict[str, Any]:
    """A fork of 8."""
    rng = random.Random(f"fork-{seed}")
    prices = make_list(rng, 70, held_out=True)
    items = rng.sample(prices.items, BRANCHES)
    with shoal.Engine("shop", page_size=page_size) as engine:
        state = branches.run(prices.text, [item.name for item in items], backend=engine)
        parent = len(engine.encode(f"<|system|>{prices.text}<|end|>"))
        metas = state.get_meta_info("price")
        depth = min(meta["depth"] for meta in metas)
        computed = parent + sum(parent - min(meta["cached_tokens"], parent) for meta in metas)
        right = [price == str(item.price) for price, item in zip(state["price"], items, strict=True)]
        assert state.usage.warm_ups == 1
        engine.check()
    return {
        "shallow_over_one_branch": computed / parent, "parent_tokens": parent, "depth": depth,
        "accuracy": statistics.mean(right),
    }  # fmt: skip


def fill(seed: int) -> dict[str, Any]:
    """Four prices at once, and one after the other."""
    rng = random.Random(f"fill-{seed}")
    nfe = {"together": 0, "one_by_one": 0}
    right: dict[str, list[bool]] = {"together": [], "one_by_one": []}
    with shoal.Engine("shop") as engine:
        for _ in range(FILLS):
            prices = make_list(rng, rng.randint(20, 60), held_out=True)
            items = rng.sample(prices.items, HOLES)
            for name, program in (("together", together), ("one_by_one", one_by_one)):
                state = program.run(prices.text, [item.name for item in items], backend=engine)
                nfe[name] += state.usage.nfe
                right[name] += [state[f"price{i}"] == str(item.price) for i, item in enumerate(items)]
        engine.check()
    return {
        "nfe_over_one_by_one": nfe["together"] / nfe["one_by_one"],
        "nfe_together": nfe["together"] / FILLS, "nfe_one_by_one": nfe["one_by_one"] / FILLS,
        "accuracy_together": statistics.mean(right["together"]),
        "accuracy_one_by_one": statistics.mean(right["one_by_one"]),
    }  # fmt: skip


def main() -> None:
    """Measure and write CSV and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/frontend.csv"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report: dict[str, Any] = {"batch": batch(options.seed), "fill": fill(options.seed)}
    for page_size in PAGE_SIZES:
        report[f"fork, page_size {page_size}"] = fork(options.seed, page_size)
    constant = {
        "command": "python " + shlex.join(sys.argv), "commit": commit(), "hardware": hardware(),
        "torch": torch.__version__, "torch_threads": torch.get_num_threads(),
    }  # fmt: skip
    rows = [
        {"part": part, "figure": name, "value": round(value, 4), **constant}
        for part, figures in report.items()
        for name, value in figures.items()
        if not isinstance(value, dict)
    ]
    write_table(options.out, rows)
    options.out.with_suffix(".json").write_text(json.dumps({**report, **constant}, indent=1) + "\n")
    for row in rows:
        print(f"{row['part']:<20} {row['figure']:<32} {row['value']}")


if __name__ == "__main__":
    main()
