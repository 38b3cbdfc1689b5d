"""Gains of launch and library choices in forwards of few rows, all by one engine in one run.

    python benchmarks/step_variants.py --out benchmarks/results/step_variants.csv

Every variant is timed in turn, several rounds of all of them, so that a drifting clock meets them alike; a row is the
median of a variant's rounds. Columns: most rows for which norms are deferred (`fold`), the splits of the keys
(`splits`;
0: the engine's own choice), the stages of the attention's pipeline (`stages`; 0: the tiling's own) and the library of
matrix products (`blas`).
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
from benchmarks.gpu_phases import Batch, refresh_of
from benchmarks.model_shapes import write_shape
from benchmarks.table import Table
from shoal import Engine
from shoal.kernels.attention import triton as attention_triton
from shoal.kernels.attention.tiling import AttentionTiling, choose_tiling
from shoal.runtime.worker.gpu import graphs as forward_graphs
from shoal.runtime.worker.gpu.graphs import products_by


@dataclass(frozen=True, slots=True)
class Variant:
    """See the module's text."""

    fold: int = 0
    splits: int = 0
    stages: int = 0
    blas: str = "cublas"


V, LT = Variant, "cublaslt"
CASES: tuple[tuple[str, int, tuple[Variant, ...]], ...] = (
    ("step", 1, (
        V(), V(256), V(blas=LT), V(256, 8, 3, LT), V(256, 4, 3, LT), V(256, 4, 4, LT), V(256, 4, 5, LT),
        V(256, 2, 5, LT),
    )),
    ("canvas", 1, (V(), V(0, 1), V(0, 1, 0, LT), V(512, 1, 0, LT))),
    ("step", 2, (V(256, 2, 4), V(blas=LT), V(256, 2, 4, LT), V(256, 4, 3, LT))),
    ("step", 4, (V(256), V(blas=LT), V(256, blas=LT), V(256, 1, 4, LT), V(256, 1, 3, LT))),
    ("step", 8, (V(), V(blas=LT), V(256, blas=LT), V(0, 0, 4, LT))),
    ("step", 16, (V(), V(blas=LT))),
    ("step", 32, (V(), V(blas=LT))),
    ("refresh", 1, (V(), V(blas=LT))),
    ("refresh", 8, (V(), V(blas=LT))),
    ("canvas", 32, (V(), V(blas=LT))),
)  # fmt: skip
GROUPED: tuple[tuple[str, int, tuple[Variant, ...]], ...] = (
    ("step", 1, (V(), V(blas=LT), *(V(128, splits, 0, LT) for splits in (2, 4, 8)), V(128, 8, 4, LT))),
    ("canvas", 1, tuple(V(0, splits, 0, LT) for splits in (1, 2, 4))),
    *(("step", n, (V(0, 0, 0, LT), *(V(128, splits, 0, LT) for splits in (1, 2, 4, 8)))) for n in (2, 4, 8)),
)
"""For a model of few KV heads."""


def timed(engine: Engine, batch: Batch, phase: str, variant: Variant) -> Callable[[], object]:
    """A run of the forward under a variant: a replay where the engine replays such forwards."""
    runner, graphs = batch.executor.runner, batch.executor.graphs

    def choose() -> None:
        runner.layers.few_rows = variant.fold
        if variant.splits:
            runner.splits = lambda requests, rows: variant.splits  # type: ignore[method-assign]
        elif "splits" in runner.__dict__:
            del runner.__dict__["splits"]
        attention_triton.choose_tiling = (  # type: ignore[attr-defined]
            lambda *args: staged(choose_tiling(*args), variant.stages)
        )
        forward_graphs.products_by = lambda library: products_by(variant.blas)

    choose()
    start = 0 if phase == "refresh" else batch.prompt - batch.prompt % 64
    items = batch.block() if phase == "step" else list(batch.refresh(start).items)
    if not graphs.takes(items):
        eager = refresh_of(batch, start)

        def launch() -> None:
            choose()
            with products_by(variant.blas):
                eager()

        return launch
    graphs.forget()
    _, body = graphs.load(items, batch.worker.enter(items))
    head = list(body.heads.values())[-1]

    def replay() -> None:
        assert body.graph is not None
        body.graph.replay()
        head.replay()

    return replay


def staged(tiling: AttentionTiling, stages: int) -> AttentionTiling:
    """The tiling with another number of stages, if there is one."""
    return replace(tiling, num_stages=stages) if stages else tiling


def main() -> None:
    """Measure; writes every row at once."""
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
    table = Table(args.out, rates.origin(args.commit))
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder))
        with Engine(str(path), load_format="dummy", device="cuda", depth=16, page_size=64, fold_norms=True) as engine:
            for phase, requests, variants in CASES if args.shape == "llada-8b" else GROUPED:
                if time.monotonic() - began > args.time_limit:
                    print("time is up", flush=True)
                    break
                batch = Batch(engine, requests, 2100)
                runs = {variant: timed(engine, batch, phase, variant) for variant in variants}
                times: dict[Variant, list[float]] = {variant: [] for variant in variants}
                for _, (variant, run) in itertools.product(range(5), runs.items()):
                    times[variant].append(seconds(run, 10 if phase == "step" else 3, 1))
                for variant in variants:
                    ms = median(times[variant]) * 1e3
                    names = {"shape": args.shape, "phase": phase, "requests": requests}
                    row = {**names, **asdict(variant), "ms": f"{ms:.3f}"}
                    table.add(row)
                    print(*row.values(), flush=True)
                batch.close()


if __name__ == "__main__":
    main()
