"""Refreshes and block steps of an 8B-shape model against their floors, and where their time goes.

    python benchmarks/gpu_phases.py --out benchmarks/results/gpu_phases.csv

The floor of a phase is the larger of its bytes over the copy bandwidth and its FLOPs over the matmul rate, both
measured in the same run. Bytes: weights, keys and values, once each. FLOPs: products of the layers and the head, and
attention. Random weights; canvases are read and written as in serving.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_rates import Rates, measure_rates, seconds
from benchmarks.model_shapes import SHAPES, write_shape
from shoal import Engine
from shoal.provenance import commit, hardware
from shoal.runtime.cuda_worker import CudaWorker
from shoal.runtime.messages import AddRequest, Forward, ForwardItem, Release
from shoal.runtime.model_config import ModelConfig
from shoal.runtime.refresh_plan import plan_refresh
from shoal.runtime.sampling_params import SamplingParams

CANVAS, BLOCK, NFE = 256, 32, 8


def layer_flops(model: ModelConfig, tokens: float) -> float:
    """FLOPs of one layer's matrix products for so many tokens."""
    return 2 * tokens * model.hidden_size * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)


def floor(
    model: ModelConfig, rates: Rates, requests: int, queries: int, keys: int, head_rows: int
) -> tuple[float, float]:
    """Seconds for bytes and for FLOPs of a forward of `queries` tokens a request over all layers."""
    weights = model.num_parameters - model.embedding_size * model.hidden_size
    kv = requests * keys * 2 * model.kv_size * model.num_layers
    flops = (
        model.num_layers * (layer_flops(model, requests * queries) + 4 * requests * queries * keys * model.q_size)
        + 2 * head_rows * model.hidden_size * model.vocab_size
    )
    return 2 * (weights + kv) / rates.bytes, flops / rates.flops


class Batch:
    """Requests with pages of their own on a worker, without scheduler and tree; prefixes may share pages."""

    def __init__(self, engine: Engine, requests: int, prompt: int, shared: int = 0, depth: int = 0):
        worker = engine._parts.worker
        assert isinstance(worker, CudaWorker)
        self.worker = worker
        config = engine._parts.scheduler.memory.config
        self.rids = [f"b{i}" for i in range(requests)]
        self.prompt, self.total = prompt, prompt + CANVAS
        pages, bands = -(-self.total // config.page_size), config.num_bands
        rng = np.random.default_rng(0)
        free = rng.permutation(engine._parts.scheduler.memory.kv.num_pages).astype(np.int32)
        tables = free[: requests * pages * bands].reshape(requests, bands, pages)
        tables[:, : config.bands(depth), : shared // config.page_size] = tables[
            0, : config.bands(depth), : shared // config.page_size
        ]
        params = SamplingParams(max_new_tokens=CANVAS, block_length=BLOCK, steps=CANVAS // BLOCK * NFE, ignore_eos=True)
        for rid, table in zip(self.rids, tables, strict=True):
            tokens = rng.integers(0, 1000, prompt)
            worker.add(AddRequest(rid, tokens, CANVAS, params, 0, NFE, table))

    def refresh(self, start: int) -> Forward:
        """A forward over positions [start, total)."""
        first = self.prompt
        items = [ForwardItem(r, start, self.total, self.total, first, first + BLOCK, start) for r in self.rids]
        return Forward(tuple(items))

    def block(self) -> list[ForwardItem]:
        """A step over the first block."""
        first = self.prompt
        return [ForwardItem(r, first, first + BLOCK, self.total, first, first + BLOCK, first) for r in self.rids]

    def close(self) -> None:
        """Take the requests off the worker."""
        self.worker.release(Release(tuple(self.rids)))


def replay_of(batch: Batch, items: list[ForwardItem]) -> Callable[[], object]:
    """A replay of the graph that runs `items`, and of its head for all masks."""
    worker, graphs = batch.worker, batch.worker._graphs
    canvases = worker._enter(items)
    graphs.run(items, canvases, 1)
    plan = graphs._plan(items, canvases)
    body = graphs._bodies[graphs._bucket(items, plan is not None and bool(plan.groups))]
    head = list(body.heads.values())[-1]

    def run() -> None:
        assert body.graph is not None
        body.graph.replay()
        head.replay()

    return run


def kernel_table(run: Callable[[], object]) -> dict[str, float]:
    """Microseconds by kernel of one run."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return {e.key[:70]: e.device_time_total for e in profiler.key_averages() if e.device_time_total > 0}


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_phases.csv"))
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["llada-8b"])
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--fold-norms", action="store_true", help="the engine's option of this name")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--time-limit", type=float, default=300.0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_phases needs a CUDA GPU")
        return
    rates = measure_rates()
    print(f"matmul {rates.flops / 1e12:.0f} TFLOP/s, copy {rates.bytes / 1e12:.2f} TB/s", flush=True)
    started = time.monotonic()
    rows, kernels = [], []
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = write_shape(shape, Path(folder))
            engine = Engine(
                str(path), load_format="dummy", device="cuda", depth=16, page_size=args.page_size,
                fold_norms=args.fold_norms,
            )  # fmt: skip
            model = engine.model_config
            cases = [
                ("refresh", 32, 2000),
                ("refresh", 8, 2100),
                ("refresh", 1, 2100),
                ("canvas", 32, 2100),
                ("canvas", 1, 2100),
            ]
            cases += [("step", n, 2100) for n in (1, 4, 8, 16, 32)] + [("shared step", n, 2100) for n in (4, 32)]
            for phase, requests, prompt in cases:
                if time.monotonic() - started > args.time_limit:
                    break
                total = prompt + CANVAS
                if phase.endswith("step"):
                    shared = 1984 if phase.startswith("shared") else 0
                    batch = Batch(engine, requests, prompt, shared, 16)
                    run = replay_of(batch, batch.block())
                    bytes_s, flops_s = floor(model, rates, requests, BLOCK, total, requests * BLOCK)
                    repeats = 20
                else:
                    start = 0 if phase == "refresh" else prompt - prompt % args.page_size
                    batch = Batch(engine, requests, prompt)
                    items = list(batch.refresh(start).items)
                    graphed = batch.worker._graphs.takes(items)
                    run = replay_of(batch, items) if graphed else refresh_of(batch, start)
                    bytes_s, flops_s = floor(model, rates, requests, total - start, total, 0)
                    repeats = 3 if requests > 8 else 10
                elapsed = seconds(run, repeats, 2)
                best = max(bytes_s, flops_s)
                rows.append({
                    "shape": shape, "phase": phase, "requests": requests, "prompt": prompt, "canvas": CANVAS,
                    "page_size": args.page_size, "ms": f"{elapsed * 1e3:.3f}", "floor_bytes_ms": f"{bytes_s * 1e3:.3f}",
                    "floor_flops_ms": f"{flops_s * 1e3:.3f}", "over_floor": f"{elapsed / best:.3f}",
                    "matmul_share": f"{flops_s / elapsed:.3f}",
                    "matmul_tflops": f"{rates.flops / 1e12:.0f}", "copy_tbs": f"{rates.bytes / 1e12:.2f}",
                })  # fmt: skip
                print(rows[-1], flush=True)
                times = kernel_table(run)
                for name, microseconds in sorted(times.items(), key=lambda pair: -pair[1]):
                    kernels.append(
                        {
                            "shape": shape,
                            "phase": phase,
                            "requests": requests,
                            "kernel": name,
                            "us": f"{microseconds:.1f}",
                        }
                    )
                top = sorted(times.items(), key=lambda pair: -pair[1])[:9]
                print(
                    "   sum %.3f ms;" % (sum(times.values()) / 1e3),
                    "; ".join(f"{name[:34]} {us:.0f}" for name, us in top),
                    flush=True,
                )
                batch.close()
                write(args.out, rows, args.commit)
                write(args.out.with_name(args.out.stem + "_kernels.csv"), kernels, args.commit)
            engine.shutdown()
            del engine


def refresh_of(batch: Batch, start: int) -> Callable[[], object]:
    """A refresh from position `start` on, without its plan and its read-back."""
    worker, slots = batch.worker, batch.worker.runner.slots
    items = batch.refresh(start).items
    numbers = [worker._canvases[item.rid].slot for item in items]
    chunk = max(1, 16384 // (batch.total - start))
    plans = [
        plan_refresh(items[i : i + chunk], numbers[i : i + chunk], slots.page_tables, slots.page_size, 0)
        for i in range(0, len(items), chunk)
    ]

    def run() -> None:
        for plan in plans:
            worker.runner.refresh(plan)

    return run


def write(path: Path, rows: list[dict[str, object]], revision: str | None) -> None:
    """Write rows with where they came from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"commit": revision or commit(), "hardware": hardware(), "torch": torch.__version__}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


if __name__ == "__main__":
    main()
