"""What streams of snapshots (stream_mode denoise) cost: throughput of `shop` at 16 streams, with and without.

    python benchmarks/denoising.py --out benchmarks/results/denoising.csv

Questions about eight price lists to the bundled model on the CPU over the pipeline (tokenizer, scheduler, worker and
detokenizer processes), 16 streams at a time, a canvas of 64 tokens decoded in 32 steps. Then the same with a null
worker whose forwards take 5 ms and commit 2 tokens each, as a GPU's might: nothing hides what the other processes do.

Modes take turns, so that what else runs on the machine hits both; `ratio` is the median over the turns of denoise /
text. CPU microseconds are those of a process for a token: they depend less on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.overhead import IN_FLIGHT, cpu_seconds
from benchmarks.pipeline_throughput import NEW_TOKENS, questions
from benchmarks.table import Table
from shoal import SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import EngineConfig
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.config import PipelineConfig
from shoal.runtime.request.input import GenerateInput

SAMPLING = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, steps=NEW_TOKENS // 2)
MODES = ("text", "denoise")
NULL_DELAY_S = 0.005


async def run(client: PipelineClient, mode: str, count: int, number: int) -> dict[str, float]:
    """Tokens a second of `count` streams, 16 at a time, and CPU seconds a token of each process."""
    await client.flush_cache()
    left = iter(enumerate(questions(count)))
    outputs = 0

    async def reader() -> None:
        nonlocal outputs
        for index, prompt in left:
            rid = f"{number}-{index}"
            options: dict[str, Any] = {} if mode == "text" else {"stream_mode": mode}
            async for _ in client.generate(GenerateInput(rid=rid, prompt=prompt, sampling=SAMPLING, **options)):
                outputs += 1

    pids = {**client.pids, "client": os.getpid()}
    cpu, begin = cpu_seconds(pids), time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(IN_FLIGHT)))
    seconds = time.perf_counter() - begin
    tokens = count * NEW_TOKENS
    spent = {f"cpu_{name}_us": 1e6 * (now - cpu[name]) / tokens for name, now in cpu_seconds(pids).items()}
    return {"tokens_per_s": tokens / seconds, "outputs": outputs, **spent}


async def measure(worker: str, modes: Sequence[str], repeats: int, count: int, table: Table) -> None:
    """Runs of each mode in turns, then a row of ratios."""
    options = PipelineConfig(null_worker=worker == "null", null_tokens=2, null_delay_s=NULL_DELAY_S)
    config = EngineConfig(device="cpu", max_running_requests=IN_FLIGHT)
    client = PipelineClient(config, options, log_level="warning")
    await client.start()
    numbers, runs = itertools.count(), {mode: list[dict[str, float]]() for mode in modes}
    try:
        for mode in modes:
            await run(client, mode, IN_FLIGHT, next(numbers))
        for repeat in range(repeats):
            for mode in modes if repeat % 2 else modes[::-1]:
                row = await run(client, mode, count, next(numbers))
                runs[mode].append(row)
                table.add(
                    {
                        "worker": worker,
                        "mode": mode,
                        "run": repeat,
                        **{name: round(value, 2) for name, value in row.items()},
                    }
                )
                print(worker, mode, {name: round(value, 1) for name, value in row.items()}, flush=True)
    finally:
        await client.shutdown()
    if len(modes) == 2:
        names = list(runs[modes[0]][0])
        pairs = list(zip(*(runs[mode] for mode in modes), strict=True))
        ratios = {name: statistics.median(b[name] / a[name] if a[name] else 1.0 for a, b in pairs) for name in names}
        table.add(
            {
                "worker": worker,
                "mode": "ratio",
                "run": "median",
                **{name: round(value, 4) for name, value in ratios.items()},
            }
        )
        print(worker, "ratio", {name: round(value, 4) for name, value in ratios.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--workers", default="shop,null", help="the bundled model, the null worker, or both")
    parser.add_argument("--modes", default=",".join(MODES), help="one alone, to measure a commit without the other")
    arguments = parser.parse_args()
    sizes = f"--repeats {arguments.repeats} --requests {arguments.requests}"
    command = f"python benchmarks/denoising.py --workers {arguments.workers} {sizes}"
    table = Table(arguments.out, {"command": command, "commit": commit(), "hardware": hardware()})
    modes = arguments.modes.split(",")
    if "shop" in arguments.workers:
        asyncio.run(measure("shop", modes, arguments.repeats, arguments.requests, table))
    if "null" in arguments.workers:
        asyncio.run(measure("null", modes, 5 * arguments.repeats, 4 * arguments.requests, table))


if __name__ == "__main__":
    main()
