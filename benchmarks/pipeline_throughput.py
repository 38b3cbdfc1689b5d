"""Throughput of the bundled model in process and over the pipeline, on the same questions."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any

from benchmarks.overhead import IN_FLIGHT, Row
from shoal import Engine, SamplingParams
from shoal.runtime.config import EngineConfig
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.request.input import GenerateInput
from shoal.shop.task import chat, make_list, make_question

NEW_TOKENS = 64


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
