"""The second model: a Dream checkpoint that the engine runs, and a prefix reused to the depth it was trained for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.shop.task import KINDS, chat, make_list, make_question

FOLDER = Path(__file__).parents[2] / "out" / "shop-dream" / "model"
"""Where its training command puts it; the weights are not in the repository."""
PARAMS = SamplingParams(max_new_tokens=32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(not FOLDER.exists(), reason="shop-dream has not been trained here: see docs/shop-dream.md")
def test_answers_with_a_prefix_reused_to_depth_6():
    chooser = random.Random(5)
    prices = make_list(chooser, 30, held_out=True)
    asked = [make_question(chooser, prices, KINDS[i % 4]) for i in range(12)]
    prompts = [chat(prices, (), question.text) for question in asked]
    with Engine(str(FOLDER), device="cpu", depth=6, layers_per_band=2, check_invariants=True) as engine:
        assert engine.model_config.shift_logits
        assert engine.model_config.num_heads == 2 * engine.model_config.num_kv_heads
        reused = [*[engine.generate(prompts[0], PARAMS)], *engine.generate(prompts[1:], PARAMS)]
        exact = engine.generate(prompts, PARAMS, cache_mode="none")
    assert [output.depth for output in reused] == [0] + [6] * 11
    right = [sum(o.text == q.answer for o, q in zip(of, asked, strict=True)) for of in (exact, reused)]
    assert min(right) >= 11
