"""Reuse stops a margin before the prompts part."""

from __future__ import annotations

import pytest

from shoal.runtime.errors import ConfigError
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import make_engine

PARAMS = SamplingParams(max_new_tokens=8)
SHARED = [5 + i % 40 for i in range(26)]


@pytest.mark.parametrize(("margin", "cached"), [(0, 24), (1, 20), (4, 20), (5, 16), (24, 0), (100, 0)])
def test_margin_is_left_out_of_what_is_reused(llada, margin, cached):
    """26 tokens are shared: six pages of four."""
    with make_engine(llada, reuse_margin=margin) as engine:
        assert engine.generate([*SHARED, 7, 8, 9], PARAMS).cached_tokens == 0
        assert engine.generate([*SHARED, 10, 11, 12], PARAMS).cached_tokens == cached
        engine.check()


@pytest.mark.parametrize(("warmed", "claimed", "cached"), [(26, 26, 24), (26, 24, 24), (26, 0, 16), (14, 14, 16)])
def test_what_was_warmed_has_no_margin_where_all_of_it_is_there(folder, warmed, claimed, cached):
    """Margin 8; another prompt shares all 26 tokens, six pages. What is claimed and not there is no reason to go on."""
    prompt = [*SHARED, 7, 8, 9]
    with make_engine(folder, reuse_margin=8) as engine:
        engine.generate(SHARED[:warmed], SamplingParams(max_new_tokens=0))
        engine.generate([*SHARED, 10, 11, 12], PARAMS)
        assert engine.generate(prompt, PARAMS, shared_prefix=claimed).cached_tokens == cached
        assert engine.generate(prompt[:24] + [50, 51] * 4, PARAMS, shared_prefix=32).cached_tokens == 16
        engine.check()


def test_mode_lm_has_no_margin(llada):
    with make_engine(llada, reuse_margin=100, cache_mode="lm") as engine:
        engine.generate(SHARED, PARAMS)
        assert engine.generate([*SHARED, 10, 11, 12], PARAMS).cached_tokens == 24


def test_negative_margin_is_refused(llada):
    with pytest.raises(ConfigError, match="reuse_margin") as caught:
        make_engine(llada, reuse_margin=-1)
    assert caught.value.field == "reuse_margin"
