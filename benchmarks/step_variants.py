"""What ways of saving launches and idle memory are worth in forwards of few rows, by CUDA graph, one engine for all.

    python benchmarks/step_variants.py --out benchmarks/results/step_variants.csv

Every variant is captured anew and timed in turn, several rounds of all of them, so that a drifting clock meets them
alike; a row is the median of a variant's rounds. Columns: up to how many rows norms are put off (`fold`), MiB of weights
asked for ahead by RoPE (of the output projection, `ahead_out`) and by SwiGLU (of the down projection, `ahead_down`),
the splits of the keys (`splits`; 0: the engine's own choice), the stages of the attention's pipeline (`stages`) and the
rows of a program that merges splits (`merge_rows`).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import measure_rates, seconds
from benchmarks.gpu_phases import Batch
from benchmarks.model_shapes import write_shape
from benchmarks.table import Table
from shoal import Engine
from shoal.kernels import attention_triton, merge_state_triton
from shoal.kernels.attention_tiling import choose_tiling
from shoal.provenance import commit, hardware

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """See the module's text."""

    fold: int = 0
    ahead_out: int = 0
    ahead_down: int = 0
    splits: int = 0
    stages: int = 3
    merge_rows: int = 8
    blas: str = "cublas"
    splitk: bool = True


V = Variant
CASES: tuple[tuple[str, int, tuple[Variant, ...]], ...] = (
    ("step", 1, (
        V(), V(256), V(0, splits=4), V(256, splits=4), V(256, splits=4, merge_rows=4), V(256, splits=4, merge_rows=2),
        V(256, splits=4, stages=4), V(256, splits=4, stages=5), V(256, splits=8, stages=2), V(256, splits=4, stages=2),
        V(256, splits=2, stages=5), V(256, 8, 0, 4), V(256, 32, 0, 4), V(256, 0, 8, 4), V(256, 0, 24, 4), V(256, 16, 16, 4),
        V(256, splits=4, blas="cublaslt"), V(256, splits=4, blas="cublaslt", splitk=False),
    )),
    ("canvas", 1, (V(), V(splits=1), V(512, splits=1), V(512), V(0, 0, 16, 1), V(splits=4))),
    ("step", 2, (V(), V(256), V(splits=2), V(256, splits=2), V(256, splits=2, stages=4), V(256, splits=4, stages=2))),
    ("step", 4, (V(), V(256), V(256, splits=2), V(256, splits=2, stages=2), V(256, 0, 16))),
    ("step", 8, (V(), V(256), V(256, splits=2), V(256, stages=2), V(256, 0, 16))),
    ("step", 16, (V(), V(512), V(stages=2), V(stages=4))),
    ("step", 32, (V(), V(1024), V(stages=2), V(stages=4))),
)  # fmt: skip


def captured(engine: Engine, batch: Batch, phase: str, variant: Variant) -> Callable[[], object]:
    """A replay of the forward under a variant."""
    worker = batch.worker
    runner = worker.runner
    runner.layers._few = variant.fold
    attention_triton.choose_tiling = lambda *args: replace(choose_tiling(*args), num_stages=variant.stages)
    merge_state_triton._BLOCK_ROWS = variant.merge_rows
    torch.backends.cuda.preferred_blas_library(variant.blas)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (variant.splitk, variant.splitk)
    runner.layers.prefetch_bytes = (variant.ahead_out * MIB, variant.ahead_down * MIB)
    if variant.splits:
        runner.splits = lambda requests, rows: variant.splits  # type: ignore[method-assign]
    elif "splits" in runner.__dict__:
        del runner.__dict__["splits"]
    runner.layers._ahead_rows = 1 << 20
    graphs = worker._graphs
    graphs._bodies.clear()
    graphs._pool = None
    items = batch.block() if phase == "step" else list(batch.refresh(batch.prompt - batch.prompt % 64).items)
    bucket = graphs._bucket(items, False)
    body = graphs._body(bucket)
    body.arrays.load(graphs._contents(items, worker._enter(items), bucket))
    head = list(body.heads.values())[-1]

    def run() -> None:
        assert body.graph is not None
        body.graph.replay()
        head.replay()

    return run


def main() -> None:
    """Measure; every row is written when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_variants.csv"))
    parser.add_argument("--shape", choices=("dream-7b", "llada-8b"), default="llada-8b")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds after which no case is begun")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("step_variants needs a CUDA GPU")
        return
    began = time.monotonic()
    rates = measure_rates()
    where = {**rates.columns(), "commit": args.commit or commit(), "hardware": hardware(), "torch": torch.__version__}
    table = Table(args.out, where)
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder))
        with Engine(str(path), load_format="dummy", device="cuda", depth=16, page_size=64, fold_norms=True) as engine:
            for phase, requests, variants in CASES:
                if time.monotonic() - began > args.time_limit:
                    print("time is up", flush=True)
                    break
                batch = Batch(engine, requests, 2100)
                runs = {variant: captured(engine, batch, phase, variant) for variant in variants}
                times: dict[Variant, list[float]] = {variant: [] for variant in variants}
                for _, (variant, run) in itertools.product(range(5), runs.items()):
                    times[variant].append(seconds(run, 10, 2))
                for variant in variants:
                    ms = median(times[variant]) * 1e3
                    names = {"shape": args.shape, "phase": phase, "requests": requests}
                    row = {**names, **asdict(variant), "ms": f"{ms:.3f}"}
                    table.add(row)
                    print(*row.values(), flush=True)
                batch.close()


if __name__ == "__main__":
    main()
