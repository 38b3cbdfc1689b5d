"""An engine on a CPU beside busy processes: tokens a second by how long idle OpenMP threads spin (GOMP_SPINCOUNT).

    python -m benchmarks.spinning --out benchmarks/results/spinning.csv
    python -m benchmarks.spinning --example --counts default shoal 1000 "1 thread" \
        --out benchmarks/results/spinning_example.csv

Each row is a process of its own that answers the same questions about price lists twice; the first time warms up and is
not counted. With `--example` it runs examples/few_shot_qa.py, and the row says how many seconds that took in all. The
settings take turns, beside no busy process and beside one. `default` is libgomp's own, 300,000, of a program that
imports torch first; `shoal` what a program gets that imports shoal.Engine first; `1 thread` OMP_NUM_THREADS=1.
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
    """Measure every setting, alone and beside a busy process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/spinning.csv"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="numbers of busy processes")
    parser.add_argument("--counts", nargs="+", default=COUNTS)
    parser.add_argument("--example", action="store_true", help="time examples/few_shot_qa.py instead")
    args = parser.parse_args()
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
                    row = {"busy": busy, "spin_count": count, "round": turn}
                    if args.example:
                        row |= {"seconds": f"{example_seconds(count):.1f}", "load": f"{os.getloadavg()[0]:.1f}"}
                    else:
                        row["tokens_per_s"] = f"{tokens_per_second(count):.1f}"
                    table.add(row)
                    print(*row.values(), flush=True)
            finally:
                for neighbour in neighbours:
                    neighbour.kill()


def tokens_per_second(count: str) -> float:
    """Tokens a second of a new process with a setting."""
    return float(_run(count, "from benchmarks.spinning import answer; answer()"))


def example_seconds(count: str) -> float:
    """Seconds of a new process with a setting for the example, imports included."""
    begin = time.perf_counter()
    _run(count, "import runpy, sys; sys.path.insert(0, 'examples'); sys.argv[1:] = []; "
                "runpy.run_path('examples/few_shot_qa.py', run_name='__main__')")  # fmt: skip
    return time.perf_counter() - begin


def _run(count: str, work: str) -> str:
    """Output of a new process that does `work`."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    if count == "1 thread":
        environment["OMP_NUM_THREADS"] = "1"
    elif count not in ("default", "shoal"):
        environment["GOMP_SPINCOUNT"] = count
    first = "import shoal; shoal.Engine" if count == "shoal" else "import torch"
    command = [sys.executable, "-c", f"{first}; {work}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=TIME_LIMIT_S)
    return done.stdout


if __name__ == "__main__":
    main()
