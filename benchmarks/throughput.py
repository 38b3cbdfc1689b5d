"""Offline throughput on a GPU by mode, prefix, canvas, NFE a block, batch and shape: fixed quotas, random weights.

    python benchmarks/throughput.py --out benchmarks/results/throughput.csv
    python benchmarks/throughput.py --canvas 512 --quick --out canvas_512.csv
    python benchmarks/throughput.py --schedules --out benchmarks/results/throughput_schedules.csv
    python benchmarks/throughput.py --device cpu --shapes tiny --out tiny.csv      # to see that it works

Every request is a shared prefix, 100 question tokens of its own and a canvas (of 256) in blocks of 32; each block takes
a fixed number of forwards, whatever the confidences. `bicache`: one request runs first (`cold`, reported in a row of
its own), then the batch, which finds the prefix. `none` runs one forward a block and is scaled by NFE a block (column
`scaled_by`): all its forwards cost the same. Times are wall clock around `Engine.generate`, scheduler and all.

The ablation runs modes that users cannot choose: `interval` (the prefix stays as it is between refreshes, which
recompute all its layers), `shallow` (every block start computes the prefix above the depth), `interval+shallow` and
`once` (both; a refresh every 16 NFE, and one per request: that is `bicache`).

`--schedules` runs `bicache` (a refresh per request) with the whole canvas and with a window of 32 masks, each with the
schedules `full` and `settled`; and the first block of an answer alone (`first block`), with a limit of 64 and of 2,048
new tokens, with the whole canvas and with the window. `--settled`: of these the window with `settled` alone.

The most important cases come first, and every row is written at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.device_rates import measure_rates
from benchmarks.model_shapes import DEPTHS, SHAPES, write_shape
from benchmarks.table import Table
from shoal import Engine, RequestOutput, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import CacheMode
from shoal.runtime.request.forward import ForwardItem
from shoal.runtime.request.request import Request
from shoal.runtime.scheduler.reuse import ReusePlanner
from shoal.runtime.worker.canvas import Canvas
from shoal.runtime.worker.executor import Ran
from shoal.runtime.worker.worker import Worker

BLOCK, QUESTION = 32, 100
TRACE: list[dict[str, object]] = []


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table. interval: NFE between prefix refreshes, 0 for one per request; window: None, all masks."""

    shape: str
    variant: str
    prefix: int
    batch: int
    nfe_per_block: int
    interval: int = 0
    depth: int = 16
    canvas: int = 256
    window: int | None = None
    schedule: str = "full"

    @property
    def mode(self) -> CacheMode:
        """The cache mode that runs it."""
        if self.variant in ("none", "prefix", "dual", "lm"):
            return self.variant  # type: ignore[return-value]
        return "bicache" if self.variant != "interval" else "dual"


class IntervalPlanner(ReusePlanner):
    """Mode `dual`, except that block starts keep the prompt's KVs between full refreshes every `interval` NFE."""

    def refresh(self, request: Request) -> ForwardItem:
        """The forward that starts a later block."""
        start, stop = request.block_span()
        total, size = request.total_tokens, self.memory.config.page_size
        due = (
            self.refresh_interval is not None
            and request.tally.nfe - request.tally.nfe_at_refresh >= self.refresh_interval
        )
        low = 0 if due else len(request.prompt) // size * size
        return ForwardItem(request.rid, low, total, total, start, stop, join=low)


def cases(shape: str, quick: bool) -> Iterator[Case]:
    """The cases to measure, the most important first."""
    depth = DEPTHS[shape]

    def pair(prefix: int, batch: int, nfe: int) -> Iterator[Case]:
        yield Case(shape, "dual", prefix, batch, nfe)
        yield Case(shape, "bicache", prefix, batch, nfe, 16, depth)
        yield Case(shape, "bicache", prefix, batch, nfe, 0, depth)

    if shape == "tiny":
        yield from pair(128, 2, 4)
        yield Case(shape, "none", 128, 2, 4)
        yield Case(shape, "interval", 128, 2, 4, 16)
        return
    yield from pair(2000, 32, 8)
    yield from pair(2000, 1, 8)
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


def schedule_cases(shape: str) -> Iterator[Case]:
    """The cases of `--schedules`."""
    prefix, nfe = (128, 4) if shape == "tiny" else (2000, 8)
    sizes = (2, 1) if shape == "tiny" else (32, 1)
    for batch in sizes:
        plain = Case(shape, "bicache", prefix, batch, nfe, 0, DEPTHS[shape])
        for window, schedule in ((None, "full"), (BLOCK, "settled"), (None, "settled"), (BLOCK, "full")):
            yield replace(plain, window=window, schedule=schedule)
    for batch in sizes:
        for canvas in (64, 2048) if shape != "tiny" else (64, 256):
            for window in (None, BLOCK):
                yield Case(shape, "first block", prefix, batch, nfe, 0, DEPTHS[shape], canvas, window)


def prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """A batch of prompts and one more, all with the same prefix."""
    rng = np.random.default_rng(case.prefix)
    tokens = min(vocabulary, 100_000)
    shared = rng.integers(0, tokens, case.prefix).tolist()
    return [shared + rng.integers(0, tokens, QUESTION).tolist() for _ in range(case.batch + 1)]


class Phases:
    """Where wall-clock time goes: in refreshes, in block steps, and outside the worker's forwards.

    A message may hold a refresh and the steps behind it, so time is taken inside the worker, where every part ends with
    a look at what was committed.
    """

    def __init__(self, engine: Engine):
        self.forwards: list[tuple[str, int, int, float]] = []
        worker = engine.core.parts.worker
        assert isinstance(worker, Worker)
        self._executor, self._run = worker.executor, worker.executor.run

    def __enter__(self) -> Phases:
        self._executor.run = self._timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self._executor.run  # the class's own is there again

    def _timed(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
        started = time.perf_counter()
        steps, ran = self._run(items, canvases, at_most)
        self.forwards.append((kind(items[0]), len(items), steps, time.perf_counter() - started))
        return steps, ran

    def seconds(self, *kinds: str) -> float:
        """Time in forwards of some kinds."""
        return sum(seconds for name, _, _, seconds in self.forwards if name in kinds)


def kind(item: ForwardItem) -> str:
    """`step` for a block alone, `prefix refresh` where a prefix joins at its depth, else `refresh`."""
    if item.is_block_alone:
        return "step"
    return "prefix refresh" if item.join < item.start else "refresh"


def warm_up(engine: Engine, case: Case) -> None:
    """Two blocks of a batch in the shapes of `case`, cold, with hits and with a prefix refresh: compiles what is left.

    More than a forward's tokens, so that memory for the largest is there too.
    """
    planner = engine.core.parts.scheduler.planner
    planner.refresh_interval = 1
    params = SamplingParams(max_new_tokens=2 * BLOCK, block_length=BLOCK, steps=4, ignore_eos=True)
    batch = prompts(replace(case, batch=min(8, case.batch)), engine.model_config.vocab_size)
    for mode in ("dual", "bicache"):
        engine.generate(batch, params, cache_mode=mode)
    planner.refresh_interval = None
    engine.flush_cache()


def run(engine: Engine, case: Case) -> Iterator[dict[str, object]]:
    """Rows of one case: the first request alone where it fills the cache, then the batch."""
    planner = engine.core.parts.scheduler.planner
    interval = case.interval or None
    plain: ReusePlanner = planner
    if case.variant == "interval":
        plain = IntervalPlanner(planner.memory, planner.shift, interval, planner.reuse_margin)
    engine.core.loop.call_and_wait(lambda: setattr(engine.core.parts.scheduler, "planner", plain))
    plain.refresh_interval = interval
    try:
        yield from measured(engine, case)
    finally:
        engine.core.loop.call_and_wait(lambda: setattr(engine.core.parts.scheduler, "planner", planner))


def measured(engine: Engine, case: Case) -> Iterator[dict[str, object]]:
    """The rows of `run`, with the case's planner in its place."""
    scale = case.nfe_per_block if case.variant == "none" else 1
    steps = case.canvas // BLOCK * case.nfe_per_block // scale
    params = SamplingParams(
        max_new_tokens=case.canvas, block_length=BLOCK, steps=steps, ignore_eos=True, canvas_window=case.window,
        refresh_schedule=None if case.mode == "none" else case.schedule,
    )  # fmt: skip
    first, *rest = prompts(case, engine.model_config.vocab_size)
    brief = SamplingParams(max_new_tokens=2 * BLOCK, block_length=BLOCK, steps=2, ignore_eos=True)
    engine.flush_cache()
    engine.generate(rest[:1], brief, cache_mode=case.mode)  # what has to be compiled is compiled
    if case.window is not None or case.schedule != "full":  # other shapes of refreshes
        engine.generate(rest, replace(params, max_new_tokens=min(case.canvas, 5 * BLOCK)), cache_mode=case.mode)
    engine.flush_cache()
    for name, batch in (("cold", [first]), ("hits" if case.mode == "bicache" else "batch", rest)):
        if name == "cold" and case.mode != "bicache":
            continue
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        with Phases(engine) as phases:
            if case.variant == "first block":
                outputs = first_blocks(engine, batch, params)
            else:
                outputs = engine.generate(batch, params, cache_mode=case.mode)
        seconds = time.perf_counter() - started
        in_refreshes, in_steps = phases.seconds("refresh", "prefix refresh"), phases.seconds("step")
        tokens = len(batch) * (BLOCK if case.variant == "first block" else case.canvas)
        if name != "cold":
            TRACE.append({**asdict(case), "forwards": phases.forwards})
        yield {
            **asdict(case), "block": BLOCK, "requests": name, "seconds": f"{seconds * scale:.4f}",
            "tokens_per_s": f"{tokens / (seconds * scale):.1f}",
            "measured_nfe": f"{np.mean([o.nfe for o in outputs]):.1f}", "scaled_by": scale,
            "cached_tokens": f"{np.mean([o.cached_tokens for o in outputs]):.0f}",
            "computed_token_layers": f"{np.mean([o.computed_token_layers for o in outputs]) * scale:.0f}",
            "in_refreshes_s": f"{in_refreshes * scale:.4f}", "in_block_steps_s": f"{in_steps * scale:.4f}",
            "elsewhere_s": f"{(seconds - in_refreshes - in_steps) * scale:.4f}",
            "prefix_refreshes": f"{np.mean([o.prefix_refreshes for o in outputs]):.1f}",
        }  # fmt: skip


def first_blocks(engine: Engine, batch: Sequence[Sequence[int]], params: SamplingParams) -> list[RequestOutput]:
    """Outputs of requests that are aborted once their first block is full, as if their texts ended in it."""

    async def first(prompt: Sequence[int]) -> RequestOutput:
        async for output in engine.async_stream(list(prompt), params):
            if output.completion_tokens >= BLOCK:
                return output
        raise AssertionError("an answer without a first block")

    async def together() -> list[RequestOutput]:
        return await asyncio.gather(*map(first, batch))

    return asyncio.run(together())


def main() -> None:
    """Measure; every row is written when it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.csv"))
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["llada-8b"])
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--canvas", type=int, default=256, help="tokens of each answer, whole blocks of 32")
    parser.add_argument("--quick", action="store_true", help="prefix 2,000 at batch 32 and 1 alone")
    parser.add_argument("--schedules", action="store_true", help="windows and refresh schedules, in place of modes")
    parser.add_argument("--settled", action="store_true", help="a window of 32 with the schedule settled alone")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds after which no case is begun")
    parser.add_argument("--trace", type=Path, help="a JSON file for the time of every forward")
    parser.add_argument("--fold-norms", action=argparse.BooleanOptionalAction, default=True, help="the engine's option")
    parser.add_argument("--quantization", choices=("fp8",), help="the engine's option")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto", help="the engine's option")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("throughput needs a CUDA GPU")
        return
    if args.canvas < BLOCK or args.canvas % BLOCK:
        parser.error(f"--canvas {args.canvas} must be a multiple of {BLOCK}")
    began = time.monotonic()
    rates = measure_rates(args.device)
    print(rates, flush=True)
    table = Table(args.out, {
        "page_size": args.page_size, "fold_norms": args.fold_norms and not args.quantization,
        "quantization": args.quantization or "none",
        "kv_cache_dtype": args.kv_cache_dtype,
        **rates.columns(),
        "command": "python " + shlex.join(sys.argv), "commit": args.commit or commit(), "hardware": hardware(),
        "torch": torch.__version__,
    })  # fmt: skip
    for shape in args.shapes:
        if time.monotonic() - began > args.time_limit:
            break
        with tempfile.TemporaryDirectory() as folder:
            path = write_shape(shape, Path(folder))
            loaded = time.monotonic()
            with Engine(
                str(path), load_format="dummy", device=args.device, depth=DEPTHS[shape], page_size=args.page_size,
                max_running_requests=32, block_length=BLOCK, fold_norms=args.fold_norms,
                quantization=args.quantization,
                kv_cache_dtype=args.kv_cache_dtype,
            ) as engine:  # fmt: skip
                print(f"{shape}: engine after {time.monotonic() - loaded:.1f} s", flush=True)
                warm_up(engine, next(cases(shape, args.quick)))
                print(f"warm after {time.monotonic() - loaded:.1f} s", flush=True)
                chosen: Iterator[Case] = (replace(case, canvas=args.canvas) for case in cases(shape, args.quick))
                if args.settled:
                    chosen = (case for case in schedule_cases(shape) if case.window and case.schedule == "settled")
                elif args.schedules:
                    chosen = schedule_cases(shape)
                for case in chosen:
                    if time.monotonic() - began > args.time_limit:
                        print("time is up", flush=True)
                        break
                    for row in run(engine, case):
                        table.add(row)
                        shown = ("shape", "variant", "interval", "prefix", "batch", "window", "schedule", "canvas",
                                 "nfe_per_block", "requests",
                                 "seconds", "tokens_per_s", "in_refreshes_s", "in_block_steps_s", "elsewhere_s",
                                 "cached_tokens", "computed_token_layers")  # fmt: skip
                        print(*(row[name] for name in shown), flush=True)
                    if args.trace is not None:
                        whole = args.trace.with_suffix(".new")
                        whole.write_text(json.dumps(TRACE))
                        os.replace(whole, args.trace)


if __name__ == "__main__":
    main()
