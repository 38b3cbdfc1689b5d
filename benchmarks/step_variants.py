"""What each way of saving launches and idle memory is worth in a forward of few rows, by CUDA graph, one engine for all.

    python benchmarks/step_variants.py --out benchmarks/results/step_variants.csv

Every variant is captured anew and timed in turn, several rounds of all of them, so that a drifting clock meets them
alike; a row is the median of a variant's rounds. Columns: whether norms are put off (`fold`) and splits merged by the
attention kernel (`merge`), MiB of weights asked for ahead by RoPE (of the output projection, `ahead_out`) and by SwiGLU
(of the down projection, `ahead_down`), and the splits of the keys (`splits`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import measure_rates, seconds
from benchmarks.gpu_phases import Batch
from benchmarks.model_shapes import write_shape
from benchmarks.table import Table
from shoal import Engine
from shoal.kernels import dispatch
from shoal.provenance import commit, hardware

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """See the module's text; few: rows up to which norms are put off; splits 0: the runner's own choice."""

    fold: int = 0
    merge: bool = False
    ahead_out: int = 0
    ahead_down: int = 0
    splits: int = 0


PLAIN, FEWER = Variant(), Variant(256, True)
CASES: tuple[tuple[str, int, tuple[Variant, ...]], ...] = (
    ("step", 1, (
        PLAIN, Variant(256), Variant(0, True), FEWER,
        *(Variant(256, True, out, down) for out, down in (
            (8, 0), (16, 0), (32, 0), (0, 8), (0, 16), (0, 32), (16, 16), (32, 16), (32, 32), (16, 24), (24, 24))),
        Variant(0, False, 16, 16), Variant(256, True, splits=4), Variant(256, True, 16, 16, 4), Variant(256, False, 16, 16),
    )),
    ("canvas", 1, (PLAIN, Variant(512, True), Variant(splits=1), Variant(0, False, 16, 16, 1), Variant(0, False, 0, 16, 1),
                   Variant(512, False, 0, 16, 1))),
    ("step", 4, (PLAIN, Variant(256), FEWER, Variant(256, True, 16, 16), Variant(256, True, 0, 16), Variant(0, True))),
    ("step", 8, (PLAIN, Variant(256), FEWER, Variant(256, True, 16, 16), Variant(256, True, 0, 16), Variant(0, False, 0, 16))),
    ("step", 16, (PLAIN, Variant(512), Variant(0, False, 0, 16), Variant(0, False, 16, 16))),
    ("step", 32, (PLAIN, Variant(1024), Variant(0, False, 0, 16), Variant(0, False, 16, 16))),
)  # fmt: skip


def captured(engine: Engine, batch: Batch, phase: str, variant: Variant) -> Callable[[], object]:
    """A replay of the forward under a variant."""
    worker = batch.worker
    runner = worker.runner
    runner.layers._few = variant.fold
    runner.layers._counters = COUNTERS if variant.merge else None
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
    global COUNTERS
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
    os.environ[dispatch.MERGE_VARIABLE] = "1"
    COUNTERS = dispatch.merge_counters(torch.device("cuda"))
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
                    row = {"shape": args.shape, "phase": phase, "requests": requests, **asdict(variant), "ms": f"{ms:.3f}"}
                    table.add(row)
                    print(row, flush=True)
                batch.close()


if __name__ == "__main__":
    main()
