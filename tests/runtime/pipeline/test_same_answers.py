"""The same requests in one process and over the pipeline: the same tokens, texts and counts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.pipeline.client import PipelineClient
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import CHARACTERS, tokens, write_model
from .running import collect, make_client, wait_idle

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPTIONS: dict[str, Any] = {
    "page_size": 4, "reuse_margin": 0, "layers_per_band": 2, "kv_cache_tokens": 1024, "block_length": 8, "depth": 4,
    "check_invariants": True, "device": "cpu",
}  # fmt: skip
RULES: list[dict[str, Any]] = [
    {"threshold": 0.5, "max_new_tokens": 16, "logprobs": 2},
    {"steps": 6, "max_new_tokens": 24, "ignore_eos": True},
    {"threshold": 0.6, "max_new_tokens": 32, "temperature": 0.8, "seed": 3},
    {"threshold": 0.5, "max_new_tokens": 32, "stop": ["a", "bc", "Z"], "logprobs": 0},
    {"threshold": 0.5, "max_new_tokens": 40, "stop_token_ids": [9, 10]},
    {"steps": 4, "max_new_tokens": 16, "strategy": "random", "seed": 5},
    {"threshold": 0.5, "max_new_tokens": 0},
    {"entropy_bound": 0.5, "max_new_tokens": 48, "canvas_window": 8, "refresh_entropy": 1.0, "ignore_eos": True},
    {"threshold": 0.5, "max_new_tokens": 24, "regex": "[a-f]{2,12};[g-m]+", "logprobs": 1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llada", "llada")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folder) -> AsyncIterator[PipelineClient]:
    made = make_client(null=False, model_path=str(folder), **OPTIONS)
    await made.start()
    yield made
    await wait_idle(made)
    await made.shutdown()


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(str(folder), **OPTIONS) as made:
        yield made


def facts(output: RequestOutput) -> tuple[Any, ...]:
    return (
        output.token_ids, output.text, output.finish_reason, output.matched_stop, output.nfe, output.canvas_tokens,
        output.prompt_tokens, output.completion_tokens, output.cached_tokens, output.depth,
        output.reused_token_layers, output.computed_token_layers, output.prefix_refreshes, output.holes,
        output.logprobs,
    )  # fmt: skip


def text(seed: int, length: int = 20) -> str:
    return "".join(CHARACTERS[token - 4] for token in tokens(length, seed))


def cases() -> list[tuple[Any, SamplingParams]]:
    prompts: list[Any] = [tokens(9 + 5 * n, n) if n % 2 else text(n, 9 + 5 * n) for n in range(len(RULES))]
    prompts[3] = [{"role": "user", "content": text(3)}]
    return [(prompt, SamplingParams(**rule)) for prompt, rule in zip(prompts, RULES, strict=True)]


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
async def test_requests_one_after_the_other(client, engine, mode: CacheMode):
    """The caches fill up alike: twice each, so that the second time is a hit where there are hits."""
    await client.flush_cache()
    engine.flush_cache()
    hits = 0
    for turn in range(2):
        for number, (prompt, params) in enumerate(cases()):
            if params.seed is None:
                params = SamplingParams(**{**RULES[number], "seed": 1})
            item = GenerateInput(rid=f"{mode}-{turn}-{number}", prompt=prompt, sampling=params, cache_mode=mode)
            outputs = await collect(client, item)
            expected = engine.generate(prompt, params, cache_mode=mode)
            assert facts(outputs[-1]) == facts(expected)
            hits += outputs[-1].cached_tokens > 0
            for early, late in itertools.pairwise(outputs):
                assert late.text.startswith(early.text)
    assert (hits > 0) == (mode in ("lm", "bicache"))


async def test_requests_all_at_once_in_modes_without_sharing(client, engine):
    items = [
        GenerateInput(rid=f"{mode}-{n}-{turn}", prompt=prompt, sampling=params, cache_mode=mode, stream=turn > 0)
        for turn in range(2)
        for mode in ("none", "dual")
        for n, (prompt, params) in enumerate(cases())
        if params.temperature == 0 and params.strategy != "random"
    ]
    ends = await asyncio.gather(*(collect(client, item) for item in items))
    for item, outputs in zip(items, ends, strict=True):
        expected = engine.generate(item.prompt, item.sampling, cache_mode=item.cache_mode)
        assert facts(outputs[-1]) == facts(expected)
        assert item.stream or len(outputs) == 1


async def test_holes_and_scores(client, engine):
    canvas = [5, 6, -1, -1, -1, 7, -1, -1]
    item = GenerateInput(rid="holes", prompt=tokens(12), canvas=canvas, cache_mode="dual")
    output = (await collect(client, item))[-1]
    expected = engine.generate(tokens(12), canvas=canvas, cache_mode="dual")
    assert facts(output) == facts(expected)
    assert len(output.holes) == 2
    targets = [(2, 8), (3, 9)]
    item = GenerateInput(rid="score", prompt=tokens(12), canvas=canvas, targets=targets, cache_mode="none")
    output = (await collect(client, item))[-1]
    assert len(output.scores) == 2
    assert all(score < 0 for score in output.scores)


async def test_info_says_what_runs(client, folder):
    info = client.info
    assert (info.model_folder, info.architecture, info.block_length) == (str(folder), "llada", 8)
    assert info.max_tokens == 160
    assert (info.mask_token_id, info.eos_token_id, info.vocab_size) == (60, 3, 64)
    assert info.engine["device_in_use"] == "cpu"
    assert info.engine["page_size"] == 4
    assert info.depth_profile["num_layers"] == 6
    assert info.has_tokenizer
    assert info.has_chat_template
