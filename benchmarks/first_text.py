"""First text under load against throughput, by `target_first_text_ms`: the curve behind docs/scaling.md.

    python benchmarks/first_text.py --out benchmarks/results/first_text.csv                      # no GPU needed
    python benchmarks/first_text.py --device cuda --out benchmarks/results/first_text_h200.csv

A request is a prefix that all share, 100 tokens of its own and an answer in blocks of 32, 8 forwards a block, mode
`bicache`, a prefix refresh per request. Loads:
`mixed`: a closed loop of --streams clients, answers of 32 to nearly twice --new tokens;
`equal`: the same with answers of --new tokens, so that all clients stay in step;
`open`: Poisson arrivals of --rate requests a second, answers as in `mixed`.
A closed loop begins with a burst of all clients, which are the slowest first texts. One scheduler per target over the
same worker, in one process; each begins with one request that computes the prefix. First text is taken where a client
would see it: when the message that committed the first token is back.

With --device cuda the model is of LLaDA-8B's shape with random weights, which commit in no order. Without, nothing is
computed: time is a number, which a worker moves on by what an H200 would take (the cost model of docs/scaling.md), and
the worker commits a block's tokens from the left, as trained models mostly do, or in random order.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.load.client import quantile
from benchmarks.model_shapes import DEPTHS, write_shape
from benchmarks.table import Table
from shoal.provenance import commit, hardware
from shoal.runtime.config import EngineConfig
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.forward import AddRequest, Forward, ForwardItem, Grow, Release, StepResult
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.request.spec import RequestSpec
from shoal.runtime.scheduler.build import build_scheduler
from shoal.runtime.scheduler.scheduler import Scheduler
from shoal.runtime.scheduler.worker_link import WorkerLink
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.null import build_null_worker

BLOCK, NFE, QUESTION = 32, 8, 100
TOKEN_LAYER_S = 0.741e-6
"""Of refreshes: see docs/scaling.md."""
STEP_S, ROW_OF_BLOCKS_S = 4.0e-3, 0.83e-3
"""A block step takes STEP_S and so much for each request: 4.9 ms for one, 30.6 ms for 32 (gpu_phases.csv)."""
MESSAGE_S = 0.5e-3
Order = Literal["left", "random"]


class ModelClock:
    """Time that passes only where something takes time; it stands in for `time.monotonic` and `time.sleep`."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def install(self) -> None:
        """Make everything in this process read it."""
        time.monotonic = self.monotonic
        time.sleep = self.sleep  # type: ignore[assignment]


class ModelledWorker:
    """Moves the clock on by what a forward of LLaDA-8B takes on an H200; commits a fixed number of tokens a step.

    Args:
        num_layers: of the model.
        order: in which it commits the tokens of a block.
        clock: that is moved on.
    """

    def __init__(self, num_layers: int, order: Order, clock: ModelClock):
        self._num_layers, self._order, self._clock = num_layers, order, clock
        self._draw = random.Random(0)
        self._left: dict[str, tuple[int, list[int]]] = {}  # start of the block, its masks in the order of commits

    def add(self, message: AddRequest) -> None:
        """Nothing is kept."""

    def grow(self, message: Grow) -> None:
        """It has no page tables."""

    def release(self, message: Release) -> None:
        """Forget requests."""
        for rid in message.rids:
            self._left.pop(rid, None)

    def forward(self, message: Forward) -> list[StepResult]:
        """Commit, and let the time pass."""
        results = {item.rid: StepResult(item.rid) for item in message.items}
        seconds = MESSAGE_S
        for items, most in message.parts():
            left = list(items)
            while left and most:
                most -= 1
                seconds += self._seconds(left)
                left = [item for item in left if self._commit(item, results[item.rid])]
        self._clock.sleep(seconds)
        return list(results.values())

    def _seconds(self, items: list[ForwardItem]) -> float:
        if all(item.is_block_alone for item in items):
            return STEP_S + ROW_OF_BLOCKS_S * len(items)
        return STEP_S + TOKEN_LAYER_S * sum(item.token_layers(self._num_layers) for item in items)

    def _commit(self, item: ForwardItem, result: StepResult) -> bool:
        """Commit the next tokens of a block; whether it has masks left."""
        start, masks = self._left.get(item.rid, (-1, []))
        if start != item.block_start:
            masks = list(range(item.block_start, item.block_stop))
            if self._order == "random":
                self._draw.shuffle(masks)
        count = BLOCK // NFE
        result.positions += masks[:count]
        result.tokens += [7] * len(masks[:count])
        result.nfe += 1
        result.token_layers += item.token_layers(self._num_layers)
        self._left[item.rid] = item.block_start, masks[count:]
        return len(masks) > count


class Load:
    """Requests with a common prefix.

    Args:
        vocabulary: tokens are below it.
        prefix, new: tokens of the prefix, and of an answer (on average, unless `equal`).
        equal: all answers have the same length.
    """

    def __init__(self, vocabulary: int, prefix: int, new: int, equal: bool):
        self._tokens = np.random.default_rng(0)
        self._lengths = random.Random(0)
        self._vocabulary, self._new, self._equal = vocabulary, new, equal
        self._prefix = self._tokens.integers(4, vocabulary, prefix)
        self._made = 0

    def next(self, arrival: float) -> Request:
        """The next request."""
        self._made += 1
        new = self._new if self._equal else BLOCK * self._lengths.randint(1, 2 * self._new // BLOCK - 1)
        sampling = SamplingParams(
            max_new_tokens=new, block_length=BLOCK, steps=NFE * new // BLOCK, ignore_eos=True, schedule="even",
            ranking="model", refresh_schedule="full",
        )  # fmt: skip
        own = self._tokens.integers(4, self._vocabulary, QUESTION)
        spec = RequestSpec(
            rid=str(self._made), prompt=np.concatenate((self._prefix, own)), sampling=sampling, cache_mode="bicache",
            cache_salt="", block_length=BLOCK, seed=1, stop_ids=frozenset(), arrival=arrival,
        )  # fmt: skip
        return Request(spec, TextStream(None))


def drive(scheduler: Scheduler, load: Load, streams: int, count: int, rate: float | None) -> dict[str, object]:
    """Run `count` requests: at `rate` a second, or without a rate `streams` at a time; the figures."""
    scheduler.add(load.next(time.monotonic()))
    while scheduler.has_work:
        scheduler.step()
    begin = time.monotonic()
    gaps = random.Random(1)
    times = itertools.accumulate(gaps.expovariate(rate) if rate else 0.0 for _ in range(count))
    waiting = deque(begin + at for at in times)
    first: dict[str, float] = {}
    total: list[float] = []
    arrivals: dict[str, float] = {}
    tokens = 0
    while len(total) < count:
        while waiting and waiting[0] <= time.monotonic() and (rate or len(arrivals) < streams):
            at = waiting.popleft()
            request = load.next(at if rate else time.monotonic())
            arrivals[request.rid] = request.spec.arrival
            scheduler.add(request)
        if not arrivals:
            time.sleep(max(0.0, waiting[0] - time.monotonic()))
        for output in scheduler.step():
            if output.error is not None:
                raise SystemExit(f"a request failed: {output.error.message}")
            if output.token_ids:
                first.setdefault(output.rid, time.monotonic() - arrivals[output.rid])
            if output.finished:
                total.append(time.monotonic() - arrivals.pop(output.rid))
                tokens += len(output.token_ids)
    seconds = time.monotonic() - begin
    values = {"first": list(first.values()), "total": total}
    return {
        "seconds": f"{seconds:.2f}", "tokens_per_s": f"{tokens / seconds:.1f}",
        **{f"{name}_p{percent}_s": f"{quantile(each, percent):.3f}"
           for name, each in values.items() for percent in (50, 90, 99)},
    }  # fmt: skip


def workers(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, EngineConfig, WorkerLink, Facts]]:
    """(order of commits, config, worker, facts) of each worker to measure."""
    config = EngineConfig(
        model_path=str(write_shape(args.shape, folder)), load_format="dummy", device=args.device,
        depth=DEPTHS[args.shape], refresh_interval=0, max_running_requests=args.streams, block_length=BLOCK,
        max_refresh_tokens=args.max_refresh_tokens, max_steps_per_message=8,
    )  # fmt: skip
    if args.device == "cuda" or args.real:
        from shoal.runtime.engine.build import build_parts
        from shoal.runtime.worker.build import build_worker

        parts = build_parts(config, worker=build_worker(config))
        yield "weights", config, parts.worker, parts.facts
        return
    config = replace(config, kv_cache_tokens=64 * 4096, page_size=64)
    _, facts = build_null_worker(config, 1)
    clock = ModelClock()
    clock.install()
    orders: tuple[Order, ...] = ("left", "random")
    for order in orders:
        yield order, config, ModelledWorker(facts.tree.num_layers, order, clock), facts


def main() -> None:
    """Measure every target, write every row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/first_text.csv"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--real", action="store_true", help="run the model on a CPU too: for --shape tiny")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=320, help="of a row")
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer, mixed: on average")
    parser.add_argument("--max-refresh-tokens", type=int, default=16384)
    parser.add_argument("--targets", type=int, nargs="+", default=[0, 2000, 1000, 500, 250], help="ms; 0: none")
    parser.add_argument("--loads", nargs="+", choices=("mixed", "equal", "open"), default=["mixed", "open", "equal"])
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second of the load `open`")
    parser.add_argument("--warm-up", type=int, default=0, help="requests that run first and do not count")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds after which no row is begun")
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    deadline = time.perf_counter() + args.time_limit
    table = Table(args.out, {
        "shape": args.shape, "streams": args.streams, "requests": args.requests, "prefix": args.prefix,
        "new_tokens": args.new, "max_refresh_tokens": args.max_refresh_tokens,
        "command": "python " + shlex.join(sys.argv), "commit": args.commit or commit(),
        "hardware": hardware() if args.device == "cuda" or args.real else "none: an H200's times by the cost model",
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for order, config, worker, facts in workers(args, Path(folder)):
            vocabulary = facts.model.vocab_size // 2
            if args.warm_up:  # what is compiled or captured late is there then
                scheduler = build_scheduler(replace(config, target_first_text_ms=500), facts, worker)
                drive(scheduler, Load(vocabulary, args.prefix, args.new, False), args.streams, args.warm_up, None)
            for kind, target in itertools.product(args.loads, args.targets):
                if time.perf_counter() > deadline:
                    return
                scheduler = build_scheduler(replace(config, target_first_text_ms=target or None), facts, worker)
                load = Load(vocabulary, args.prefix, args.new, kind == "equal")
                rate = args.rate if kind == "open" else None
                row = {
                    "order": order, "load": kind, "rate": rate or "", "target_ms": target or "none",
                    **drive(scheduler, load, args.streams, args.requests, rate),
                }  # fmt: skip
                table.add(row)
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
