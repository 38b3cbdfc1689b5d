"""An engine on a CPU beside busy processes: tokens a second by how long OpenMP's threads wait awake (GOMP_SPINCOUNT).

    python -m benchmarks.spinning --out benchmarks/results/spinning.csv

Each row is a process of its own that answers the same questions about price lists twice; the first time warms up and is
not counted. The settings take turns, beside no busy process and beside one; `default` is libgomp's own, 300,000.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.engines import PARAMS, price_chats
from benchmarks.table import Table
from shoal import Engine
from shoal.provenance import commit, hardware

COUNTS = ("default", "1000", "5000", "10000", "20000")
TIME_LIMIT_S = 300


def answer() -> None:
    """Print tokens a second."""
    chats = price_chats()
    with Engine("shop", device="cpu") as engine:
        engine.generate(chats, PARAMS)
        engine.flush_cache()
        begin = time.perf_counter()
        outputs = engine.generate(chats, PARAMS)
        print(sum(len(output.token_ids) for output in outputs) / (time.perf_counter() - begin))


def main() -> None:
    """Measure every setting, beside nothing and beside a busy process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/spinning.csv"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="numbers of busy processes")
    parser.add_argument("--counts", nargs="+", default=COUNTS)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        answer()
        return
    shared = {
        "threads": torch.get_num_threads(), "command": " ".join(["python -m benchmarks.spinning", *sys.argv[1:]]),
        "commit": commit(), "hardware": hardware(), "torch": torch.__version__,
    }  # fmt: skip
    table = Table(args.out, shared)
    for turn in range(args.rounds):
        for busy in args.busy:
            neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                for count in args.counts:
                    rate = tokens_per_second(count)
                    row = {"busy": busy, "spin_count": count, "round": turn, "tokens_per_s": f"{rate:.1f}"}
                    table.add(row)
                    print(*row.values(), flush=True)
            finally:
                for neighbour in neighbours:
                    neighbour.kill()


def tokens_per_second(count: str) -> float:
    """Of a new process whose threads wait awake for `count` turns."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    if count != "default":
        environment["GOMP_SPINCOUNT"] = count
    command = [sys.executable, "-m", "benchmarks.spinning", "--answer"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=TIME_LIMIT_S)
    return float(done.stdout)


if __name__ == "__main__":
    main()
