"""What is too long is refused with advice that can be followed: what it names fits, and one token more does not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.errors import InvalidRequestError, PoolTooSmallError, ShoalError
from shoal.runtime.request.field_names import FieldNames
from shoal.runtime.request.length_limit import check_length
from shoal.runtime.request.sampling_params import SamplingParams, fitting_steps

from ..tiny import make_engine, tokens

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


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 1, 4, 32]), st.sampled_from(["max_tokens", "canvas"]))
def test_the_advice_is_the_most_that_fits(prompt, canvas, model, pool, block, length):
    block = 1 if length == "canvas" else block
    canvas = -(-canvas // block) * block
    limits: dict[str, Any] = {"model": model, "pool": pool, "block": block, "names": FieldNames("text", length)}
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
            assert min(model, pool) <= block
            return
        assert block <= room < canvas
        assert refusal(prompt, room, **limits) is None
        assert refusal(prompt, room + block, **limits) is not None
    else:
        both = re.search(r", to at most (\d+)(?:, and send (?:a )?\w+ of at most (\d+))?$", str(error))
        assert both is not None
        fits, kept = int(both[1]), int(both[2] or canvas)
        assert error.field == "text"
        assert 1 <= fits < prompt
        assert f"by {prompt - fits} token" in str(error)
        assert refusal(fits, kept, **limits) is None
        assert refusal(fits + 1, kept, **limits) is not None
        assert refusal(prompt, block, **limits) is not None


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
def test_default_steps_fit_every_canvas(steps, length, block):
    fitted = fitting_steps(steps, length, block)
    SamplingParams(max_new_tokens=length, steps=fitted).check_for(block)
    blocks = -(-length // block)
    assert fitted >= min(steps, length // blocks * blocks)
    assert fitted - blocks < max(steps, 1)
