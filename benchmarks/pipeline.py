"""What serving costs beside the model: overhead of the pipeline with a null worker, and its throughput with a real one.

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
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal import Engine, SamplingParams
from shoal.provenance import commit, hardware
from shoal.runtime.engine_config import EngineConfig
from shoal.runtime.facts import build_scheduler
from shoal.runtime.null_worker import build_null_worker
from shoal.runtime.pipeline_client import PipelineClient
from shoal.runtime.pipeline_config import PipelineConfig
from shoal.runtime.request import Request
from shoal.runtime.service import GenerateInput
from shoal.runtime.text_stream import TextStream
from shoal.runtime.wire import Codec, FromWorker, Results, Run, ToWorker
from shoal.shop.task import chat, make_list, make_question

IN_FLIGHT = 16
NEW_TOKENS, BLOCK = 64, 32
FIELDS = ("measurement", "streaming", "metric", "value", "unit", "in_flight", "requests", "load", "command", "commit",
          "hardware", "versions")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One number."""

    measurement: str
    streaming: bool
    metric: str
    value: float
    unit: str
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds, requests, forwards, and CPU seconds by process."""

    seconds: float
    requests: int
    forwards: int
    cpu: dict[str, float]


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """User and system time of processes so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        found[name] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def prompts(count: int, seed: int) -> list[str]:
    """Texts of about 64 tokens, no two alike."""
    words = ["how", "much", "is", "a", "red", "apple", "and", "a", "green", "pear", "or", "the", "blue", "plum"]
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words, k=60)) for _ in range(count)]


async def run_all(texts: list[str], one: Callable[[int, str], Awaitable[None]]) -> None:
    """`one` for every text, IN_FLIGHT at a time."""
    left = iter(list(enumerate(texts)))

    async def client() -> None:
        for number, text in left:
            await one(number, text)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))


async def measure(
    texts: list[str], one: Callable[[int, str], Awaitable[None]], pids: dict[str, int],
    forwards: Callable[[], Awaitable[int]],
) -> Sample:  # fmt: skip
    """One run of all texts."""
    before, steps = cpu_seconds(pids), await forwards()
    begin = time.perf_counter()
    await run_all(texts, one)
    seconds = time.perf_counter() - begin
    after = cpu_seconds(pids)
    return Sample(seconds, len(texts), await forwards() - steps, {name: after[name] - before[name] for name in pids})


def overhead_rows(name: str, streaming: bool, samples: list[Sample]) -> Iterator[Row]:
    """Wall time of the fastest run and of the median one, CPU time of all: by request, or for `steps` by forward."""
    count = sum(sample.requests for sample in samples)
    unit = "step" if name == "steps" else "request"
    times = [s.seconds / (s.forwards if name == "steps" else s.requests) * 1e3 for s in samples]
    yield Row(name, streaming, f"wall_per_{unit}", min(times), "ms", count)
    yield Row(name, streaming, f"wall_per_{unit}_median", statistics.median(times), "ms", count)
    per = sum(s.forwards if name == "steps" else s.requests for s in samples)
    for process in samples[0].cpu:
        cpu = sum(sample.cpu[process] for sample in samples)
        yield Row(name, streaming, f"cpu_per_{unit}_{process}", cpu / per * 1e3, "ms", count)


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
            samples = []
            for repeat in range(repeats + 1):
                sample = await measure(prompts(requests, repeat), one, pids, forwards)
                samples += [sample] if repeat else []  # the first run warms everything up
            rows += overhead_rows(name, streaming, samples)
    finally:
        await client.shutdown()
    return rows


class Connection:
    """A keep-alive HTTP/1.1 connection that costs little: one request at a time."""

    def __init__(self, port: int):
        self._port = port
        self._streams: Any = None

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The body of the reply, decoded from chunks where it comes in chunks."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        writer.write(f"{head}\r\n\r\n".encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        if b"content-length:" in answer:
            return await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
        return b"".join(parts)


async def http_overhead(requests: int, repeats: int) -> list[Row]:
    """Through `python -m shoal.launch_server`."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "shoal.launch_server", "--model-path", "shop", "--device", "cpu", "--null-worker",
               "--port", str(port), "--log-level", "warning"]  # fmt: skip
    rows: list[Row] = []
    with subprocess.Popen(command) as server:
        try:
            await wait_ready(port, server)
            pids = {**children(server.pid), "http": server.pid}
            pool = [Connection(port) for _ in range(IN_FLIGHT)]

            async def forwards() -> int:
                return await asyncio.to_thread(forwards_of, port)

            for streaming in (False, True):

                async def one(number: int, text: str, stream: bool = streaming) -> None:
                    connection = pool.pop()
                    sampling = {"max_new_tokens": NEW_TOKENS, "block_length": BLOCK, "ignore_eos": True}
                    body = {"text": text, "sampling_params": sampling, "stream": stream}
                    reply = await connection.post("/generate", body)
                    assert b'"completion_tokens":64' in reply.replace(b" ", b"")
                    pool.append(connection)

                samples = []
                for repeat in range(repeats + 1):
                    sample = await measure(prompts(requests, repeat), one, pids, forwards)
                    samples += [sample] if repeat else []
                rows += overhead_rows("http", streaming, samples)
        finally:
            server.terminate()
            server.wait(30)
    return rows


async def wait_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until /health says 200."""
    import httpx

    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the server did not get ready")


def forwards_of(port: int) -> int:
    """Forwards so far, by /metrics."""
    import httpx

    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("shoal:forwards_total")]
    return int(sum(values))


def children(pid: int) -> dict[str, int]:
    """The pipeline's processes under a server: the roles in the order in which they are started."""
    found = sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return dict(zip(("tokenizer", "scheduler", "worker", "detokenizer"), found, strict=True))


def scheduling(repeats: int) -> list[Row]:
    """The scheduler's work for a step of IN_FLIGHT requests, without sockets; the null worker's own time taken off."""
    worker, facts = build_null_worker(EngineConfig(device="cpu"), 4)
    scheduler = build_scheduler(EngineConfig(device="cpu"), facts, worker)
    to_worker: Codec[Any] = Codec(ToWorker)
    from_worker: Codec[Any] = Codec(FromWorker)
    prompt = np.arange(4, 68)
    made = 0

    def loop(steps: int) -> float:
        nonlocal made
        own = 0.0
        for _ in range(steps):
            while scheduler.num_running + scheduler.num_waiting < IN_FLIGHT:
                made += 1
                sampling = SamplingParams(max_new_tokens=512, block_length=512, ignore_eos=True)
                scheduler.add(Request(str(made), prompt, sampling, "bicache", "", BLOCK, 1, TextStream(None)))
            begin = time.perf_counter()
            forward = scheduler.plan()
            if forward is not None:
                message = to_worker.decode(to_worker.encode(Run(forward)))
                middle = time.perf_counter()
                results = worker.forward(message.forward)
                own -= time.perf_counter() - middle
                scheduler.apply(from_worker.decode(from_worker.encode(Results(results))).results)
            scheduler.take()
            own += time.perf_counter() - begin
        return own / steps

    loop(200)
    best = min(loop(1000) for _ in range(repeats))
    return [Row("scheduling", True, "per_step", best * 1e3, "ms", made)]


def questions(count: int) -> list[list[dict[str, str]]]:
    """Chats about price lists: eight lists of 24 to 40 items."""
    chooser = random.Random(11)
    lists = [make_list(chooser, 24 + 2 * n, held_out=True) for n in range(8)]
    made = []
    for number in range(count):
        prices = lists[number % len(lists)]
        made.append(chat(prices, [], make_question(chooser, prices).text))
    return made


async def throughput(repeats: int, count: int) -> list[Row]:
    """The bundled model in process and over the pipeline, in turns."""
    import torch

    work = questions(count)
    config = EngineConfig(device="cpu", max_running_requests=IN_FLIGHT, cache_mode="bicache")
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, threshold=0.9)
    tokens = count * NEW_TOKENS
    client = PipelineClient(config, log_level="warning")
    await client.start()
    rates: dict[str, list[float]] = {"engine": [], "pipeline": []}
    texts: dict[str, list[str]] = {}
    try:
        with Engine(config=config) as engine:
            for repeat in range(repeats + 1):
                engine.flush_cache()
                begin = time.perf_counter()
                outputs = await asyncio.to_thread(engine.generate, work, sampling)
                rates["engine"].append(tokens / (time.perf_counter() - begin))
                texts["engine"] = [output.text for output in outputs]
                await client.flush_cache()
                begin = time.perf_counter()
                items = [(f"{repeat}-{number}", prompt) for number, prompt in enumerate(work)]
                ends = await asyncio.gather(*(last_of(client, rid, prompt, sampling) for rid, prompt in items))
                rates["pipeline"].append(tokens / (time.perf_counter() - begin))
                texts["pipeline"] = [output.text for output in ends]
    finally:
        await client.shutdown()
    kept = {name: values[1:] for name, values in rates.items()}
    ratio = statistics.median(p / e for p, e in zip(kept["pipeline"], kept["engine"], strict=True))
    same = sum(a == b for a, b in zip(texts["engine"], texts["pipeline"], strict=True)) / count
    return [
        Row("throughput", False, "engine", max(kept["engine"]), "token/s", count * repeats),
        Row("throughput", False, "pipeline", max(kept["pipeline"]), "token/s", count * repeats),
        Row("throughput", False, "median_ratio", ratio, "pipeline / engine", count * repeats),
        Row("throughput", False, "ratio_of_best", max(kept["pipeline"]) / max(kept["engine"]), "pipeline / engine",
            count * repeats),
        Row("throughput", False, "same_answers", same, "share", count),
        Row("throughput", False, "torch_threads", torch.get_num_threads(), "threads", count),
    ]  # fmt: skip


async def last_of(client: PipelineClient, rid: str, prompt: Any, sampling: SamplingParams) -> Any:
    """The terminal output of a request."""
    async for output in client.generate(GenerateInput(rid=rid, prompt=prompt, sampling=sampling, stream=False)):
        last = output
    return last


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
