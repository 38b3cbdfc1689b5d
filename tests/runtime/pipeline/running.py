"""Pipelines for tests: real processes, with a null worker unless a test needs the model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.runtime.config import EngineConfig
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.pipeline.config import PipelineConfig
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

PROMPT = list(range(10, 40))


def make_client(
    null: bool = True, null_tokens: int = 4, delay: float = 0.0, watchdog: float = 60.0, **engine: Any
) -> PipelineClient:
    """A client that is not started; pages are checked after every step. `delay`: seconds of a null worker's forward."""
    options = {"device": "cpu", "check_invariants": True, "kv_cache_tokens": 16384, **engine}
    pipeline = PipelineConfig(
        null_worker=null, null_tokens=null_tokens, null_delay_s=delay, watchdog_timeout_s=watchdog
    )
    return PipelineClient(EngineConfig(**options), pipeline, log_level="warning")


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[PipelineClient]:
    """A pipeline that is up; stopped at the end, and nothing may be left of it."""
    client = make_client(**options)
    await client.start()
    traces = Traces(client)
    try:
        yield client
    finally:
        await client.shutdown()
        traces.assert_gone()


class Traces:
    """What a pipeline leaves in the system while it runs."""

    def __init__(self, client: PipelineClient):
        assert client.pipeline is not None
        self.pids = list(client.pids.values())
        self.directory = client.pipeline.endpoints.directory

    def assert_gone(self) -> None:
        """No process, no socket, no directory."""
        assert not self.directory.exists()
        assert [pid for pid in self.pids if alive(pid)] == []


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pids: list[int], directory: Path, seconds: float = 30.0) -> None:
    """Wait until processes and directory are gone; fails when they are not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(alive, pids)) and not directory.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"left: {[pid for pid in pids if alive(pid)]}, {os.path.exists(directory)}")


def request(rid: str, size: int = 32, prompt: Any = PROMPT, **options: Any) -> GenerateInput:
    """A request that goes to the end of its canvas."""
    names = ("cache_mode", "cache_salt", "priority", "timeout_s", "stream", "stream_mode")
    own = {name: options.pop(name) for name in names if name in options}
    sampling = SamplingParams(**{"max_new_tokens": size, "ignore_eos": True, **options})
    return GenerateInput(rid=rid, prompt=prompt, sampling=sampling, **own)


async def collect(client: PipelineClient, item: GenerateInput) -> list[RequestOutput]:
    """All outputs of a request."""
    return [output async for output in client.generate(item)]


async def last(client: PipelineClient, item: GenerateInput) -> RequestOutput:
    """The terminal output of a request."""
    return (await collect(client, item))[-1]


@contextlib.contextmanager
def held(client: PipelineClient, role: str) -> Iterator[None]:
    """A process does nothing inside: with the worker held, what is sent stays under way."""
    os.kill(client.pids[role], signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(client.pids[role], signal.SIGCONT)


async def arrived(client: PipelineClient) -> None:
    """Until everything that was sent so far has reached the scheduler: answers take the same way."""
    await asyncio.sleep(0)  # requests that were only just made into tasks are sent now
    await client.stats()


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Until the condition holds. A limit that is far off: how long it takes is no claim."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s"
        await asyncio.sleep(0.01)


async def until_running(client: PipelineClient, count: int) -> None:
    """Until so many requests run."""
    while (await client.stats()).running < count:
        await asyncio.sleep(0.01)


async def wait_idle(client: PipelineClient, seconds: float = 60.0) -> None:
    """Until nothing runs or waits, and no page is held by a request."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = await client.stats()
        if (stats.running, stats.waiting, stats.kv_pages_requests) == (0, 0, 0):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not idle: {stats}")
