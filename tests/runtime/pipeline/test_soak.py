"""Thousands of mixed requests over the pipeline: nothing fails, nothing leaks, pages are checked after every step."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.errors import RequestTimeoutError
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import tokens, write_model
from .running import make_client, wait_idle

IN_FLIGHT = 16
MODES: tuple[Any, ...] = ("none", "prefix", "dual", "lm", "bicache", "bicache", "bicache")
GROWTH = 1.05


def resident(pids: dict[str, int]) -> dict[str, int]:
    """Anonymous resident memory of each process in bytes (files that are mapped don't count)."""
    found = {}
    for role, pid in pids.items():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found[role] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return found


async def one(client: PipelineClient, number: int, chooser: random.Random, ends: dict[str, int]) -> None:
    """A request of any kind: finished, left early, timed out or aborted."""
    prompt = tokens(chooser.choice([8, 20, 40]), chooser.randrange(12)) + tokens(chooser.randrange(8), number)
    sampling = SamplingParams(
        max_new_tokens=chooser.choice([0, 8, 16, 32]), threshold=chooser.choice([0.3, 0.6, 0.9]),
        temperature=chooser.choice([0.0, 0.0, 0.7]), ignore_eos=chooser.random() < 0.5,
        stop=chooser.choice([(), (), ("ab",)]),
    )  # fmt: skip
    item = GenerateInput(
        rid=str(number), prompt=prompt, sampling=sampling, cache_mode=chooser.choice(MODES),
        cache_salt=chooser.choice(["", "", "a"]), priority=chooser.choice([0, 0, 0, 1]),
        timeout_s=chooser.choice([1e-6, 0.02]) if chooser.random() < 0.02 else None, stream=chooser.random() < 0.5,
    )  # fmt: skip
    leaves = chooser.random() < 0.05
    aborted = chooser.random() < 0.05
    async with aclosing(client.generate(item)) as outputs:
        async for last in outputs:
            output = last
            if leaves:
                ends["left"] = ends.get("left", 0) + 1
                return
            if aborted:
                await client.abort(item.rid)
    assert output.finished
    assert output.error is None or isinstance(output.error, RequestTimeoutError)
    ends[str(output.finish_reason)] = ends.get(str(output.finish_reason), 0) + 1


async def serve(client: PipelineClient, count: int, seed: int) -> dict[str, int]:
    """`count` requests, IN_FLIGHT at a time; how they ended."""
    ends: dict[str, int] = {}
    numbers = iter(range(seed * 10**6, seed * 10**6 + count))

    async def worker() -> None:
        for number in numbers:
            await one(client, number, random.Random(number), ends)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    await wait_idle(client)
    return ends


async def soak(client: PipelineClient, count: int) -> None:
    warm = max(count // 4, 100)
    await serve(client, warm, 1)
    before = resident(client.pids)
    ends = await serve(client, count, 2)
    after = resident(client.pids)
    assert sum(ends.values()) == count
    assert ends.get("error", 0) == 0
    assert ends["length"] > count / 3
    stats = await client.stats()
    assert stats.failed == 0
    assert stats.cache_hits > 0
    assert stats.kv_pages_requests == 0
    assert {role: after[role] / before[role] for role in before if after[role] > GROWTH * before[role]} == {}
    await client.flush_cache()
    stats = await client.stats()
    assert stats.kv_pages_free == stats.kv_pages
    assert stats.boundary_pages_free == stats.boundary_pages


@pytest.fixture
def options(tmp_path) -> dict[str, Any]:
    folder = write_model(tmp_path / "llada", "llada")
    return {
        "null": False, "model_path": str(folder), "page_size": 4, "reuse_margin": 0, "layers_per_band": 2, "depth": 4,
        "kv_cache_tokens": 1024, "block_length": 8, "max_running_requests": 12, "max_refresh_tokens": 256,
    }  # fmt: skip


async def test_two_hundred_mixed_requests(options):
    client = make_client(**options)
    await client.start()
    ends = await serve(client, 200, 3)
    assert sum(ends.values()) == 200
    assert {"length", "abort"} <= set(ends)
    assert (await client.stats()).failed == 0
    await client.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_two_thousand_mixed_requests_and_flat_memory(options):
    client = make_client(**options)
    await client.start()
    try:
        await soak(client, 2000)
    finally:
        await client.shutdown()
