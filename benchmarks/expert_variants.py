"""Tiles of the experts' products, timed in whole block steps of LLaDA-MoE's shape.

    python benchmarks/expert_variants.py --out benchmarks/results/expert_variants.csv

Alone, with rows for all experts, other tiles are the fastest: in a step the masks of a block choose alike, so a few
experts have most rows. Every variant begins with the same tokens. A row: the step's time, and the time of the experts'
kernels in it. Rows by expert of some layers are printed first: at
a block's first step, and at the last one that is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import measure_rates, seconds
from benchmarks.gpu_phases import BLOCK, CANVAS, Batch, experts_during, floor, kernel_table, replay_of
from benchmarks.model_shapes import DEPTHS, write_shape
from benchmarks.table import Table
from shoal import Engine
from shoal.kernels.layers import experts_triton
from shoal.kernels.layers.experts import expert_mlp
from shoal.kernels.layers.experts_triton import Tiles
from shoal.runtime.worker.gpu import layers
from shoal.runtime.worker.gpu.executor import CudaExecutor
from shoal.runtime.worker.gpu.graphs import ForwardGraphs
from shoal.runtime.worker.gpu.refresh_plan import plan_refresh
from shoal.runtime.worker.gpu.sampler import BlockSampler
from shoal.runtime.worker.worker import Worker

T = Tiles
Pair = tuple[Tiles, Tiles]


def both(rows: int, columns: int, inputs: int, warps: int, stages: int, *more: bool | int) -> Pair:
    """Tiles of the second product with twice the columns, which take as much memory."""
    first = T(rows, columns, inputs, warps, stages, *more)  # type: ignore[arg-type]
    return first, first._replace(columns=2 * columns)


SB = (True, True)
FEW = (
    both(16, 64, 64, 4, 5, *SB), both(16, 64, 128, 4, 4), both(16, 64, 64, 4, 4, *SB), both(16, 64, 64, 4, 3, *SB),
    (T(16, 64, 64, 4, 5, *SB), T(16, 64, 64, 4, 5, *SB)), (T(16, 64, 64, 4, 5, *SB), T(16, 64, 128, 4, 4, *SB)),
    (T(16, 64, 64, 4, 5, *SB), T(16, 64, 64, 4, 8, *SB)), both(16, 64, 128, 4, 3, *SB), both(16, 64, 128, 4, 2, *SB),
    both(32, 64, 64, 4, 3, *SB), both(32, 64, 64, 4, 5, *SB), both(16, 64, 64, 4, 5, *SB, 2),
)  # fmt: skip
MANY = (
    both(128, 128, 64, 8, 4, False, True), both(128, 128, 64, 8, 4), both(128, 128, 64, 8, 3, False, False, 1),
    both(128, 128, 64, 8, 3, False, True, 1), both(128, 128, 64, 8, 4, False, True, 1),
    both(64, 128, 64, 8, 4, False, True), both(64, 128, 64, 8, 4, False, True, 1), both(128, 64, 64, 4, 3, False, True),
    both(64, 64, 64, 4, 4, False, True), both(64, 64, 64, 4, 4, False, True, 2), both(256, 64, 64, 8, 4, False, True),
    both(128, 64, 64, 8, 3, False, True, 2), both(64, 128, 64, 4, 4, True, True),
)  # fmt: skip
SOME = (
    both(64, 128, 64, 8, 3), both(32, 64, 128, 4, 4), both(32, 64, 64, 4, 4, True, True),
    both(64, 64, 64, 4, 4, False, True), both(64, 64, 64, 4, 4, False, True, 2), both(64, 128, 64, 8, 4, False, True),
    both(64, 128, 64, 8, 4, False, True, 1), both(32, 64, 64, 4, 4, True, True, 2),
)  # fmt: skip
CASES = ((1, FEW), (32, MANY), (8, SOME))
KERNELS = ("_gate_up_kernel", "_down_kernel", "_router_kernel", "_route_kernel", "_place_kernel", "_combine_kernel")


def shown(tiles: Tiles) -> str:
    """The numbers of a tile, in their order; `s`: swapped, `b`: bulk, `p2`: two programs for each SM."""
    flags = "s" * tiles.swap + "b" * tiles.bulk + (f"p{tiles.programs}" if tiles.programs else "")
    return "/".join(map(str, tiles[:5])) + (f" {flags}" if flags else "")


def rows_by_expert(batch: Batch) -> list[Tensor]:
    """Of each layer, the rows of each expert in a step over the first block."""
    found: list[Tensor] = []

    def note(hidden: Tensor, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
        chosen = (x.float() @ router.t()).topk(top_k, dim=-1).indices
        found.append(chosen.flatten().bincount(minlength=router.shape[0]).cpu())
        return expert_mlp(hidden, x, router, gate_up, down, top_k)

    items = batch.block()
    numbers = [batch.worker.canvas(item.rid).slot for item in items]
    slots, shift = batch.executor.runner.slots, int(batch.executor.decoder.config.shift_logits)
    with patch.object(layers, "expert_mlp", note):
        batch.executor.runner.refresh(plan_refresh(items, numbers, slots.page_tables, slots.page_size, shift))
    return found


def tell_rows(requests: int, found: list[Tensor]) -> None:
    """Print how rows are spread."""
    for layer in range(0, len(found), 3):
        rows = found[layer].sort(descending=True).values.tolist()
        tiles = {size: sum(-(-n // size) for n in rows) for size in (16, 32, 64, 128)}
        print(f"{requests} requests, layer {layer}: rows {[n for n in rows if n]}, tiles {tiles}", flush=True)


def main() -> None:
    """Measure; writes every row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expert_variants.csv"))
    parser.add_argument("--commit", default=None)
    parser.add_argument("--time-limit", type=float, default=150.0, help="seconds after which no variant is begun")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("expert_variants needs a CUDA GPU")
        return
    began = time.monotonic()
    rates = measure_rates()
    table = Table(args.out, rates.origin(args.commit))
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape("llada-moe-7b", Path(folder))
        options = {"load_format": "dummy", "device": "cuda", "depth": DEPTHS["llada-moe-7b"], "page_size": 64}
        with Engine(str(path), disable_cuda_graph=True, **options) as engine:  # type: ignore[arg-type]
            print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
            worker = engine.core.parts.worker
            assert isinstance(worker, Worker)
            assert isinstance(worker.executor, CudaExecutor)
            runner = worker.executor.runner
            sampler = BlockSampler(runner.layers, runner.slots)
            graphs = ForwardGraphs(runner, sampler, sorted(requests for requests, _ in CASES), True)
            worker.executor.graphs = graphs
            for requests, variants in CASES:
                batch = Batch(engine, requests, 2100)
                tell_rows(requests, rows_by_expert(batch))
                experts = experts_during(batch, batch.block(), replay_of(batch, batch.block()), 20, 2)
                tell_rows(requests, rows_by_expert(batch))
                batch.close()
                bound = max(floor(engine.model_config, rates, requests, BLOCK, 2100 + CANVAS, requests * BLOCK, BLOCK,
                                  experts=experts))  # fmt: skip
                for pair in variants:
                    if time.monotonic() - began > args.time_limit:
                        print("time is up", flush=True)
                        break
                    names = {"requests": requests, "gate_up": shown(pair[0]), "down": shown(pair[1])}
                    try:
                        table.add(names | time_step(engine, graphs, requests, pair, bound, experts))
                    except Exception as error:  # tiles that do not fit are a result too
                        print(names, f"{type(error).__name__}: {error}".splitlines()[0][:200], flush=True)


def time_step(
    engine: Engine, graphs: ForwardGraphs, requests: int, pair: Pair, bound: float, experts: float
) -> dict[str, object]:
    """A row of the table, printed as well."""
    graphs.forget()
    batch = Batch(engine, requests, 2100)
    try:
        with patch.object(experts_triton, "choose_tiles", lambda *_: pair):
            run = replay_of(batch, batch.block())
        elapsed = seconds(run, 20, 2)
        kernels = kernel_table(run)
    finally:
        batch.close()
    times = {name.strip("_"): f"{kernels.get(name, 0.0):.1f}" for name in KERNELS}
    row: dict[str, object] = {
        "ms": f"{elapsed * 1e3:.3f}",
        "over_floor": f"{elapsed / bound:.3f}",
        "experts": f"{experts:.1f}",
        **times,
    }
    print(requests, shown(pair[0]), "|", shown(pair[1]), *row.values(), flush=True)
    return row


if __name__ == "__main__":
    main()
