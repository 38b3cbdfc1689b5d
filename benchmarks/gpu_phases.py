"""Refreshes and block steps of an 8B-shape model against their floors, and where their time goes.

    python benchmarks/gpu_phases.py --out benchmarks/results/gpu_phases.csv

The floor of a phase is the larger of its bytes over the copy bandwidth and its FLOPs over the matmul rate, both
measured in the same run. Bytes: weights (of experts those that the phase goes through), keys and values, once each;
pages that requests share once for all. FLOPs: products of the layers and the head, and attention; of a refresh's last
layer what it computes for all rows (queries, keys and values), and the rest for the rows that are read afterwards.
Random weights; canvases are read and written as in serving: every timed step commits a token of each block. The most
important phases come first, and every row is written at once; the time by kernel goes to a second file.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import Rates, measure_rates, seconds
from benchmarks.model_shapes import DEPTHS, SHAPES, write_shape
from benchmarks.table import Table
from shoal import Engine
from shoal.kernels.layers.experts import expert_mlp
from shoal.provenance import commit, hardware
from shoal.runtime.model.config import ModelConfig
from shoal.runtime.request.forward import AddRequest, Forward, ForwardItem, Release
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu import layers
from shoal.runtime.worker.gpu.executor import CudaExecutor
from shoal.runtime.worker.gpu.refresh_plan import plan_refresh
from shoal.runtime.worker.worker import Worker

CANVAS, BLOCK = 256, 32
SHARED, SHARED_LAYERS = 1984, 16
"""Tokens at the beginning of each request, and leading layers, whose pages are one and the same in a `shared step`."""
PHASES = (
    ("refresh", 32, 2000), ("step", 1, 2100), ("step", 32, 2100), ("shared step", 32, 2100), ("canvas", 32, 2100),
    ("canvas", 1, 2100), ("refresh", 1, 2100), ("refresh", 8, 2100), ("step", 8, 2100), ("step", 4, 2100),
    ("step", 16, 2100), ("shared step", 8, 2100), ("settled", 1, 2100), ("settled", 32, 2100),
)  # fmt: skip
"""Phase, requests, prompt tokens; the most important first. `settled`: a block just filled, the next and its window."""


def layer_flops(model: ModelConfig, tokens: float) -> float:
    """FLOPs of one layer's matrix products for so many tokens."""
    width = model.intermediate_size * max(1, model.experts_per_token)
    return 2 * tokens * model.hidden_size * (2 * model.q_size + 2 * model.kv_size + 3 * width + model.num_experts)


def floor(
    model: ModelConfig, rates: Rates, requests: int, queries: int, keys: int, head_rows: int, last_queries: int,
    shared_token_layers: int = 0, experts: float = 0, fp8: bool = False, kv_bytes: int = 2,
) -> tuple[float, float]:  # fmt: skip
    """Seconds for bytes and for FLOPs of a forward of `queries` tokens a request, `last_queries` behind the last
    layer's projections of q, k and v. Of a request's `keys`, so many token-layers are the same for all requests.
    `experts`: how many of a layer's experts it goes through. `fp8`: the layers' products are (attention counts as if it
    were)."""
    embeddings = 0 if model.tie_word_embeddings else model.embedding_size * model.hidden_size
    spared_experts = 3 * model.hidden_size * model.intermediate_size * (model.num_experts - experts) * model.num_layers
    weights = model.num_parameters - embeddings - (spared_experts if model.num_experts else 0)
    kv = 2 * model.kv_size * (requests * keys * model.num_layers - (requests - 1) * shared_token_layers)

    def layer(rows: int) -> float:
        return layer_flops(model, requests * rows) + 4 * requests * rows * keys * model.q_size

    spared = requests * (queries - last_queries)  # rows of the last layer that are projected, and no more
    flops = (
        (model.num_layers - 1) * layer(queries)
        + layer(last_queries)
        + 2 * spared * model.hidden_size * (model.q_size + 2 * model.kv_size)
        + 2 * head_rows * model.hidden_size * model.vocab_size
    )
    head = model.hidden_size * model.vocab_size
    layers = weights - head  # in fp8 a byte a weight, at twice the rate of the matrix units
    in_layers = flops - 2 * head_rows * head
    weight_bytes = 2 * head + (1 if fp8 else 2) * layers
    seconds_of_flops = (flops - in_layers / 2 if fp8 else flops) / rates.flops
    return (weight_bytes + kv_bytes * kv) / rates.bytes, seconds_of_flops


class Batch:
    """Requests with pages of their own on a worker, without scheduler and tree; prefixes may share pages."""

    def __init__(self, engine: Engine, requests: int, prompt: int, shared: int = 0, depth: int = 0):
        worker = engine.core.parts.worker
        assert isinstance(worker, Worker)
        assert isinstance(worker.executor, CudaExecutor)
        self.worker, self.executor = worker, worker.executor
        config = engine.core.parts.scheduler.memory.config
        self.rids = [f"b{i}" for i in range(requests)]
        self.prompt, self.total = prompt, prompt + CANVAS
        pages, bands = -(-self.total // config.page_size), config.num_bands
        rng = np.random.default_rng(0)
        free = rng.permutation(engine.core.parts.scheduler.memory.kv.num_pages).astype(np.int32)
        tables = free[: requests * pages * bands].reshape(requests, bands, pages)
        tables[:, : config.bands(depth), : shared // config.page_size] = tables[
            0, : config.bands(depth), : shared // config.page_size
        ]
        params = SamplingParams(max_new_tokens=CANVAS, block_length=BLOCK, steps=CANVAS, ignore_eos=True)
        for rid, table in zip(self.rids, tables, strict=True):
            tokens = rng.integers(0, 1000, prompt)
            worker.add(
                AddRequest(
                    rid=rid, prompt=tokens, canvas_length=CANVAS, sampling=params, seed=0, block_length=BLOCK,
                    page_table=table,
                )
            )  # fmt: skip

    def refresh(self, start: int, blocks: int = 0) -> Forward:
        """A forward over positions [start, total), or over so many blocks from `start` on."""
        first, stop = self.prompt, start + blocks * BLOCK if blocks else self.total
        items = [ForwardItem(r, start, stop, self.total, first, first + BLOCK, start) for r in self.rids]
        return Forward(tuple(items))

    def block(self) -> list[ForwardItem]:
        """A step over the first block."""
        first, shift = self.prompt, int(self.executor.decoder.config.shift_logits)
        low = first - shift
        return [ForwardItem(r, low, first + BLOCK, self.total, first, first + BLOCK, low) for r in self.rids]

    def close(self) -> None:
        """Take the requests off the worker."""
        self.worker.release(Release(tuple(self.rids)))


def replay_of(batch: Batch, items: list[ForwardItem]) -> Callable[[], object]:
    """A replay of the graph that runs `items`, and of its head for all masks."""
    worker, graphs = batch.worker, batch.executor.graphs
    canvases = worker.enter(items)
    graphs.run(items, canvases, 1)
    _, body = graphs.load(items, canvases)
    head = list(body.heads.values())[-1]

    def run() -> None:
        assert body.graph is not None
        body.graph.replay()
        head.replay()

    return run


def experts_of(batch: Batch, items: list[ForwardItem]) -> float:
    """Experts that a forward of `items` goes through, the mean of the layers; 0 for a model without."""
    touched: list[int] = []

    def note(hidden: Tensor, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
        touched.append(len((x.float() @ router.t()).topk(top_k, dim=-1).indices.unique()))
        return expert_mlp(hidden, x, router, gate_up, down, top_k)

    numbers = [batch.worker.canvas(item.rid).slot for item in items]
    slots, shift = batch.executor.runner.slots, int(batch.executor.decoder.config.shift_logits)
    with patch.object(layers, "expert_mlp", note):
        batch.executor.runner.refresh(plan_refresh(items, numbers, slots.page_tables, slots.page_size, shift))
    return sum(touched) / len(touched) if touched else 0


def experts_during(
    batch: Batch, items: list[ForwardItem], run: Callable[[], object], repeats: int, warm_up: int
) -> float:
    """Experts that timed steps go through, the mean of the steps and layers: each step fills a mask, so others do.

    `run` is one step; the first `warm_up` are not counted.
    """
    counts = []
    for step in range(warm_up + repeats):
        if step >= warm_up:
            counts.append(experts_of(batch, items))
        run()
    return sum(counts) / repeats


def kernel_table(run: Callable[[], object]) -> dict[str, float]:
    """Microseconds by kernel of one run."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return {e.key[:70]: e.device_time_total for e in profiler.key_averages() if e.device_time_total > 0}


def refresh_of(batch: Batch, start: int, blocks: int = 0) -> Callable[[], object]:
    """A refresh as `Batch.refresh` has it, without its plan and its read-back."""
    runner, slots = batch.executor.runner, batch.executor.runner.slots
    items = batch.refresh(start, blocks).items
    numbers = [batch.worker.canvas(item.rid).slot for item in items]
    chunk = max(1, 16384 // (items[0].stop - start))
    plans = [
        plan_refresh(items[i : i + chunk], numbers[i : i + chunk], slots.page_tables, slots.page_size, 0)
        for i in range(0, len(items), chunk)
    ]

    def run() -> None:
        for plan in plans:
            runner.refresh(plan)

    return run


class Report:
    """The two results files, and the printed progress."""

    def __init__(self, out: Path, where: dict[str, object]):
        self._phases = Table(out, where)
        self._kernels = Table(out.with_name(out.stem + "_kernels.csv"), where)

    def phase(self, row: dict[str, object]) -> None:
        """Add a row."""
        self._phases.add(row)
        print(row, flush=True)

    def kernels(self, names: dict[str, object], times: dict[str, float]) -> None:
        """Add a row for each kernel of a phase, the longest first."""
        ordered = sorted(times.items(), key=lambda pair: -pair[1])
        for name, microseconds in ordered:
            self._kernels.add({**names, "kernel": name, "us": f"{microseconds:.1f}"})
        top = "; ".join(f"{name[:34]} {microseconds:.0f}" for name, microseconds in ordered[:9])
        print(f"   sum {sum(times.values()) / 1e3:.3f} ms; {top}", flush=True)


def measure(engine: Engine, rates: Rates, report: Report, names: dict[str, object], page_size: int) -> None:
    """Time one phase and write its rows."""
    phase, requests, prompt = str(names["phase"]), int(str(names["requests"])), int(str(names["prompt"]))
    model, total = engine.model_config, prompt + CANVAS
    fp8, kv_bytes = engine.config.quantization == "fp8", 2 if engine.config.kv_cache_dtype == "auto" else 1
    if phase.endswith("step"):
        shared = SHARED if phase.startswith("shared") else 0
        repeats, experts = 20, 0.0
        if model.num_experts:
            batch = Batch(engine, requests, prompt, shared, SHARED_LAYERS)
            experts = experts_during(batch, batch.block(), replay_of(batch, batch.block()), repeats, 2)
            batch.close()
        batch = Batch(engine, requests, prompt, shared, SHARED_LAYERS)
        run = replay_of(batch, batch.block())
        shared_token_layers = shared * SHARED_LAYERS
        bytes_s, flops_s = floor(
            model, rates, requests, BLOCK, total, requests * BLOCK, BLOCK, shared_token_layers, experts, fp8, kv_bytes
        )
    else:
        start = 0 if phase == "refresh" else prompt - BLOCK if phase == "settled" else prompt - prompt % page_size
        blocks = 3 if phase == "settled" else 0
        batch = Batch(engine, requests, prompt)
        items = list(batch.refresh(start, blocks).items)
        graphed = batch.executor.graphs.takes(items)
        run = replay_of(batch, items) if graphed else refresh_of(batch, start, blocks)
        queries = items[0].stop - start
        last, head_rows = (queries, requests * BLOCK) if graphed else (BLOCK, 0)  # a graph runs all of every layer
        experts = model.num_experts  # so many tokens go through all of them
        bytes_s, flops_s = floor(model, rates, requests, queries, total, head_rows, last, 0, experts, fp8, kv_bytes)
        repeats = 3 if requests > 8 else 10
    elapsed = seconds(run, repeats, 2)
    report.phase({
        **names, "canvas": CANVAS, "page_size": page_size, "experts": f"{experts:.1f}",
        "ms": f"{elapsed * 1e3:.3f}",
        "floor_bytes_ms": f"{bytes_s * 1e3:.3f}", "floor_flops_ms": f"{flops_s * 1e3:.3f}",
        "over_floor": f"{elapsed / max(bytes_s, flops_s):.3f}", "matmul_share": f"{flops_s / elapsed:.3f}",
        **rates.columns(),
    })  # fmt: skip
    report.kernels(names, kernel_table(run))
    batch.close()


def main() -> None:
    """Measure; writes every row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_phases.csv"))
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["llada-8b"])
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--fold-norms", action=argparse.BooleanOptionalAction, default=True, help="the engine's option")
    parser.add_argument("--quantization", choices=("fp8",), help="the engine's option")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto", help="the engine's option")
    parser.add_argument("--only", choices=sorted({name for name, *_ in PHASES}), action="append", help="a phase")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds after which no phase is begun")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_phases needs a CUDA GPU")
        return
    began = time.monotonic()
    rates = measure_rates()
    print(rates, flush=True)
    where = {
        "fold_norms": args.fold_norms and not args.quantization,
        "quantization": args.quantization or "none",
        "kv_cache_dtype": args.kv_cache_dtype,
        "command": "python " + shlex.join(sys.argv),
        "commit": args.commit or commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    report = Report(args.out, where)
    for shape in args.shapes:
        if time.monotonic() - began > args.time_limit:
            break
        with tempfile.TemporaryDirectory() as folder:
            path = write_shape(shape, Path(folder))
            with Engine(
                str(path), load_format="dummy", device="cuda", depth=DEPTHS[shape], page_size=args.page_size,
                fold_norms=args.fold_norms, quantization=args.quantization,
                kv_cache_dtype=args.kv_cache_dtype,
            ) as engine:  # fmt: skip
                chosen = [case for case in PHASES if not args.only or case[0] in args.only]
                for phase, requests, prompt in chosen:
                    if time.monotonic() - began > args.time_limit:
                        print("time is up", flush=True)
                        break
                    names = {"shape": shape, "phase": phase, "requests": requests, "prompt": prompt}
                    try:
                        measure(engine, rates, report, names, args.page_size)
                    except RuntimeError as error:  # most likely out of memory: the other phases may still fit
                        print(f"{names}: {type(error).__name__}: {error}", flush=True)
                        engine.core.parts.worker.release(Release(tuple(f"b{i}" for i in range(requests))))
            del engine
            gc.collect()
            torch.cuda.empty_cache()  # the next shape's pools take what is free


if __name__ == "__main__":
    main()
