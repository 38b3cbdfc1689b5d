"""Tensor parallelism on two GPUs against one: answers, block steps, refreshes, sums, requests, replicas, start-up.

    python benchmarks/tensor_parallel.py --out benchmarks/results/tensor_parallel
    python benchmarks/tensor_parallel.py --device cpu --shape tiny --out /tmp/tp     # to see that it works, over gloo

Runs ranks of one model in processes of their own, first one rank and then two, on random weights that are the same for
both; then servers: two replicas on a GPU each (requests go to them in turn) and one over both. Results in the folder:
`tensor_parallel_tp1.csv` and `_tp2.csv` (row by row), `servers.csv`, `summary.json` with the ratios and with how far
the answers agree: equal tokens for a tiny model in float32, log-probabilities for the big one. What is there when the
time is up stays.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.load.client import Decoding, closed_loop, quantile
from benchmarks.load.traffic import Traffic, plan
from benchmarks.model_shapes import SHAPES, write_shape
from benchmarks.server_process import ServerProcess
from benchmarks.table import Table
from shoal.provenance import commit, hardware

ROOT = Path(__file__).resolve().parents[1]
STREAMS = {"cuda": (2, 16, 64), "cpu": (2,)}


def run_ranks(args: argparse.Namespace, size: int, seconds: float) -> bool:
    """Run `size` ranks to their end; False when they failed or were not done in time."""
    environment = os.environ | {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.load.rank", "--out", str(args.out),
                   "--rendezvous", f"{folder}/ranks", "--size", str(size), "--device", args.device,
                   "--shape", args.shape, "--prompt", str(args.prompt), "--canvas", str(args.canvas),
                   "--commit", args.commit, "--batches", *map(str, args.batches)]  # fmt: skip
        ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=environment, cwd=ROOT) for rank in range(size)]
        deadline = time.monotonic() + seconds
        try:
            while any(rank.poll() is None for rank in ranks):
                if time.monotonic() > deadline or any(rank.poll() for rank in ranks):
                    return False
                time.sleep(0.2)
            return all(rank.returncode == 0 for rank in ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def summarize(out: Path, shape: str) -> dict[str, Any]:
    """Ratios of two ranks to one, and how the answers differ, as far as there are results."""
    rows = {size: _requests(out / f"tensor_parallel_tp{size}.csv") for size in (1, 2)}
    ratios: dict[str, Any] = {}
    for batch in rows[1].keys() & rows[2].keys():
        one, two = rows[1][batch], rows[2][batch]
        ratios[f"block step, batch {batch}"] = float(one["block_step_ms"]) / float(two["block_step_ms"])
        ratios[f"refresh, batch {batch}"] = float(one["refresh_ms"]) / float(two["refresh_ms"])
        ratios[f"requests, batch {batch}"] = float(two["tokens_per_s"]) / float(one["tokens_per_s"])
    summary: dict[str, Any] = {"two ranks over one": {name: round(value, 3) for name, value in sorted(ratios.items())}}
    for name in ("exact", shape):
        files = [out / f"{name}_tp{size}.json" for size in (1, 2)]
        if all(file.exists() for file in files):
            one, two = (json.loads(file.read_text()) for file in files)
            pairs = zip(one["log_probabilities"], two["log_probabilities"], strict=True)
            summary[name] = {
                "equal_tokens": one["tokens"] == two["tokens"],
                "largest_difference_of_log_probabilities": max(abs(a - b) for a, b in pairs),
            }
    return summary


def _requests(path: Path) -> dict[int, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {int(row["batch"]): row for row in csv.DictReader(file) if row["part"] == "requests"}


def servers(args: argparse.Namespace, deadline: float) -> None:
    """The same streams of requests against one server of two ranks, and against two of one."""
    table = Table(args.out / "servers.csv", {"shape": args.shape, "commit": args.commit, "hardware": hardware()})
    vocabulary = SHAPES[args.shape]["vocab_size"] // 2
    traffic = Traffic(args.scale, 0.0, 0, 1, 4, vocabulary, SHAPES[args.shape]["max_sequence_length"] - 1)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--model-path", str(write_shape(args.shape, Path(folder))), "--load-format", "dummy"]
        devices = ("cuda:0", "cuda:1") if args.device == "cuda" else ("cpu", "cpu")
        for name, each in (("tp 2", [["--device", args.device, "--tp-size", "2"]]),
                           ("2 replicas", [["--device", device] for device in devices])):  # fmt: skip
            begin = time.monotonic()
            started = [ServerProcess(*flags, *own) for own in each]
            try:
                for server in started:
                    server.wait_ready(max(1.0, deadline - time.monotonic()))
                ready = time.monotonic() - begin
                for streams in STREAMS[args.device]:
                    if time.monotonic() > deadline:
                        return
                    items = plan(traffic, 1.0, max(4, 2 * streams), seed=streams)
                    urls = [server.url for server in started]
                    done, seconds = asyncio.run(closed_loop(urls, items, Decoding("dual"), streams))
                    if errors := [one.error for one in done if one.error]:
                        print(f"{name}: {errors[0]}", flush=True)
                    table.add({
                        "servers": name, "streams": streams, "requests": len(done), "errors": len(errors),
                        "tokens_per_s": f"{sum(one.tokens for one in done) / seconds:.1f}",
                        "total_p50_s": f"{quantile([one.total for one in done], 50):.3f}",
                        "total_p99_s": f"{quantile([one.total for one in done], 99):.3f}", "start_s": f"{ready:.1f}",
                    })  # fmt: skip
            finally:
                for server in started:
                    server.stop()


def main() -> None:
    """Everything in the order of value, within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tensor_parallel"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llada-8b")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 8])
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of the servers' requests")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        print("tensor_parallel needs two CUDA GPUs")
        return
    args.commit, args.out = args.commit or commit(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    states = {}
    for size in (1, 2):
        begin = time.monotonic()
        done = run_ranks(args, size, min(0.35 * 60 * args.minutes, deadline - time.monotonic()))
        states[f"tp {size}"] = {"done": done, "seconds": round(time.monotonic() - begin, 1)}
        summary = {"hardware": hardware(), "commit": args.commit, "parts": states, **summarize(args.out, args.shape)}
        (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(json.dumps(summary, indent=1), flush=True)
    servers(args, deadline)


if __name__ == "__main__":
    main()
