"""Logits that are not finite end their request with an error that says so, on both workers, and nobody else's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from shoal.runtime.config import CACHE_MODES, EngineConfig
from shoal.runtime.engine.engine import Engine
from shoal.runtime.engine.service import LocalService
from shoal.runtime.errors import EngineError
from shoal.runtime.http.app import create_app
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import assert_nothing_lost, make_engine, tokens, worker_of
from .cuda_path import cuda_executor

GOOD = [tokens(20, 1), tokens(13, 2), tokens(20, 1)[:18] + tokens(5, 4)]


def bad_prompt(token: int) -> list[int]:
    """Begins as others do, and has a token that nobody else has."""
    return [*tokens(20, 1)[:17], token, *tokens(4, 3)]


def poison(engine: Engine | LocalService, token: int, value: float = float("nan")) -> None:
    """From now on whoever has this token among its own has activations that are not finite."""
    decoder = worker_of(engine).executor.decoder
    with torch.inference_mode():
        decoder.embedding = decoder.embedding.clone()
        decoder.embedding[token] = value


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams, mode: Any) -> list[RequestOutput]:
    """Terminal outputs in the order of the prompts, which differ in length, also of those that fail."""
    ends: list[RequestOutput] = []
    try:
        engine.generate(prompts, params, cache_mode=mode, on_output=lambda o: ends.append(o) if o.finished else None)
    except EngineError:
        assert any(output.error for output in ends)
    return [next(o for o in ends if o.prompt_tokens == len(prompt)) for prompt in prompts]


@pytest.mark.parametrize("params", [
    SamplingParams(max_new_tokens=16, steps=8, ignore_eos=True),
    SamplingParams(max_new_tokens=16, threshold=0.4, temperature=0.7, seed=3, ignore_eos=True),
    SamplingParams(max_new_tokens=16, factor=0.8, strategy="random", seed=3, ignore_eos=True),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["none", "bicache"])
@pytest.mark.parametrize("executor", [None, cuda_executor])
def test_a_request_with_nan_ends_with_an_error_and_its_batch_mates_do_not_notice(folder, executor, mode, params):
    with make_engine(folder, depth=0, executor=executor) as engine:
        expected = [output.token_ids for output in run(engine, GOOD, params, mode)]
    token = next(token for token in range(4, 60) if not any(token in ids for ids in (*GOOD, *expected)))
    with make_engine(folder, depth=0, max_steps_per_message=8, executor=executor) as engine:
        poison(engine, token)
        first, failed, *others = run(engine, [GOOD[0], bad_prompt(token), *GOOD[1:]], params, mode)
        assert [output.token_ids for output in (first, *others)] == expected
        assert failed.finish_reason == "error"
        assert isinstance(failed.error, EngineError)
        assert "the model's logits are not finite (NaN or infinity)" in failed.error.message
        assert failed.token_ids == ()
        stats = engine.core.parts.scheduler.stats()
        assert (stats.failed, stats.finished_length) == (1, len(GOOD))
        assert_nothing_lost(engine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("executor", [None, cuda_executor])
def test_activations_that_overflow_between_two_steps_of_a_message(folder, executor, value):
    """The token that the first step commits is what the second one can't bear."""
    params = SamplingParams(max_new_tokens=8, steps=8, ignore_eos=True)
    with make_engine(folder, max_steps_per_message=8, executor=executor) as engine:
        first = next(iter(engine.generate(tokens(12, 5), SamplingParams(max_new_tokens=8, steps=1)).token_ids))
        engine.flush_cache()
        poison(engine, first, value)
        with pytest.raises(EngineError, match="logits are not finite"):
            engine.generate([token for token in tokens(12, 5) if token != first], params)
        assert engine.core.parts.scheduler.stats().failed == 1
        assert_nothing_lost(engine)


@pytest.mark.parametrize("executor", [None, cuda_executor])
def test_what_failed_is_not_captured_and_scores_fail_alike(folder, executor):
    with make_engine(folder, executor=executor) as engine:
        bad = bad_prompt(62)
        plain = worker_of(engine).executor.decoder.embedding
        poison(engine, 62)
        for new in (8, 0):  # 0: nothing is decoded, and the prompt would be in the cache
            for mode in CACHE_MODES:
                with pytest.raises(EngineError, match="logits are not finite"):
                    engine.generate(bad, SamplingParams(max_new_tokens=new), cache_mode=mode)
        memory = engine.core.parts.scheduler.memory
        assert memory.tree.num_nodes in (0, 1)
        assert memory.lm_tree.num_nodes in (0, 1)
        with pytest.raises(EngineError, match="logits are not finite"):
            engine.score(bad, [tokens(3, 6), tokens(4, 7)], cache_mode="none")
        worker_of(engine).executor.decoder.embedding = plain
        assert engine.generate(bad, SamplingParams(max_new_tokens=8)).cached_tokens == 0
        assert_nothing_lost(engine)


def forbid(engine: Engine | LocalService, token: int) -> None:
    """From now on the model gives this token a logit of -inf."""
    executor = worker_of(engine).executor
    head = executor.runner.layers if hasattr(executor.runner, "layers") else executor.decoder
    plain = head.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found = plain(hidden).clone()
        found[:, token] = -torch.inf
        return found

    head.logits = logits


@pytest.mark.parametrize("executor", [None, cuda_executor])
@pytest.mark.parametrize("strategy", ["low_confidence", "margin", "entropy", "random"])
def test_a_logit_of_minus_infinity_makes_its_token_impossible(folder, executor, strategy):
    """No error, whatever the request adds to it."""
    params = SamplingParams(max_new_tokens=16, steps=8, strategy=strategy, temperature=0.5, seed=1, ignore_eos=True)
    with make_engine(folder, executor=executor) as engine:
        before = engine.generate(GOOD[0], params)
        token = before.token_ids[0]
        engine.flush_cache()
        forbid(engine, token)
        rules: dict[str, Any] = {"logit_bias": {token: 100}, "repetition_penalty": 1.5, "frequency_penalty": -2.0}
        after = engine.generate(GOOD[0], replace(params, **rules))
        assert after.finish_reason == "length"
        assert token not in after.token_ids
        scored = engine.score(GOOD[0], [[token], [*tokens(1, 6)]])
        assert scored.choices[0].total == -math.inf
        assert scored.best == 1
        assert_nothing_lost(engine)


async def test_over_http_it_is_a_500_in_words_and_counts(llada, caplog):
    service = LocalService(
        EngineConfig(model_path=str(llada), depth=4, layers_per_band=2, kv_cache_tokens=1024, page_size=4, device="cpu")
    )
    await service.start()
    try:
        poison(service, 62)
        app: FastAPI = create_app(service, ServerConfig(), "tiny")
        app.state.server.warm = True
        transport = httpx.ASGITransport(app)
        bad, good = bad_prompt(62), {"input_ids": GOOD[0], "max_new_tokens": 8, "steps": 1}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:30000", timeout=60) as client:
            for path, body in (
                ("/generate", {"input_ids": bad, "max_new_tokens": 8}),
                ("/generate", {"input_ids": bad, "max_new_tokens": 8, "stream": True}),
                ("/v1/completions", {"model": "tiny", "prompt": bad, "max_tokens": 8}),
                ("/score", {"input_ids": bad, "choices": [tokens(3, 6)]}),
            ):
                reply = await client.post(path, json=body)
                assert reply.status_code == 500, (path, reply.text)
                error = reply.json()["error"]
                assert error["type"] == "InternalServerError"
                assert "the model's logits are not finite (NaN or infinity)" in error["message"]
                assert (await client.post("/generate", json=good)).status_code == 200
            text = (await client.get("/metrics")).text
            forbid(service, 5)
            scored = (await client.post("/score", json={"input_ids": GOOD[0], "choices": [[5], [6]]})).json()
            assert [one["token_scores"][0] is None for one in scored["choices"]] == [True, False]
            assert scored["best"] == 1
    finally:
        await service.shutdown()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['shoal:num_failed_requests_total{model_name="tiny"}']) >= 4
    assert float(values['shoal:num_refused_requests_total{model_name="tiny"}']) == 0
    assert float(values['shoal:e2e_request_latency_seconds_count{model_name="tiny",outcome="error"}']) >= 4
    said = [record for record in caplog.records if "not finite" in record.getMessage()]
    assert len(said) >= 4
    assert not any(record.exc_info for record in caplog.records)
