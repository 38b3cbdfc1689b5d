"""The highest rate of Poisson arrivals whose latencies keep a limit, by cache mode: what one server carries.

    python benchmarks/capacity.py --out benchmarks/results/capacity.csv
    python benchmarks/capacity.py --shape llada-8b --device cuda --scale 1 --out capacity_h200.csv

Lengths are lognormal with ShareGPT's medians (795 tokens in, 596 out), times --scale; a share of the requests begins
with one of a few prefixes. One server over HTTP; the mode is a field of the request, the cache is flushed before each
trial; `MODE+settled` is a mode with a canvas window of one block and settled blocks kept. A trial sends requests at one
rate for --seconds, which should be several times the limit: a short burst fits any queue. It passes if the p99 of the
first tokens and of the whole requests keep their limits and nothing failed; clients give up at the latter. Rates grow
by half until one fails, then the gap is halved --refinements times. The modes take turns, so that a slow spell of the
machine hits all alike. Every trial is a row: together they are the curve. Of fewer than 100 requests the p99 is the
slowest one. `load` is the machine's load average of the latest minute, the benchmark's own included: on a busy machine
every mode carries less.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.load.client import BLOCK, Decoding, Done, open_loop, quantile
from benchmarks.load.traffic import Traffic, plan
from benchmarks.model_shapes import SHAPES, write_shape
from benchmarks.server_process import ServerProcess
from benchmarks.table import Table
from shoal.provenance import commit, hardware

GROWTH = 1.5


@dataclass(slots=True)
class Search:
    """Looks for the highest rate that passes, in requests a second: `next` is the one to try, None at the end."""

    next: float | None
    refinements: int
    passed: float = 0.0
    failed: float = math.inf
    lowest: float = field(init=False)

    def __post_init__(self) -> None:
        assert self.next is not None
        self.lowest = self.next / 8

    def tell(self, rate: float, passes: bool) -> None:
        """The outcome of a trial at `rate`."""
        if passes:
            self.passed = max(self.passed, rate)
        else:
            self.failed = min(self.failed, rate)
        if self.failed == math.inf:
            self.next = rate * GROWTH
        elif self.passed == 0.0:
            self.next = rate / 2 if rate / 2 >= self.lowest else None
        elif self.refinements > 0:
            self.refinements -= 1
            self.next = math.sqrt(self.passed * self.failed)
        else:
            self.next = None


def trial(done: Sequence[Done], seconds: float, limits: tuple[float, float]) -> dict[str, object]:
    """The figures of a trial, and whether it passes."""
    errors = [one.error for one in done if one.error]
    first, total = ([getattr(one, name) for one in done] for name in ("first", "total"))
    passes = not errors and quantile(first, 99) <= limits[0] and quantile(total, 99) <= limits[1]
    return {
        "passes": int(passes), "errors": len(errors), "requests": len(done), "seconds": f"{seconds:.2f}",
        "tokens_per_s": f"{sum(one.tokens for one in done) / seconds:.1f}",
        **{f"{name}_p{percent}_s": f"{quantile(values, percent):.3f}"
           for name, values in (("first", first), ("total", total)) for percent in (50, 90, 99)},
        "cached_tokens": f"{sum(one.cached for one in done) / len(done):.1f}",
    }  # fmt: skip


def trials(
    url: str, traffic: Traffic, decodings: Sequence[Decoding], args: argparse.Namespace, deadline: float
) -> Iterator[dict[str, object]]:
    """Rows of every mode's search, one trial of each in turn."""
    rates = args.rate if len(args.rate) > 1 else args.rate * len(decodings)
    searches = {decoding.mode: Search(rate, args.refinements) for decoding, rate in zip(decodings, rates, strict=True)}
    limits = (args.limit_first, args.limit_total)
    number = 0
    while any(search.next is not None for search in searches.values()):
        for decoding in decodings:
            search = searches[decoding.mode]
            if search.next is None:
                continue
            if time.monotonic() > deadline:
                return
            rate, number = search.next, number + 1
            httpx.post(f"{url}/flush_cache", params={"timeout": 60}, timeout=120).raise_for_status()
            items = plan(traffic, rate, max(args.requests, math.ceil(rate * args.seconds)), args.seed)
            done, seconds = asyncio.run(open_loop(url, items, decoding, args.limit_total))
            row = trial(done, seconds, limits)
            search.tell(rate, bool(row["passes"]))
            yield {"mode": decoding.mode, "rate": f"{rate:.3f}", **row, "capacity_so_far": f"{search.passed:.3f}",
                   "load": f"{os.getloadavg()[0]:.1f}"}  # fmt: skip


def warm_up(url: str, traffic: Traffic, decodings: Sequence[Decoding]) -> None:
    """A few requests of every mode at once: what is compiled or allocated late is there."""
    for decoding in decodings:
        done, _ = asyncio.run(open_loop(url, plan(traffic, 1000.0, 3, seed=1), decoding))
        if errors := [one.error for one in done if one.error]:
            raise SystemExit(f"mode {decoding.mode}: {errors[0]}")


def main() -> None:
    """Search, and write every trial at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/capacity.csv"))
    parser.add_argument(
        "--shape", choices=["shop", *sorted(SHAPES)], default="shop", help="all but shop: random weights"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--modes", nargs="+", default=["none", "dual", "bicache"])
    parser.add_argument("--scale", type=float, default=0.1, help="of all lengths")
    parser.add_argument("--share", type=float, default=0.8, help="of requests that begin with a prefix")
    parser.add_argument("--prefix", type=int, default=2000, help="tokens of a prefix, before --scale")
    parser.add_argument("--prefixes", type=int, default=4)
    parser.add_argument("--nfe", type=int, default=8, help="forwards for each block of 32")
    parser.add_argument("--requests", type=int, default=20, help="of a trial, at least")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a trial's arrivals, at least")
    parser.add_argument(
        "--rate", type=float, nargs="+", default=[1.0], help="requests a second of the first trial, or of each mode's"
    )
    parser.add_argument("--refinements", type=int, default=3)
    parser.add_argument("--limit-first", type=float, default=3.0, help="seconds: p99 of the first tokens")
    parser.add_argument("--limit-total", type=float, default=8.0, help="seconds: p99 of whole requests")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds after which no trial is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, help="constant depth in place of a profile (layers)")
    parser.add_argument("--tp-size", type=int, default=1)
    parser.add_argument("--commit", default=None)
    args = parser.parse_args()
    if len(args.rate) not in (1, len(args.modes)):
        parser.error(f"--rate has {len(args.rate)} values for {len(args.modes)} modes: give one, or one for each")
    deadline = time.monotonic() + args.time_limit
    table = Table(args.out, {
        "shape": args.shape, "device": args.device, "tp_size": args.tp_size, "scale": args.scale, "share": args.share,
        "prefix": args.prefix, "prefixes": args.prefixes, "nfe_per_block": args.nfe, "block": BLOCK,
        "limit_first_s": args.limit_first, "limit_total_s": args.limit_total, "depth": args.depth or "profile",
        "command": "python " + shlex.join(sys.argv), "commit": args.commit or commit(), "hardware": hardware(),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--device", args.device, "--tp-size", str(args.tp_size), "--max-queued-requests", "100000"]
        if args.depth is not None:
            flags += ["--depth", str(args.depth)]
        if args.shape != "shop":
            flags += ["--model-path", str(write_shape(args.shape, Path(folder))), "--load-format", "dummy"]
        server = ServerProcess(*flags)
        try:
            server.wait_ready(600)
            info = httpx.get(f"{server.url}/server_info").json()
            low, vocabulary = (4, 256) if args.shape == "shop" else (4, SHAPES[args.shape]["vocab_size"] // 2)
            traffic = Traffic(
                args.scale, args.share, args.prefix, args.prefixes, low, vocabulary, info["max_req_input_len"]
            )
            decodings = [Decoding(mode, nfe=args.nfe) for mode in args.modes]
            warm_up(server.url, traffic, decodings)
            for row in trials(server.url, traffic, decodings, args, deadline):
                table.add(row)
                shown = ("mode", "rate", "passes", "errors", "first_p99_s", "total_p99_s", "tokens_per_s",
                         "cached_tokens",
                         "capacity_so_far")  # fmt: skip
                print(*(row[name] for name in shown), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
