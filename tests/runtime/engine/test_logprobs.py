"""Log-probabilities of committed tokens, against the model in float64 on the canvas of the step that they name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.output import RequestOutput, TokenLogprob
from shoal.runtime.request.parameter_checks import MAX_LOGPROBS
from shoal.runtime.request.sampling_params import SamplingParams

from ..oracle import Session
from ..tiny import MASK, by_hand, make_engine, open_requests, run_preempted, tokens


def given(output: RequestOutput) -> list[TokenLogprob]:
    """Of tokens that all have one."""
    found = [one for one in output.logprobs if one is not None]
    assert len(found) == len(output.token_ids)
    return found


def at_step(oracle, prompt, length, output, step):
    """Rows of log-probabilities of the canvas before forward `step`, by position."""
    canvas = [one.token if one.step < step else oracle.mask for one in given(output)]
    whole = [*prompt, *canvas, *[oracle.mask] * (length - len(canvas))]
    session = Session(oracle, len(whole))
    session.low = 0
    rows = oracle.probabilities(session.forward(whole, 0, len(whole), len(whole))).log()
    return rows[len(prompt) - oracle.shift : len(whole) - oracle.shift]


@pytest.mark.parametrize("params", [
    {"threshold": 0.5}, {"steps": 5, "temperature": 0.9, "seed": 3, "top_k": 20, "repetition_penalty": 1.3},
], ids=["greedy", "drawn"])  # fmt: skip
def test_each_is_the_model_s_at_the_step_that_committed_the_token(folder, oracle, params):
    """Whatever changes the distribution that tokens are drawn from; one block, so that all masks are there."""
    prompt = tokens(11, 5)
    with make_engine(folder) as engine:
        chosen = SamplingParams(max_new_tokens=16, block_length=16, ignore_eos=True, logprobs=3, **params)
        output = engine.generate(prompt, chosen, cache_mode="none")
    assert [one.token for one in given(output)] == list(output.token_ids)
    steps = {one.step for one in given(output)}
    assert len(steps) > 1
    assert steps <= set(range(1, output.nfe + 1))
    for step in steps:
        rows = at_step(oracle, prompt, 16, output, step)
        for at, one in enumerate(given(output)):
            if one.step == step:
                assert one.logprob == pytest.approx(rows[at, one.token].item(), abs=2e-4)
                best = rows[at].topk(3)
                assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=2e-4)
                assert one.text == engine_text(one.token)


def engine_text(token: int) -> str:
    words = ["<unk>", "<pad>", "<bos>", "<eos>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:"]
    return words[token] if token < len(words) else f"<s{token}>" if token < MASK else ""  # behind: no token's


def test_all_cache_modes_and_batches_give_them_and_none_are_given_unasked(llada):
    prompts = [tokens(9, 1), tokens(9, 2), tokens(20, 3)]
    params = SamplingParams(max_new_tokens=24, threshold=0.5, logprobs=2)
    with make_engine(llada) as engine:
        for mode in ("none", "prefix", "dual", "lm", "bicache"):
            engine.flush_cache()
            together = engine.generate(prompts, params, cache_mode=mode)
            for prompt, output in zip(prompts, together, strict=True):
                engine.flush_cache()
                assert engine.generate(prompt, params, cache_mode=mode).logprobs == output.logprobs
                assert len(output.logprobs) == len(output.token_ids) > 0
                assert max(one.step for one in given(output)) <= output.nfe
        assert engine.generate(prompts[0], SamplingParams(max_new_tokens=24)).logprobs == ()


def test_those_of_a_request_that_was_preempted_are_those_of_one_that_was_not(llada):
    params = SamplingParams(max_new_tokens=24, threshold=0.5, logprobs=1, ignore_eos=True)
    with make_engine(llada) as engine:
        whole = engine.generate(tokens(9, 1), params, cache_mode="none")
        scheduler = by_hand(engine)
        (request,) = open_requests(engine, [tokens(9, 1)], params, "none")
        run_preempted(scheduler, request)
        output = request.output()
    assert output.preemptions == 1
    assert output.token_ids == whole.token_ids
    assert [one.logprob for one in given(output)] == pytest.approx([one.logprob for one in given(whole)], abs=1e-6)
    assert output.nfe >= max(one.step for one in given(output))


def test_fixed_tokens_of_a_template_have_none(llada):
    with make_engine(llada) as engine:
        canvas = [-1, -1, 10, 11, -1, -1, -1, -1]
        output = engine.generate(tokens(9, 1), SamplingParams(logprobs=0, ignore_eos=True), canvas=canvas)
    assert [one is None for one in output.logprobs] == [False, False, True, True, False, False, False, False]
    assert [one.token for one in output.logprobs if one] == [*output.token_ids[:2], *output.token_ids[4:]]
    assert all(one.top == () and -math.inf < one.logprob <= 0 for one in output.logprobs if one)


def test_more_than_20_are_refused():
    wrongs: list[Any] = [21, -1, True, 1.5]
    for wrong in wrongs:
        with pytest.raises(InvalidRequestError, match=f"logprobs is {wrong}.* at least 0 and at most {MAX_LOGPROBS}"):
            SamplingParams(logprobs=wrong)
