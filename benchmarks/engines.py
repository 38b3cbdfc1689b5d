"""Several engines in one process, on a CPU: tokens a second of one while the others are idle.

    python -m benchmarks.engines --out benchmarks/results/engines.csv

The engines answer the same questions about price lists one after another, several rounds, with a pause before each:
once with threads that end at rest, as they do (`rests`), and once with threads that stay (`stays`). Each way runs in a
process of its own; the first round warms up and is not shown.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.table import Table
from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.engine import core as core_module
from shoal.shop.task import KINDS, chat, make_list, make_question

PARAMS = SamplingParams(max_new_tokens=32, block_length=8, steps=16)
PAUSE_S = 1.5
"""Pause before each turn: longer than an idle engine's thread lives."""


def price_chats() -> list[list[dict[str, str]]]:
    """Sixteen questions about one price list, as chats."""
    rng = random.Random(1)
    prices = make_list(rng, 40, held_out=True)
    return [chat(prices, [], make_question(rng, prices, KINDS[i % len(KINDS)]).text) for i in range(16)]


def measure(count: int, rounds: int, rests: bool) -> None:
    """Print a line for each engine and round: the round, the engine, tokens a second."""
    if not rests:
        core_module.REST_AFTER_S = None
    chats = price_chats()
    engines = [Engine("shop", device="cpu") for _ in range(count)]
    for turn in range(rounds + 1):
        for number, engine in enumerate(engines):
            engine.flush_cache()
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            outputs = engine.generate(chats, PARAMS)
            rate = sum(len(output.token_ids) for output in outputs) / (time.perf_counter() - begin)
            print(turn, number, f"{rate:.1f}", flush=True)


def main() -> None:
    """Measure both ways, with one engine and with several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.csv"))
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(int(args.child[0]), args.rounds, args.child[1] == "rests")
        return
    table = Table(args.out, {
        "threads": torch.get_num_threads(), "command": "python -m benchmarks.engines", "commit": commit(),
        "hardware": hardware(), "torch": torch.__version__,
    })  # fmt: skip
    for count in (1, args.engines):
        for way in ("rests", "stays"):
            child = ["--rounds", str(args.rounds), "--child", str(count), way]
            command = [sys.executable, "-m", "benchmarks.engines", *child]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            for turn, number, rate in (line.split() for line in lines):
                if turn != "0":
                    row = {"engines": count, "thread": way, "round": turn, "engine": number, "tokens_per_s": rate}
                    table.add(row)
                    print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
