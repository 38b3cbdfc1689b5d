"""Serving under Poisson arrivals with shared prefixes: goodput and latency of every cache mode.

    python benchmarks/serving.py --out benchmarks/results/serving.csv

Groups of questions share a held-out price list; requests of all groups arrive in random order, at a rate, whatever the
server does (open loop). One server process for each mode; for every rate the modes take turns in several rounds, so
that a slow spell of the machine hits all alike. Decoding is a fixed number of steps: the same forward passes in every
mode until EOS. Every round has lists of its own: the first question about a list misses the cache.

Columns: `first_text_*` seconds from sending to the first committed text, `e2e_*` to the end; `goodput` requests a
second that were done within --first-text-limit and --e2e-limit, `right_goodput` those of them that were right too;
`load` the 1-minute load average of the machine before the cell began (the benchmark's own included).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.server_process import ServerProcess
from benchmarks.table import write_table
from shoal.provenance import commit, hardware
from shoal.runtime.config import CACHE_MODES
from shoal.shop.task import KINDS, Question, chat, make_list, make_question

CANVAS, BLOCK, STEPS = 32, 8, 16
QUANTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: when it is sent (seconds after the first), what it asks."""

    at: float
    messages: list[dict[str, str]]
    question: Question


@dataclass(frozen=True, slots=True)
class Done:
    """Its result; times in seconds, `first_text` None without any text."""

    first_text: float | None
    e2e: float
    right: bool
    cached: int
    prompt: int
    nfe: int
    failed: bool = False


def workload(count: int, groups: int, rate: float, seed: str) -> list[Sent]:
    """`count` questions about `groups` lists in random order, with exponential gaps."""
    rng = random.Random(f"serving-{seed}")
    lists = [make_list(rng, rng.randint(44, 68), held_out=True) for _ in range(groups)]
    order = [lists[i % groups] for i in range(count)]
    rng.shuffle(order)
    at, sent = 0.0, []
    for index, prices in enumerate(order):
        question = make_question(rng, prices, KINDS[index % len(KINDS)])
        sent.append(Sent(at, chat(prices, [], question.text), question))
        at += rng.expovariate(rate)
    return sent


async def send(client: httpx.AsyncClient, item: Sent) -> Done:
    """Stream one chat as token ids of the server's own tokenizer, through the native route."""
    start = time.perf_counter()
    knobs = {"steps": STEPS, "block_length": BLOCK}  # here, where routers let them through
    body = {"messages": item.messages, "max_tokens": CANVAS, "chat_template_kwargs": knobs, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    text, first = "", None
    info: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            return Done(None, time.perf_counter() - start, False, 0, 0, 0, failed=True)
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            data: dict[str, Any] = json.loads(line[6:])
            usage = data.get("usage") or usage
            for choice in data.get("choices", ()):
                text += choice["delta"].get("content") or ""
                info = choice.get("meta_info") or info
            if first is None and text:
                first = time.perf_counter() - start
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Done(
        first, time.perf_counter() - start, text == item.question.answer, cached, usage["prompt_tokens"], info["nfe"]
    )


async def run_cell(url: str, sent: list[Sent]) -> tuple[list[Done], float]:
    """Send everything at its time; the results and the seconds until the last was done."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        start = time.perf_counter()

        async def one(item: Sent) -> Done:
            await asyncio.sleep(max(0.0, item.at - (time.perf_counter() - start)))
            return await send(client, item)

        done = await asyncio.gather(*map(one, sent))
        return done, time.perf_counter() - start


def summary(done: list[Done], seconds: float, limits: tuple[float, float]) -> dict[str, Any]:
    """One row's figures."""
    good = [d for d in done if not d.failed]
    firsts = [d.first_text for d in good if d.first_text is not None]
    in_time = [d for d in good if (d.first_text or d.e2e) <= limits[0] and d.e2e <= limits[1]]
    row: dict[str, Any] = {
        "requests": len(done),
        "failed": len(done) - len(good),
        "seconds": round(seconds, 2),
        "throughput": round(len(good) / seconds, 3),
        "goodput": round(len(in_time) / seconds, 3),
        "right_goodput": round(sum(d.right for d in in_time) / seconds, 3),
        "accuracy": round(sum(d.right for d in good) / max(1, len(good)), 4),
    }
    for name, values in (("first_text", firsts), ("e2e", [d.e2e for d in good])):
        for quantile in QUANTILES:
            row[f"{name}_p{quantile}"] = round(float(np.percentile(values, quantile)), 4) if values else ""
    row["cached_share"] = round(sum(d.cached for d in good) / max(1, sum(d.prompt for d in good)), 4)
    row["nfe"] = round(sum(d.nfe for d in good) / max(1, len(good)), 3)
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Goodput and p95 of both latencies against the rate, a line for each mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    panels = (("right_goodput", "right answers in time, requests/s"), ("first_text_p95", "first text, p95, s"),
              ("e2e_p95", "end to end, p95, s"))  # fmt: skip
    for axis, (column, label) in zip(axes, panels, strict=True):
        for mode in dict.fromkeys(row["mode"] for row in rows):
            mine = [row for row in rows if row["mode"] == mode]
            axis.plot([row["rate"] for row in mine], [row[column] for row in mine], marker="o", label=mode)
        axis.set_xlabel("arrivals, requests/s")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if column.endswith("p95"):
            axis.set_yscale("log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write the CSV and the plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.csv"))
    parser.add_argument("--modes", nargs="+", choices=CACHE_MODES, default=["none", "dual", "lm", "bicache"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0, 2.0, 4.0], help="requests a second")
    parser.add_argument("--requests", type=int, default=24, help="in a round of one mode at one rate")
    parser.add_argument("--groups", type=int, default=3, help="lists in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--first-text-limit", type=float, default=1.0)
    parser.add_argument("--e2e-limit", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1, help="of torch in each server's worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    limits = (options.first_text_limit, options.e2e_limit)
    constant = {
        "canvas": CANVAS, "block": BLOCK, "steps": STEPS, "groups": options.groups, "first_text_limit": limits[0],
        "e2e_limit": limits[1], "threads": options.threads, "command": "python " + shlex.join(sys.argv),
        "commit": commit(), "hardware": hardware(), "torch": torch.__version__,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    servers = {
        mode: ServerProcess("--cache-mode", mode, log=options.out.with_suffix(f".{mode}.log"), threads=options.threads)
        for mode in options.modes
    }
    try:
        for server in servers.values():
            server.wait_ready()
        for rate in options.rates:
            done: dict[str, list[Done]] = {mode: [] for mode in servers}
            seconds = dict.fromkeys(servers, 0.0)
            load = round(os.getloadavg()[0], 2)
            for number in range(options.rounds):
                sent = workload(options.requests, options.groups, rate, f"{options.seed}-{rate}-{number}")
                for mode, server in servers.items():
                    results, took = asyncio.run(run_cell(server.url, sent))
                    done[mode] += results
                    seconds[mode] += took
            for mode in servers:
                row = {
                    "mode": mode,
                    "rate": rate,
                    **summary(done[mode], seconds[mode], limits),
                    "load": load,
                    **constant,
                }
                rows.append(row)
                shown = ("mode", "rate", "goodput", "right_goodput", "accuracy", "first_text_p95", "e2e_p50", "e2e_p95")
                print("  ".join(f"{name} {row[name]}" for name in shown), flush=True)
    finally:
        for server in servers.values():
            server.stop()
    write_table(options.out, rows)
    plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
