"""How long an engine takes from the start of its process to its first answer, with a checkpoint in the real layout.

    python benchmarks/start_up.py --out benchmarks/results/start_up.csv
    python benchmarks/start_up.py --device cpu --shape tiny --out out/start_up.csv     # to see that it works

Writes a checkpoint of random weights in shards, then starts a process for each case: `cold` with nothing in Triton's
cache, `warm` with what the first left there, and `cold, alone` where no other process compiles. Before each the shards
are dropped from the page cache, as far as the system allows. Seconds count from the start of the process: until the
modules are imported, the weights read, the other processes done, the engine ready, and the first answer there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.checkpoint import write_checkpoint
from benchmarks.model_shapes import SHAPES
from benchmarks.table import Table
from shoal.provenance import commit, hardware

CASES = (("cold", True, True), ("warm", False, True), ("cold, alone", True, False))
"""Name, whether the cache is empty, whether other processes compile."""


def drop_from_memory(path: Path) -> None:
    """Ask the system to forget the shards' pages."""
    for file in path.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class Marks(logging.Handler):
    """When log records with certain words came, in seconds from `began` (wall clock)."""

    WORDS = (("kernels compiled", "compiled_s"), ("processes that compile", "compiled_s"), ("GPU memory", "weights_s"))

    def __init__(self, began: float):
        super().__init__(logging.INFO)
        self.began = began
        self.seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time; records go to standard error too."""
        words = record.getMessage()
        print(f"{time.time() - self.began:6.1f} {words}", file=sys.stderr, flush=True)
        for part, name in self.WORDS:
            if part in words:
                self.seconds[name] = time.time() - self.began


def start_one(path: Path, device: str, began: float) -> dict[str, float]:
    """Start an engine in this process and ask once; seconds since `began`."""
    from shoal import Engine, SamplingParams

    marks = Marks(began)
    logging.getLogger("shoal").addHandler(marks)
    logging.getLogger("shoal").setLevel(logging.INFO)
    imported = time.time() - began
    with Engine(str(path), device=device) as engine:
        ready = time.time() - began
        engine.generate([[1, 2, 3, 4]], SamplingParams(max_new_tokens=32, steps=4, ignore_eos=True))
        return {"imported_s": imported, **marks.seconds, "ready_s": ready, "answer_s": time.time() - began}


def main() -> None:
    """Measure; writes every row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_up.csv"))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llada-8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and the caches go (a temporary folder)")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds after which no start is begun")
    parser.add_argument("--one", nargs=2, metavar=("PATH", "BEGAN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(start_one(Path(args.one[0]), args.device, float(args.one[1]))), flush=True)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print("start_up needs a CUDA GPU, or --device cpu")
        return
    begun = time.monotonic()
    where = {
        "command": "python " + shlex.join(sys.argv), "commit": args.commit or commit(), "hardware": hardware(),
        "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__,
    }  # fmt: skip
    table = Table(args.out, where)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = write_checkpoint(args.shape, Path(folder))
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        print(f"{size / 1e9:.1f} GB written after {time.monotonic() - begun:.0f} s", flush=True)
        for number, (name, empty, ahead) in enumerate(CASES):
            if time.monotonic() - begun > args.time_limit:
                print("time is up", flush=True)
                break
            cache = Path(folder) / (f"cache{number}" if empty else "cache0")
            environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "SHOAL_COMPILE_AHEAD": str(int(ahead))}
            drop_from_memory(path)
            command = [sys.executable, __file__, "--device", args.device, "--one", str(path), str(time.time())]
            ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            row: dict[str, object] = {
                "shape": args.shape,
                "case": name,
                "device": args.device,
                "gb": f"{size / 1e9:.1f}",
            }
            columns = ("imported_s", "weights_s", "compiled_s", "ready_s", "answer_s")
            found = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
            row |= {column: f"{found[column]:.1f}" if column in found else "" for column in columns}
            row["cache_entries"] = len(list(cache.iterdir())) if cache.exists() else 0
            table.add(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
