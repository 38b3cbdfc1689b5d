"""Requests whose logits the host reads after each forward on the GPU's path, run on the CPU with reference kernels."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import make_engine, tokens
from .cuda_path import cuda_executor

READ: list[dict[str, Any]] = [
    {"threshold": 0.4, "logprobs": 2},
    {"steps": 9, "logprobs": 0, "repetition_penalty": 1.4},
    {"threshold": 0.3, "regex": "[a-f]{3,20}[.]"},
    {"steps": 6, "choice": ["ab", "xyz"], "logprobs": 1},
    {"factor": 0.8, "regex": "(ab|c)*", "frequency_penalty": 0.5},
    {"threshold": 0.3, "regex": "[a-z]{2,9}", "temperature": 1.2, "seed": 4, "logprobs": 1},
    {"entropy_bound": 0.5},
    {"threshold": 0.6, "threshold_decay": 0.8, "logprobs": 1},
    {"threshold": 0.3, "kl_threshold": 0.05, "kl_history": 1},
    {"threshold": 0.5},
]


def cases(mode: str) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts and parameters of one batch; in mode `none` with a guided one."""
    prompts = [tokens(15, seed=1) + tokens(3 + i, seed=10 + i) for i in range(len(READ))]
    params = [SamplingParams(max_new_tokens=24, **options) for options in READ]
    if mode == "none":
        params[-1] = SamplingParams(max_new_tokens=24, steps=8, cfg_scale=1.0, logprobs=1)
    return prompts, params


def assert_same(ours: list[RequestOutput], theirs: list[RequestOutput]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.token_ids, one.nfe, one.finish_reason) == (other.token_ids, other.nfe, other.finish_reason)
        for mine, its in zip(one.logprobs, other.logprobs, strict=True):
            assert mine is not None
            assert its is not None
            assert (mine.token, mine.step, [t for t, _ in mine.top]) == (its.token, its.step, [t for t, _ in its.top])
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-4)


@pytest.mark.parametrize("mode", ["none", "prefix", "bicache"])
def test_texts_under_a_grammar_guidance_rules_and_log_probabilities_are_those_of_the_plain_worker(folder, mode):
    """In one batch, beside a request without any; the host reads the logits of those that have one."""
    prompts, params = cases(mode)
    outputs = []
    for options in ({}, {"executor": cuda_executor, "max_steps_per_message": 4}):
        with make_engine(folder, **options) as engine:
            outputs.append(engine.generate(prompts, params, cache_mode=mode))
            again = engine.generate(prompts[0], SamplingParams(max_new_tokens=24), cache_mode=mode)
            assert len(again.token_ids) > 0  # in a slot that a grammar had
    assert_same(outputs[1], outputs[0])
