"""Forwards keep to the token budget, and what found no room takes its turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import (
    assert_nothing_lost,
    make_engine,
    tokens,
    worker_of,
)


def params(size: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=size, ignore_eos=True, **{"threshold": 0.5, **options})


def test_a_refresh_beyond_the_token_budget_waits_for_its_turn(llada):
    """Eight requests come to their second block at once; a refresh forward holds two of them at most."""
    prompts = [tokens(20, seed) for seed in range(8)]
    options = params(24, steps=6, threshold=None)
    with make_engine(llada) as engine:
        expected = [output.token_ids for output in engine.generate(prompts, options, cache_mode="dual")]
    with make_engine(llada, max_refresh_tokens=90) as engine:
        worker = worker_of(engine)
        plain, sizes = worker.forward, []

        def forward(message):
            sizes.append(sum(item.stop - item.join for item in message.items if item.start < item.block_start))
            return plain(message)

        worker.forward = forward
        outputs = engine.generate(prompts, options, cache_mode="dual")
        assert [output.token_ids for output in outputs] == expected
        refreshes = [size for size in sizes if size]
        assert max(refreshes) == 2 * 44
        assert len(refreshes) == 8 * 3 / 2
        assert_nothing_lost(engine)


@pytest.mark.parametrize("mode", ["none", "prefix"])
def test_block_steps_of_whole_sequences_keep_to_the_token_budget_and_take_turns(llada, mode):
    """Beside a request of another mode, whose steps compute a block and wait for nobody."""
    prompts = [tokens(12 + 4 * seed, seed) for seed in range(5)]
    options = params(24, steps=9, threshold=None)
    answers = []
    for budget in (8192, 70):
        with make_engine(llada, max_refresh_tokens=budget) as engine, ThreadPoolExecutor(1) as pool:
            worker = worker_of(engine)
            wide: list[list[int]] = []
            plain = worker.forward

            def forward(message, plain=plain, wide=wide):
                sizes = [item.stop - item.start for item in message.items]
                wide.append([size for size in sizes if size > 8])
                return plain(message)

            worker.forward = forward
            other = pool.submit(engine.generate, prompts[:1], options, cache_mode="dual")
            outputs = engine.generate(prompts[1:], options, cache_mode=mode) + other.result()
            answers.append([(output.token_ids, output.nfe) for output in outputs])
            assert_nothing_lost(engine)
            assert (max(sum(sizes) for sizes in wide) > 70) == (budget > 70)
    assert answers[0] == answers[1]


def test_a_request_that_is_put_off_counts_one_use_of_what_it_reuses(llada):
    """Six requests find the same prefix; a forward has room for two."""
    shared = tokens(32, 1)
    with make_engine(llada, max_refresh_tokens=150, depth=2) as engine:
        engine.generate([shared + tokens(10, 2)], params(8), cache_mode="bicache")
        outputs = engine.generate([shared + tokens(10, 3 + n) for n in range(6)], params(8), cache_mode="bicache")
        assert all(output.cached_tokens for output in outputs)
        tree = engine.core.parts.scheduler.memory.tree
        first = next(node for node in tree.nodes() if node.parent is not None and node.parent.parent is None)
        assert sum(first.hits) == 6


def test_passes_over_finished_sequences_keep_to_the_token_budget(llada):
    """Mode `lm`: six requests of 36 tokens end at once, and are captured two at a time."""
    with make_engine(llada, max_refresh_tokens=90) as engine:
        scheduler, worker = engine.core.parts.scheduler, worker_of(engine)
        plain, sizes = worker.forward, []

        def forward(message):
            planned = scheduler._in_flight
            assert planned is not None
            if planned.finals:
                sizes.append(sum(item.stop - item.join for item in message.items))
            return plain(message)

        worker.forward = forward
        prompts = [tokens(20, seed) for seed in range(6)]
        outputs = engine.generate(prompts, params(16, steps=4, threshold=None), cache_mode="lm")
        assert [output.completion_tokens for output in outputs] == [16] * 6
        assert sizes == [72, 72, 72]
        longer = [[*prompt, *output.token_ids, 5] for prompt, output in zip(prompts, outputs, strict=True)]
        again = engine.generate(longer, params(8), cache_mode="lm")
        assert [output.cached_tokens for output in again] == [36] * 6
        assert_nothing_lost(engine)
