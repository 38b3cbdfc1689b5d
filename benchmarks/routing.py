"""Several replicas of `shop` as one server: what each router keeps of the prefix reuse, and what it adds to a request.

    python -m benchmarks.routing --out benchmarks/results/routing.csv

Rows of `traffic`: clients in a closed loop ask about price lists, several questions about each in random order. Every
replica has one core's worth of threads and the same tree; `hit_rate` is the share of prompt tokens that came from a
tree. Fronts: `none` (one server), `ray` (`shoal.serve_ray`) and `dp` (`--dp-size`: sglang's router).

Rows of `overhead`: one request at a time, in turn through the front and to a server without it, which has the same
options. A `whole` reply takes one block, a `stream` eight. `direct_*` and `through_*` are quantiles of the time to its
end, `overhead_*` their difference. `load` is the machine's 1-minute load average, which includes the benchmark's own:
where other work shares the cores, the lower quantile says more, and a negative --nice (as root) keeps that work away.

Ray (`pip install shoal[ray]`) and sglang's router (`shoal[router]`) are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.http_connection import Connection
from benchmarks.ray_cluster import descendants, ray_application, wait_until
from benchmarks.server_process import ServerProcess
from benchmarks.serving import Done, Sent, send, workload
from benchmarks.table import Table
from shoal.provenance import commit, hardware

QUESTION = [{"role": "user", "content": "how much is a red apple"}]
STREAM_SHARE = 4
"""Pairs of whole replies for each pair of streams, which take eight times as long."""
SIZES = {"whole": 8, "stream": 64}
"""Tokens of an answer, decoded in blocks of 8 and two tokens a forward."""
QUANTILES = (10, 50)
READY_S = 240.0


@dataclass(frozen=True, slots=True)
class Way:
    """How requests reach replicas: the front (`none`, `ray` or `dp`), its policy, the number of replicas."""

    front: str
    policy: str
    replicas: int

    @property
    def installed(self) -> bool:
        """Whether what it needs is here."""
        module = {"none": "shoal", "ray": "ray", "dp": "sglang_router"}[self.front]
        return importlib.util.find_spec(module) is not None


WAYS = (
    Way("none", "", 1),
    Way("ray", "prefix", 1),
    *(Way("ray", policy, 2) for policy in ("prefix", "round_robin", "power_of_two")),
    *(Way("dp", policy, count) for count in (2, 4) for policy in ("cache_aware", "round_robin")),
)


@contextlib.contextmanager
def running(way: Way, tree: int) -> Iterator[str]:
    """Its replicas, all ready, each with a tree of `tree` tokens; yields the address of the front."""
    if way.front == "ray":
        args = {"model_path": "shop", "device": "cpu", "num_replicas": way.replicas, "kv_cache_tokens": tree,
                "router": way.policy, "log_level": "warning"}  # fmt: skip
        with ray_application(args, cores=way.replicas) as application:
            if not wait_until(lambda: application.running() == way.replicas, READY_S):
                raise SystemExit(f"{way.replicas} replicas on Ray did not get ready")
            yield application.url
        return
    flags = ["--device", "cpu", "--kv-cache-tokens", str(tree)]
    if way.front == "dp":
        flags += ["--dp-size", str(way.replicas), "--router-policy", way.policy]
    server = ServerProcess(*flags, threads=1)
    try:
        server.wait_ready(READY_S)
        if way.front == "dp" and not wait_until(lambda: len(workers(server.url)) == way.replicas, READY_S):
            raise SystemExit(f"{way.replicas} replicas behind the router did not get ready")
        yield server.url
    finally:
        server.stop()


def workers(url: str) -> list[str]:
    """Addresses of the replicas that sglang's router finds healthy."""
    with contextlib.suppress(httpx.TransportError, KeyError, ValueError):
        found = httpx.get(f"{url}/workers", timeout=10).json()["workers"]
        return [worker["url"] for worker in found if worker["is_healthy"]]
    return []


def prefer(niceness: int) -> None:
    """Set the niceness of the sessions of all that runs here: Linux weighs sessions first, then processes in one."""
    for pid in (os.getpid(), *descendants(os.getpid())):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


# Traffic


async def closed_loop(url: str, items: Sequence[Sent], clients: int) -> tuple[list[Done], float]:
    """Results, and seconds until the last was done: `clients` send the next request each time theirs is done."""
    done, left = list[Done](), iter(items)
    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:

        async def one() -> None:
            for item in left:
                done.append(await send(client, item))

        await asyncio.gather(*(one() for _ in range(clients)))
    return done, time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRow:
    """What clients saw of one way; times in seconds, `throughput` in requests a second."""

    requests: int
    failed: int
    right: float
    hit_rate: float
    throughput: float
    first_text_p50_s: float
    e2e_p50_s: float
    e2e_p99_s: float

    @classmethod
    def of(cls, done: Sequence[Done], seconds: float) -> TrafficRow:
        """Summary of at least one result; the latencies are of requests that did not fail."""
        good = [one for one in done if not one.failed]
        e2e = [one.e2e for one in good] or [0.0]
        first = [one.first_text for one in good if one.first_text is not None] or [0.0]
        return cls(
            requests=len(done), failed=len(done) - len(good),
            right=round(sum(one.right for one in good) / len(done), 4),
            hit_rate=round(sum(one.cached for one in good) / max(1, sum(one.prompt for one in good)), 4),
            throughput=round(len(good) / seconds, 3), first_text_p50_s=round(statistics.median(first), 3),
            e2e_p50_s=round(statistics.median(e2e), 3), e2e_p99_s=round(float(np.percentile(e2e, 99)), 3),
        )  # fmt: skip


# Overhead


def body(kind: str) -> dict[str, Any]:
    """A chat whose decoding the router does not change: it drops fields that it does not know."""
    return {"messages": QUESTION, "max_tokens": SIZES[kind], "ignore_eos": True, "stream": kind == "stream",
            "chat_template_kwargs": {"block_length": 8, "steps": SIZES[kind] // 2}}  # fmt: skip


async def alternate(direct: str, through: str, kind: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of requests to the end of the reply: sent to both addresses in turn, one at a time.

    SystemExit if the two did not run as many forwards for a request.
    """
    connections = [Connection(int(url.rpartition(":")[2])) for url in (direct, through)]
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(-5, rounds):  # the first ones open connections and fill caches
        forwards = set[str]()
        for connection, seconds in zip(connections, taken, strict=True):
            start = time.perf_counter()
            reply = await connection.post("/v1/chat/completions", body(kind))
            if number >= 0:
                seconds.append(time.perf_counter() - start)
            forwards.add(re.findall(rb'"nfe":(\d+)', reply)[-1].decode())
        if len(forwards) != 1:
            raise SystemExit(f"the same request took {' and '.join(forwards)} forwards")
    return taken


def overhead(direct: str, through: str, kind: str, rounds: int) -> dict[str, Any]:
    """The columns of one kind of request; milliseconds."""
    if kind == "stream":
        rounds = max(1, rounds // STREAM_SHARE)
    columns: dict[str, Any] = {"request": kind, "requests": rounds}
    taken = asyncio.run(alternate(direct, through, kind, rounds))
    for percent in QUANTILES:
        alone, routed = (1e3 * float(np.percentile(one, percent)) for one in taken)
        figures = {"direct": alone, "through": routed, "overhead": routed - alone}
        columns |= {f"{name}_p{percent}_ms": round(value, 2) for name, value in figures.items()}
    return columns


COLUMNS = ("part", "front", "policy", "replicas", "prefixes", *TrafficRow.__dataclass_fields__, "request",
           *(f"{name}_p{percent}_ms" for percent in QUANTILES for name in ("direct", "through", "overhead")),
           "load", "nice")  # fmt: skip


def main() -> None:
    """Measure every way, and the overhead of both fronts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/routing.csv"))
    parser.add_argument("--prefixes", nargs="+", type=int, default=[6, 20], help="price lists in a row of traffic")
    parser.add_argument("--each", type=int, default=5, help="questions about a list")
    parser.add_argument("--tree", type=int, default=3584, help="KV tokens of a replica (kv_cache_tokens)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200, help="pairs of requests for each overhead")
    parser.add_argument("--nice", type=int, default=0, help="niceness of all that is started")
    parser.add_argument("--parts", nargs="+", choices=("traffic", "overhead"), default=["traffic", "overhead"])
    args = parser.parse_args()
    os.nice(args.nice)
    command = "python -m benchmarks.routing " + shlex.join(sys.argv[1:])
    table = Table(args.out, {
        "clients": args.clients, "tree": args.tree, "command": command, "commit": commit(), "hardware": hardware(),
    })  # fmt: skip

    def add(way: Way, **columns: object) -> None:
        row = {**dict.fromkeys(COLUMNS, ""), **asdict(way), "load": round(os.getloadavg()[0], 1),
               "nice": args.nice, **columns}  # fmt: skip
        table.add(row)
        print({name: value for name, value in row.items() if value != ""}, flush=True)

    for way in (Way("ray", "prefix", 1), Way("dp", "cache_aware", 2)):
        if way.installed and "overhead" in args.parts:
            with running(Way("none", "", 1), args.tree) as direct, running(way, args.tree) as through:
                prefer(args.nice)
                for kind in SIZES:
                    add(way, part="overhead", **overhead(direct, through, kind, args.rounds))
    for way in (one for one in WAYS if one.installed and "traffic" in args.parts):
        with running(way, args.tree) as url:
            prefer(args.nice)
            for prefixes in args.prefixes:
                items = workload(prefixes * args.each, prefixes, 1.0, f"routing-{prefixes}")
                done, seconds = asyncio.run(closed_loop(url, items, args.clients))
                add(way, part="traffic", prefixes=prefixes, **asdict(TrafficRow.of(done, seconds)))


if __name__ == "__main__":
    main()
