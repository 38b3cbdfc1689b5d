"""A small model on a CPU: tokens a second by cache mode, and what loading it takes.

    python -m benchmarks.cpu_speed --out benchmarks/results/cpu_speed.csv
    python -m benchmarks.cpu_speed --shape tiny --prefix 64      # to see that it works

Writes a checkpoint of random weights in bf16, as one file and in shards, and a LoRA adapter. Each load and each dtype's
requests run in a process of their own. Rows with `part`:

* `load`: seconds of `load_model`; the resident memory before it (the imports) and at its peak, the bytes of the model's
  parameters in `dtype`, and the growth over these bytes. The files are in the page cache.
* `speed`: seconds and tokens a second of requests one after the other that share their prefix, in blocks of 32 with a
  fixed number of forwards a block. One forward before them fills the cache and is not counted.

`load_average` is that of the last minute as the row was measured: other work on the machine slows these figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.checkpoint import write_adapter, write_checkpoint
from benchmarks.model_shapes import DEPTHS, SHAPES
from benchmarks.table import Table
from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.runtime.cpu_tuning import limit_spinning
from shoal.runtime.model.loader import load_model

BLOCK, QUESTION = 32, 16
SHARDS = 3
MIB = 1 << 20
COLUMNS = (
    "part", "shape", "dtype", "files", "lora", "mode", "prefix", "cached_tokens", "canvas", "nfe", "seconds",
    "tokens_per_s", "weights_mib", "before_mib", "peak_mib", "growth_over_weights", "load_average",
)  # fmt: skip


def peak_mib() -> float:
    """The most resident memory of this program so far. (`ru_maxrss` counts what the process was before `exec` too.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def loading(model: str, dtype: str, lora: str | None) -> dict[str, float]:
    """Load a model in this process."""
    before, begin = peak_mib(), time.perf_counter()
    decoder = load_model(model, dtype=getattr(torch, dtype), lora=lora)
    seconds = time.perf_counter() - begin
    weights = decoder.config.num_parameters * decoder.dtype.itemsize / MIB
    return {
        "seconds": round(seconds, 2), "weights_mib": round(weights), "before_mib": round(before),
        "peak_mib": round(peak_mib()), "growth_over_weights": round((peak_mib() - before) / weights, 2),
    }  # fmt: skip


def answering(
    model: str, dtype: str, modes: list[CacheMode], *, depth: int, prefix: int, canvas: int, nfe: int, requests: int
) -> list[dict[str, Any]]:
    """Answer in every mode in this process; a row for each."""
    rng = random.Random(7)
    shared = [rng.randrange(4, 100) for _ in range(prefix)]
    prompts = [shared + [rng.randrange(4, 100) for _ in range(QUESTION)] for _ in range(1 + requests)]
    steps = nfe * -(-canvas // BLOCK)
    block = min(BLOCK, canvas)
    params = SamplingParams(max_new_tokens=canvas, block_length=block, steps=steps, ignore_eos=True)
    rows = []
    tokens = 4 * (prefix + QUESTION + canvas)
    with Engine(model, device="cpu", dtype=dtype, depth=depth, kv_cache_tokens=tokens) as engine:
        for mode in modes:
            engine.flush_cache()
            engine.generate(prompts[0], replace(params, max_new_tokens=block, steps=1), cache_mode=mode)
            begin = time.perf_counter()
            outputs = [engine.generate(prompt, params, cache_mode=mode) for prompt in prompts[1:]]
            seconds = time.perf_counter() - begin
            made = sum(len(output.token_ids) for output in outputs)
            rows.append({
                "mode": mode, "prefix": prefix, "cached_tokens": outputs[-1].cached_tokens, "canvas": canvas,
                "nfe": outputs[-1].nfe, "seconds": round(seconds, 2), "tokens_per_s": round(made / seconds, 2),
                "load_average": load_average(),
            })  # fmt: skip
    return rows


def load_average() -> float:
    """Processes that ran or wanted to in the last minute, on average."""
    return round(os.getloadavg()[0], 1)


def in_new_process(name: str, **arguments: Any) -> Any:
    """What a function of this module returns, called in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cpu_speed", "--call", json.dumps([name, arguments])]
    environment = dict(os.environ)
    limit_spinning(environment)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure; every row is written at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/cpu_speed.csv"))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="a2d-qwen3-0.6b")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", choices=get_args(CacheMode), default=["none", "dual", "bicache"])
    parser.add_argument("--prefix", type=int, default=192, help="tokens that all prompts share")
    parser.add_argument("--canvas", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=8, help="forwards a block")
    parser.add_argument("--requests", type=int, default=1, help="requests that are counted")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (a temporary folder)")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        name, arguments = json.loads(args.call)
        calls: dict[str, Callable[..., object]] = {"loading": loading, "answering": answering}
        print(json.dumps(calls[name](**arguments)), flush=True)
        return
    table = Table(args.out, {
        "threads": torch.get_num_threads(), "command": "python -m benchmarks.cpu_speed " + shlex.join(sys.argv[1:]),
        "commit": commit(), "hardware": hardware(), "torch": torch.__version__,
    })  # fmt: skip

    def add(row: dict[str, Any]) -> None:
        table.add({column: row.get(column, "") for column in COLUMNS})
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        single = write_checkpoint(args.shape, Path(folder) / "single")
        size = (single / "model.safetensors").stat().st_size
        sharded = write_checkpoint(args.shape, Path(folder) / "sharded", size // SHARDS)
        adapter = write_adapter(single, Path(folder) / "adapter")
        for dtype in args.dtypes:
            same = {"shape": args.shape, "dtype": dtype}
            for path in (single, sharded):
                files = len(list(path.glob("*.safetensors")))
                for lora in (None, str(adapter)):
                    found = in_new_process("loading", model=str(path), dtype=dtype, lora=lora)
                    labels = {"files": files, "lora": "no" if lora is None else "yes"}
                    add({"part": "load", **same, **labels, **found, "load_average": load_average()})
            rows = in_new_process(
                "answering", model=str(single), dtype=dtype, modes=args.modes, depth=DEPTHS[args.shape],
                prefix=args.prefix, canvas=args.canvas, nfe=args.nfe, requests=args.requests,
            )  # fmt: skip
            for row in rows:
                add({"part": "speed", **same, **row})


if __name__ == "__main__":
    main()
