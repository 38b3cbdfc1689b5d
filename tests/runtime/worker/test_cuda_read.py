"""Requests whose logits the host reads after each forward on the GPU's path, run on the CPU with reference kernels."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import make_engine, tokens
from .test_cuda_worker import on_cuda_path

READ: list[dict[str, Any]] = [
    {"threshold": 0.4, "logprobs": 2},
    {"steps": 9, "logprobs": 0, "repetition_penalty": 1.4},
    {"threshold": 0.3, "regex": "[a-f]{3,20}[.]"},
    {"steps": 6, "choice": ["ab", "xyz"], "logprobs": 1},
    {"factor": 0.8, "regex": "(ab|c)*", "frequency_penalty": 0.5},
    {"threshold": 0.3, "regex": "[a-z]{2,9}", "temperature": 1.2, "seed": 4, "logprobs": 1},
    {"threshold": 0.5},
]


@pytest.mark.parametrize("mode", ["none", "prefix", "bicache"])
def test_texts_under_a_grammar_guidance_and_log_probabilities_are_those_of_the_plain_worker(folder, mode):
    """In one batch, beside a request without either; the host reads the logits of those that have one."""
    prompts = [tokens(15, seed=1) + tokens(3 + i, seed=10 + i) for i in range(len(READ))]
    params = [SamplingParams(max_new_tokens=24, **options) for options in READ]
    if mode == "none":
        params[-1] = SamplingParams(max_new_tokens=24, steps=8, cfg_scale=1.0, logprobs=1)
    outputs = []
    for cuda in (False, True):
        with make_engine(folder, max_steps_per_message=4 if cuda else 1) as engine:
            if cuda:
                on_cuda_path(engine)
            outputs.append(engine.generate(prompts, params, cache_mode=mode))
            again = engine.generate(prompts[0], SamplingParams(max_new_tokens=24), cache_mode=mode)
            assert len(again.token_ids) > 0  # in a slot that a grammar had
    for plain, fused in zip(*outputs, strict=True):
        assert (fused.token_ids, fused.nfe, fused.finish_reason) == (plain.token_ids, plain.nfe, plain.finish_reason)
        for ours, theirs in zip(fused.logprobs, plain.logprobs, strict=True):
            assert (ours.token, ours.step, [t for t, _ in ours.top]) == (
                theirs.token, theirs.step, [t for t, _ in theirs.top],
            )  # fmt: skip
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
