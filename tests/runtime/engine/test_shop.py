"""A few whole answers of the bundled model: reuse keeps them, an autoregressive server's cache does not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.shop.task import chat, make_list, make_question

from ..tiny import assert_nothing_lost

PARAMS = SamplingParams(max_new_tokens=32)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("shop", device="cpu", depth=8, kv_cache_tokens=8192, check_invariants=True) as made:
        yield made
        assert_nothing_lost(made)


@pytest.fixture(scope="module")
def questions() -> list[tuple[list[dict[str, str]], str]]:
    """Ten questions about one list."""
    chooser = random.Random(8)
    prices = make_list(chooser, 44, held_out=True)
    asked = [make_question(chooser, prices) for _ in range(10)]
    return [(chat(prices, (), question.text), question.answer) for question in asked]


def run(engine: Engine, questions: list[tuple[list[dict[str, str]], str]], mode: CacheMode) -> list[RequestOutput]:
    return engine.generate([messages for messages, _ in questions], PARAMS, cache_mode=mode)


def test_answers_with_reuse_are_right_and_those_of_full_depth_reuse_are_not(engine, questions):
    right = {}
    modes: tuple[CacheMode, ...] = ("none", "dual", "bicache", "lm")
    for mode in modes:
        outputs = run(engine, questions, mode)
        right[mode] = sum(out.text.strip() == answer for out, (_, answer) in zip(outputs, questions, strict=True))
        hits = sum(output.cached_tokens > 100 for output in outputs)
        assert hits == (9 if mode in ("bicache", "lm") else 0)
        assert all(output.finish_reason == "stop" for output in outputs) or mode == "lm"
    assert min(right["none"], right["dual"], right["bicache"]) >= 9
    assert right["lm"] < right["bicache"]


def test_the_same_in_another_order_and_alone(engine, questions):
    together = run(engine, questions[:4], "dual")
    backwards = run(engine, questions[3::-1], "dual")
    alone = run(engine, questions[2:3], "dual")
    assert [o.token_ids for o in together] == [o.token_ids for o in backwards[::-1]]
    assert alone[0].token_ids == together[2].token_ids
