"""Cost of serving besides the model: overhead of the pipeline with a null worker, and its throughput with a real one.

    python benchmarks/pipeline.py --out benchmarks/results/pipeline.csv

The null worker commits 4 tokens a request and forward, at once. 16 requests are in flight, prompts are texts of about
64 tokens, no two alike.

`service`: requests of 64 new tokens in blocks of 32 through PipelineClient: tokenizer, scheduler, worker and
detokenizer processes, ZMQ. `http`: the same through `python -m shoal.launch_server`, from this process over keep-alive
connections. Rows: wall time a request (elapsed / requests: what one more request costs a busy server), and the CPU time
of each process. `steps`: requests of 512 new tokens in one block through PipelineClient: wall time a scheduling step
(elapsed / forwards), where little else happens than block steps of 16 requests. `scheduling`: the scheduler's
part of such a step, in one process without sockets: plan, encode, decode, apply.

`throughput`: questions about eight price lists to the bundled model on the CPU, 16 in flight, in process (Engine) and
over the pipeline, in turns; tokens a second and their ratio.

Wall times are those of the best of `--repeats` runs, and the median; the machine is shared, so the load average stands
beside them. CPU times depend less on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.http_connection import Connection
from benchmarks.overhead import IN_FLIGHT, Row, measure_repeatedly, overhead_rows
from benchmarks.pipeline_throughput import throughput
from benchmarks.scheduling import scheduling
from benchmarks.server_process import ServerProcess
from shoal import SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.config import EngineConfig
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.config import PipelineConfig
from shoal.runtime.request.input import GenerateInput

NEW_TOKENS, BLOCK = 64, 32
FIELDS = ("measurement", "streaming", "metric", "value", "unit", "in_flight", "requests", "load", "command", "commit",
          "hardware", "versions")  # fmt: skip


async def service_overhead(name: str, requests: int, repeats: int, new_tokens: int, block: int) -> list[Row]:
    """Through PipelineClient."""
    client = PipelineClient(EngineConfig(device="cpu"), PipelineConfig(null_worker=True), log_level="warning")
    await client.start()
    rows: list[Row] = []
    try:
        for streaming in (False, True):

            async def one(number: int, text: str, stream: bool = streaming) -> None:
                sampling = SamplingParams(max_new_tokens=new_tokens, block_length=block, ignore_eos=True)
                async for output in client.generate(
                    GenerateInput(rid=str(number), prompt=text, sampling=sampling, stream=stream)
                ):
                    last = output
                assert last.completion_tokens == new_tokens

            async def forwards() -> int:
                return (await client.stats()).forwards

            pids = {**client.pids, "client": os.getpid()}
            samples = await measure_repeatedly(requests, repeats, one, pids, forwards)
            rows += overhead_rows(name, streaming, samples)
    finally:
        await client.shutdown()
    return rows


async def http_overhead(requests: int, repeats: int) -> list[Row]:
    """Through `python -m shoal.launch_server`."""
    server = ServerProcess("--device", "cpu", "--null-worker")
    rows: list[Row] = []
    try:
        await asyncio.to_thread(server.wait_ready)
        pids = await asyncio.to_thread(server.pids)
        pool = [Connection(server.port) for _ in range(IN_FLIGHT)]
        for streaming in (False, True):

            async def one(number: int, text: str, stream: bool = streaming) -> None:
                connection = pool.pop()
                sampling = {"max_new_tokens": NEW_TOKENS, "block_length": BLOCK, "ignore_eos": True}
                body = {"text": text, "sampling_params": sampling, "stream": stream}
                reply = await connection.post("/generate", body)
                assert b'"completion_tokens":64' in reply.replace(b" ", b"")
                pool.append(connection)

            async def forwards() -> int:
                return await asyncio.to_thread(server.forwards)

            rows += overhead_rows("http", streaming, await measure_repeatedly(requests, repeats, one, pids, forwards))
    finally:
        await asyncio.to_thread(server.stop)
    return rows


def write(path: Path, rows: Iterable[Row], command: str) -> None:
    """The table as CSV."""
    versions = f"python {platform.python_version()}, numpy {np.__version__}"
    shared = {"in_flight": IN_FLIGHT, "load": f"{os.getloadavg()[0]:.1f}", "command": command, "commit": commit(),
              "hardware": hardware(), "versions": versions}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow({**shared, "measurement": row.measurement, "streaming": row.streaming, "metric": row.metric,
                             "value": f"{row.value:.4g}", "unit": row.unit, "requests": row.requests})  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/pipeline.csv"))
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--questions", type=int, default=24, help="of a run of the throughput part")
    parser.add_argument("--only", choices=["scheduling", "steps", "service", "http", "throughput"])
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "scheduling": lambda: asyncio.to_thread(scheduling, options.repeats),
        "steps": lambda: service_overhead("steps", options.requests // 4, options.repeats, 512, 512),
        "service": lambda: service_overhead("service", options.requests, options.repeats, NEW_TOKENS, BLOCK),
        "http": lambda: http_overhead(options.requests, options.repeats),
        "throughput": lambda: throughput(options.repeats, options.questions),
    }
    rows: list[Row] = []
    for name, part in parts.items():
        if options.only in (None, name):
            rows += await part()
            for row in rows[-30:]:
                if row.measurement == name:
                    kind = "stream" if row.streaming else "whole"
                    print(f"{name:11} {kind:6} {row.metric:30} {row.value:9.4g} {row.unit}")
    write(options.out, rows, f"python benchmarks/pipeline.py --out {options.out}")


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        run = asyncio.run  # type: ignore[assignment]
    run(main())
