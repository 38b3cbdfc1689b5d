"""`refresh_interval=1`: a request reuses nothing of its own first forward, so a miss is exactly mode `dual`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import CONFIGS, assert_nothing_lost, make_engine, tokens, worker_of
from ..worker.cuda_path import cuda_executor

PARAMS = SamplingParams(max_new_tokens=24, block_length=8, threshold=0.5, ignore_eos=True)
LAYERS = {"llada": CONFIGS["llada"]["n_layers"], "dream": CONFIGS["dream"]["num_hidden_layers"]}


def cold(engine: Engine, prompts: list[list[int]]) -> list[Any]:
    """In mode `bicache`, each in front of an empty cache."""
    outputs = []
    for prompt in prompts:
        engine.flush_cache()
        outputs.append(engine.generate(prompt, PARAMS))
    assert all(output.cached_tokens == 0 for output in outputs)
    return outputs


@pytest.mark.parametrize(("cuda", "depth"), [(False, 4), (False, "all"), (True, 4)])
def test_on_a_miss_all_answers_are_those_of_dual(folder, name, cuda, depth):
    """Twenty of twenty, for the same work; with a refresh once per request some differ."""
    prompts = [tokens(21 + seed % 5, seed) for seed in range(20)]
    options = {"depth": LAYERS[name] if depth == "all" else depth, "check_invariants": False}
    with make_engine(folder, executor=cuda_executor if cuda else None, refresh_interval=1, **options) as engine:
        dual = [engine.generate(prompt, PARAMS, cache_mode="dual") for prompt in prompts]
        for output, expected in zip(cold(engine, prompts), dual, strict=True):
            assert output.token_ids == expected.token_ids
            assert (output.nfe, output.computed_token_layers) == (expected.nfe, expected.computed_token_layers)
            assert output.prefix_refreshes == 3
        assert_nothing_lost(engine)
    if not cuda:
        with make_engine(folder, refresh_interval=0, **options) as engine:
            once = cold(engine, prompts)
        assert sum(output.token_ids == expected.token_ids for output, expected in zip(once, dual, strict=True)) < 20


def test_what_is_captured_is_the_first_forward(folder):
    """The tree's copies hold what a request without refreshes leaves there, on a miss and behind a hit."""
    prompt, other = tokens(22, 1), tokens(22, 1)[:13] + tokens(40, 2)
    held: list[list[Any]] = []
    for interval in (0, 1):
        with make_engine(folder, refresh_interval=interval) as engine:
            outputs = [engine.generate(one, PARAMS) for one in (prompt, other)]
            assert [output.cached_tokens for output in outputs] == [0, 12]
            memory, runner = engine.core.parts.scheduler.memory, worker_of(engine).executor.runner
            held.append([])
            for one in (prompt, other):
                match = memory.tree.match(np.array(one, np.int32), engine._namespace(""), touch=False)
                held[-1] += [match.num_tokens, runner.kv.data[match.kv_pages.astype(np.int64)].numpy()]
    for once, always in zip(*held, strict=True):
        np.testing.assert_array_equal(once, always)


def test_the_next_request_finds_it(llada):
    with make_engine(llada, refresh_interval=1) as engine:
        first, second = (engine.generate(tokens(24, 1), PARAMS) for _ in range(2))
        assert (first.cached_tokens, second.cached_tokens, second.depth) == (0, 24, 4)
        # Three block starts and the steps between; what was found stays, and is resumed at its depth each time.
        assert second.prefix_refreshes == 3
        assert first.computed_token_layers - second.computed_token_layers == 3 * 24 * 4 + 6 * 8 * (
            first.nfe - second.nfe
        )
        assert_nothing_lost(engine)


def test_without_room_for_copies_a_request_runs_and_shares_nothing(llada):
    """24 + 24 tokens fill a pool of 12 pages in each of three bands."""
    with make_engine(llada, refresh_interval=1, kv_cache_tokens=48) as engine:
        outputs = [engine.generate(tokens(24, 1), PARAMS) for _ in range(2)]
        assert [output.cached_tokens for output in outputs] == [0, 0]
        assert outputs[0].token_ids == engine.generate(tokens(24, 1), PARAMS, cache_mode="dual").token_ids
        assert_nothing_lost(engine)


def test_an_abort_at_any_step_leaves_nothing(llada):
    with make_engine(llada, refresh_interval=1) as engine:
        for steps in range(6):
            stream = engine.stream(tokens(24, steps), PARAMS)
            for _ in range(steps):
                next(stream, None)
            stream.close()
        assert_nothing_lost(engine)
