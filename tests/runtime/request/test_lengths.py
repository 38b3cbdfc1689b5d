"""What is too long is refused with advice that can be followed: what it names fits, and one token more does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.engine.inputs import inputs_of
from shoal.runtime.errors import InvalidRequestError, PoolTooSmallError, ShoalError
from shoal.runtime.request.field_names import FieldNames
from shoal.runtime.request.length_limit import check_length
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import make_engine, tokens
from ..worker.cuda_path import cuda_executor

SIZES = st.integers(1, 80)


def refusal(prompt: int, canvas: int, **limits: Any) -> ShoalError | None:
    try:
        check_length(prompt, canvas, **limits)
    except ShoalError as error:
        return error
    return None


def number_in(error: ShoalError, words: str) -> int | None:
    found = re.search(words + r" at most (\d+)$", str(error))
    return None if found is None else int(found[1])


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(["max_tokens", "canvas"]))
def test_the_advice_is_the_most_that_fits(prompt, canvas, model, pool, length):
    limits: dict[str, Any] = {"model": model, "pool": pool, "names": FieldNames("text", length)}
    error = refusal(prompt, canvas, **limits)
    assert (error is None) == (prompt + canvas <= min(model, pool))
    if error is None:
        return
    assert isinstance(error, InvalidRequestError if prompt + canvas > model else PoolTooSmallError)
    assert (error.value, error.limit) == (prompt + canvas, min(model, pool))
    if error.field == length:
        room = number_in(error, f"send {'a ' * (length == 'canvas')}{length} of")
        if room is None:
            assert str(error).endswith(f"nothing fits with them: shorten {length}")
            assert min(model, pool) <= 1
            return
        assert 1 <= room < canvas
        assert refusal(prompt, room, **limits) is None
        assert refusal(prompt, room + 1, **limits) is not None
    else:
        both = re.search(r", to at most (\d+)(?:, and send (?:a )?\w+ of at most (\d+))?$", str(error))
        assert both is not None
        fits, kept = int(both[1]), int(both[2] or canvas)
        assert error.field == "text"
        assert 1 <= fits < prompt
        assert f"by {prompt - fits} token" in str(error)
        assert refusal(fits, kept, **limits) is None
        assert refusal(fits + 1, kept, **limits) is not None
        assert refusal(prompt, 1, **limits) is not None


@given(SIZES, SIZES, SIZES, SIZES)
def test_prompts_that_are_only_computed_and_scores_are_told_how_long_the_prompt_may_be(prompt, other, model, pool):
    for canvas, masks, length in ((0, other, "max_tokens"), (other, 0, "choices")):
        limits: dict[str, Any] = {"model": model, "pool": pool, "masks": masks, "names": FieldNames("prompt", length)}
        error = refusal(prompt, canvas, **limits)
        assert (error is None) == (prompt + other <= min(model, pool))
        if error is not None and (fits := number_in(error, "to")) is not None:
            assert refusal(fits, canvas, **limits) is None
            assert refusal(fits + 1, canvas, **limits) is not None


def test_pins_and_scores_name_what_was_given(llada):
    with make_engine(llada) as engine:
        with pytest.raises(InvalidRequestError, match=r"prompt by 8 tokens, to at most 152$") as caught:
            engine.pin(tokens(160))
        assert (caught.value.field, engine.pin(tokens(152))) == ("prompt", 152)
        with pytest.raises(InvalidRequestError, match=r"longest of choices takes a canvas of 16.*to at most 144$"):
            engine.score(tokens(150), [[5] * 9, [6]])
        assert engine.score(tokens(144), [[5] * 9, [6]]).nfe > 0
        wrongs: list[Any] = [[], [3.5], [10**9]]
        for wrong in wrongs:
            with pytest.raises(InvalidRequestError) as caught:
                engine.pin(wrong)
            assert caught.value.field == "prompt"
            assert str(caught.value).startswith("prompt ")


@given(SIZES, SIZES, SIZES)
def test_steps_are_spread_over_the_blocks(steps: int, length: int, block: int) -> None:
    params = SamplingParams(max_new_tokens=length, steps=steps)
    blocks = -(-length // block)
    quotas = [params.steps_of_block(index, blocks) for index in range(blocks)]
    assert None not in quotas
    each = [quota or 0 for quota in quotas]
    assert sum(each) == max(steps, blocks)
    assert each == sorted(each, reverse=True)
    assert each[0] - each[-1] <= 1


@pytest.mark.parametrize(("length", "block", "steps"), [(20, 8, 7), (20, 8, 100), (20, 8, 1), (5, 8, 3), (17, 5, 6)])
@pytest.mark.parametrize("path", ["cpu", "cuda worker"])
def test_any_length_with_any_blocks_and_steps(llada, length: int, block: int, steps: int, path: str) -> None:
    params = SamplingParams(max_new_tokens=length, block_length=block, steps=steps, ignore_eos=True)
    with make_engine(llada, executor=None if path == "cpu" else cuda_executor) as engine:
        output = engine.generate(tokens(9), params)
    assert (output.completion_tokens, output.finish_reason) == (length, "length")
    sizes = [min(block, length - at) for at in range(0, length, block)]
    quotas = [params.steps_of_block(index, len(sizes)) or 0 for index in range(len(sizes))]
    assert output.nfe == sum(map(min, sizes, quotas))


def test_a_default_length_is_what_fits(llada) -> None:
    with make_engine(llada) as engine:  # the model takes 160 tokens
        for prompt, room in ((tokens(9), 151), (tokens(159), 1)):
            assert engine.generate(prompt).canvas_tokens <= room
            (spec,) = engine.core.intake.specs(inputs_of([prompt], None, engine.default_sampling_params))
            assert spec.sampling.max_new_tokens == room
        with pytest.raises(InvalidRequestError, match=r"shorten prompts\[0\] by 1 token, to at most 159$"):
            engine.generate(tokens(160))
