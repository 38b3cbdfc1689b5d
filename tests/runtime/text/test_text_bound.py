"""Texts that can't fit a model are refused by a part of them; nothing that fits is."""

from __future__ import annotations

import pytest

from shoal.runtime.errors import InvalidRequestError, shorten
from shoal.runtime.request.parameter_checks import MAX_STOP_TOKEN_IDS
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.text.bound import CHARACTERS_PER_TOKEN, check_may_fit


def test_a_text_that_may_fit_is_never_refused_and_one_that_cannot_is_not_encoded_to_its_end():
    """Words of 9 characters in a model of 100 tokens: 100 fit; so do ten times as many if all are white space that a
    special token swallows."""
    encoded = 0

    def words(text: str) -> list[str]:
        nonlocal encoded
        encoded += len(text)
        return text.split()

    check_may_fit("abcdefgh " * 100, words, 100)
    check_may_fit("x " * (CHARACTERS_PER_TOKEN * 50), words, 100)
    assert encoded == 900  # the second is not long enough to be looked at
    with pytest.raises(InvalidRequestError) as caught:
        check_may_fit("x " * 4_000_000, words, 100)
    assert caught.value.field == "prompts"
    assert encoded < 20_000
    check_may_fit(" " * 10**6, list, 100, spaces_count=False)
    with pytest.raises(InvalidRequestError):
        check_may_fit(" " * 10**6, list, 100)


def test_more_stop_tokens_than_may_be_are_not_looked_at():
    SamplingParams(stop_token_ids=range(MAX_STOP_TOKEN_IDS))
    with pytest.raises(InvalidRequestError, match=r"stop_token_ids has 1000000 entries.*at most 1024") as caught:
        SamplingParams(stop_token_ids=range(1_000_000))
    assert caught.value.field == "stop_token_ids"


@pytest.mark.parametrize("value", ["ab" * 10**6, [7] * 10**6, (1, "x") * 10**6])
def test_long_values_are_shortened_without_being_written_out(value):
    assert len(shorten(value)) <= 80
    assert shorten(value)[:-1] == repr(value[:200])[:79]
