"""Offline throughput on a GPU: mode x prefix length x batch x NFE a block, with fixed quotas and random weights.

    python benchmarks/throughput.py --out benchmarks/results/throughput.csv

Every request is a shared prefix, 100 question tokens of its own and a canvas of 256 in blocks of 32; each block takes
a fixed number of forwards, whatever the confidences. `bicache`: one request runs first (`cold`, reported in a row of
its own), then the batch, which finds the prefix. `none` runs one forward a block and is scaled by NFE a block (column
`scaled_by`): all its forwards cost the same. Times are wall clock around `Engine.generate`, scheduler and all.

The ablation runs modes that users cannot choose: `interval` (the prefix stays as it is between refreshes, which compute
it whole), `shallow` (every block start computes the prefix above the depth), `interval+shallow` and `once`
(both; a refresh every 16 NFE, and one per request: that is `bicache`).
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.device_rates import measure_rates
from benchmarks.model_shapes import SHAPES, write_shape
from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.messages import Forward, ForwardItem, StepResult
from shoal.runtime.request import CacheMode, Request
from shoal.runtime.reuse import ReusePlanner

CANVAS, BLOCK, QUESTION = 256, 32, 100
TRACE: list[dict[str, object]] = []


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table. interval: NFE between prefix refreshes, 0 for one per request."""

    shape: str
    variant: str
    prefix: int
    batch: int
    nfe_per_block: int
    interval: int = 0
    depth: int = 16

    @property
    def mode(self) -> CacheMode:
        """The cache mode that runs it."""
        if self.variant in ("none", "prefix", "dual", "lm"):
            return self.variant  # type: ignore[return-value]
        return "bicache" if self.variant != "interval" else "dual"


class IntervalPlanner(ReusePlanner):
    """Mode `dual` whose block starts leave the prompt as it is, but for a whole refresh every `interval` NFE."""

    def refresh(self, request: Request) -> ForwardItem:
        """The forward that starts a later block."""
        start, stop = request.block_span()
        total, size = request.total_tokens, self.memory.config.page_size
        due = self.refresh_interval is not None and request.nfe - request.nfe_at_refresh >= self.refresh_interval
        if due:
            request.nfe_at_refresh = request.nfe
        low = 0 if due else len(request.prompt) // size * size
        return ForwardItem(request.rid, low, total, total, start, stop, join=low)


def cases(shape: str, quick: bool) -> Iterator[Case]:
    """What is measured, the most telling first."""
    depth = 16 if shape == "llada-8b" else 12

    def pair(prefix: int, batch: int, nfe: int) -> Iterator[Case]:
        yield Case(shape, "dual", prefix, batch, nfe)
        yield Case(shape, "bicache", prefix, batch, nfe, 16, depth)
        yield Case(shape, "bicache", prefix, batch, nfe, 0, depth)

    yield from pair(2000, 1, 8)
    yield from pair(2000, 32, 8)
    if quick:
        return
    yield from pair(1000, 32, 8)
    yield from pair(4000, 32, 8)
    yield Case(shape, "none", 2000, 32, 8)
    yield Case(shape, "interval", 2000, 32, 8, 16)
    yield Case(shape, "shallow", 2000, 32, 8, 1, depth)
    yield Case(shape, "none", 2000, 1, 8)
    for prefix in (1000, 4000, 250):
        yield from pair(prefix, 1, 8)
    for batch in (8, 4, 16):
        yield from pair(2000, batch, 8)
    for nfe in (4, 16):
        yield from pair(2000, 8, nfe)
    yield Case(shape, "prefix", 2000, 8, 8)
    yield Case(shape, "lm", 2000, 32, 8)


def prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """A batch of prompts and one more, all with the same prefix."""
    rng = np.random.default_rng(case.prefix)
    shared = rng.integers(0, min(vocabulary, 100_000), case.prefix).tolist()
    return [shared + rng.integers(0, 100_000, QUESTION).tolist() for _ in range(case.batch + 1)]


class Phases:
    """Where wall-clock time goes: in refreshes, in block steps, and outside the worker."""

    def __init__(self, engine: Engine):
        self.forwards: list[tuple[str, int, int, float]] = []
        self._scheduler = engine._parts.scheduler
        self._worker = self._scheduler._worker
        self.add, self.release = self._worker.add, self._worker.release

    def forward(self, message: Forward) -> list[StepResult]:
        """Run a message and take its time."""
        item = message.items[0]
        kind = "step" if item.stop == item.block_stop else "prefix refresh" if item.join < item.start else "refresh"
        started = time.perf_counter()
        results = self._worker.forward(message)
        nfe = max(result.nfe for result in results)
        self.forwards.append((kind, len(message.items), nfe, time.perf_counter() - started))
        return results

    def __enter__(self) -> Phases:
        self._scheduler._worker = self
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler._worker = self._worker

    def seconds(self, *kinds: str) -> float:
        """Time in forwards of some kinds."""
        return sum(seconds for kind, _, _, seconds in self.forwards if kind in kinds)


def run(engine: Engine, case: Case) -> list[dict[str, object]]:
    """Rows of one case: the first request alone where it fills the cache, then the batch."""
    planner = engine._parts.scheduler.planner
    interval = case.interval or None
    plain: ReusePlanner = planner
    if case.variant == "interval":
        plain = IntervalPlanner(planner.memory, planner.shift, interval, planner.reuse_margin)
    engine._loop.call_and_wait(lambda: setattr(engine._parts.scheduler, "planner", plain))
    plain.refresh_interval = interval
    scale = case.nfe_per_block if case.variant == "none" else 1
    steps = CANVAS // BLOCK * case.nfe_per_block // scale
    params = SamplingParams(max_new_tokens=CANVAS, block_length=BLOCK, steps=steps, ignore_eos=True)
    first, *rest = prompts(case, engine.model_config.vocab_size)
    brief = SamplingParams(max_new_tokens=2 * BLOCK, block_length=BLOCK, steps=2, ignore_eos=True)
    engine.flush_cache()
    engine.generate(rest[:1], brief, cache_mode=case.mode)  # what has to be compiled is compiled
    engine.flush_cache()
    rows = []
    for name, batch in (("cold", [first]), ("hits" if case.mode == "bicache" else "batch", rest)):
        if name == "cold" and case.mode != "bicache":
            continue
        torch.cuda.synchronize()
        started = time.perf_counter()
        with Phases(engine) as phases:
            outputs = engine.generate(batch, params, cache_mode=case.mode)
        seconds = time.perf_counter() - started
        in_refreshes, in_steps = phases.seconds("refresh", "prefix refresh"), phases.seconds("step")
        (TRACE if name != "cold" else []).append({**asdict(case), "forwards": phases.forwards})
        rows.append({
            **asdict(case), "canvas": CANVAS, "block": BLOCK, "requests": name, "seconds": f"{seconds * scale:.4f}",
            "tokens_per_s": f"{len(batch) * CANVAS / (seconds * scale):.1f}",
            "measured_nfe": f"{np.mean([o.nfe for o in outputs]):.1f}", "scaled_by": scale,
            "cached_tokens": f"{np.mean([o.cached_tokens for o in outputs]):.0f}",
            "computed_token_layers": f"{np.mean([o.computed_token_layers for o in outputs]) * scale:.0f}",
            "in_refreshes_s": f"{in_refreshes * scale:.4f}", "in_block_steps_s": f"{in_steps * scale:.4f}",
            "elsewhere_s": f"{(seconds - in_refreshes - in_steps) * scale:.4f}",
            "prefix_refreshes": f"{np.mean([o.prefix_refreshes for o in outputs]):.1f}",
        })  # fmt: skip
    engine._loop.call_and_wait(lambda: setattr(engine._parts.scheduler, "planner", planner))
    return rows


def main() -> None:
    """Measure and write the CSV, after every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.csv"))
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["llada-8b"])
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="prefix 2,000 at batch 1 and 32 alone")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds after which no case is begun")
    parser.add_argument("--trace", type=Path, help="a JSON file for the time of every forward")
    parser.add_argument("--fold-norms", action="store_true", help="the engine's option of this name")
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("throughput needs a CUDA GPU")
        return
    rates = measure_rates()
    print(f"matmul {rates.flops / 1e12:.0f} TFLOP/s, copy {rates.bytes / 1e12:.2f} TB/s", flush=True)
    where = {
        "page_size": args.page_size, "matmul_tflops": f"{rates.flops / 1e12:.0f}",
        "copy_tbs": f"{rates.bytes / 1e12:.2f}", "commit": args.commit or commit(), "hardware": hardware(),
        "torch": torch.__version__,
    }  # fmt: skip
    began, rows = time.monotonic(), []
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = write_shape(shape, Path(folder))
            depth = 16 if shape == "llada-8b" else 12
            loaded = time.monotonic()
            with Engine(
                str(path), load_format="dummy", device="cuda", depth=depth, page_size=args.page_size,
                max_running_requests=32, block_length=BLOCK, fold_norms=args.fold_norms,
            ) as engine:  # fmt: skip
                print(f"{shape}: engine after {time.monotonic() - loaded:.1f} s", flush=True)
                steps = CANVAS // BLOCK * 2
                warm = SamplingParams(max_new_tokens=CANVAS, block_length=BLOCK, steps=steps, ignore_eos=True)
                for mode in ("dual", "bicache"):
                    engine.generate([list(range(300 + i, 900 + i)) for i in range(8)], warm, cache_mode=mode)
                for case in cases(shape, args.quick):
                    if time.monotonic() - began > args.time_limit:
                        print("time is up", flush=True)
                        break
                    for row in run(engine, case):
                        rows.append({**row, **where})
                        shown = ("shape", "variant", "interval", "prefix", "batch", "nfe_per_block", "requests",
                                 "seconds", "tokens_per_s", "in_refreshes_s", "in_block_steps_s", "elsewhere_s",
                                 "cached_tokens", "computed_token_layers")  # fmt: skip
                        print(*(row[name] for name in shown), flush=True)
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    with args.out.open("w", newline="", encoding="utf-8") as file:
                        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                        writer.writeheader()
                        writer.writerows(rows)
                    if args.trace is not None:
                        args.trace.write_text(json.dumps(TRACE))


if __name__ == "__main__":
    main()
