"""A canvas that grows, and what block starts compute: against the float64 oracle, and against the whole canvas."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.sampling_params import SamplingParams

from ..oracle import Cache
from ..tiny import assert_nothing_lost, free_pages, make_engine, tokens, worker_of, write_profile
from ..worker.cuda_path import cuda_executor
from .test_oracle import GAP, clear_cases, compare
from .test_oracle import answer as oracle_answer

SCHEDULES: list[dict[str, Any]] = [
    {"window": 0}, {"window": 5}, {"settled": True}, {"window": 5, "settled": True}, {"settled": True, "every": 2},
]  # fmt: skip


def params_of(size: int, block: int, options: dict[str, Any], **more: Any) -> SamplingParams:
    """Sampling parameters for the oracle's names of the options."""
    return SamplingParams(
        max_new_tokens=size, block_length=block, canvas_window=options.get("window"),
        refresh_schedule="settled" if options.get("settled") else None, full_refresh_every=options.get("every"), **more,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["none", "prefix", "dual"])
@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_windows_and_schedules_are_the_oracles(folder, oracle, mode, options):
    if mode == "none" and "settled" in options:
        pytest.skip("none has no refreshes")
    with make_engine(folder) as engine:
        for prompt, expected in clear_cases(oracle, mode, 13, 28, 6, 1, threshold=0.5, **options):
            params = params_of(28, 6, options, threshold=0.5, ignore_eos=True)
            compare(engine.generate(prompt, params, cache_mode=mode), expected, oracle.num_layers)
        assert_nothing_lost(engine)


@pytest.mark.parametrize(("interval", "options"), [
    (None, SCHEDULES[0]), (None, SCHEDULES[3]), (1, SCHEDULES[3]), (4, SCHEDULES[1]), (4, SCHEDULES[3]),
    (None, SCHEDULES[4]),
], ids=str)  # fmt: skip
def test_bicache_with_windows_and_schedules_is_the_oracles(folder, oracle, tmp_path, options, interval):
    rows = [[0.2, 2], [0.45, 4]]
    path = write_profile(tmp_path / "profile.json", oracle.num_layers, rows, interval)
    base = tokens(22, 1)
    prompts = [base, base + tokens(9, 2), base[:10] + tokens(14, 3)]
    compared = 0
    with make_engine(folder, depth_profile=path) as engine:
        cache = Cache(4, oracle.num_layers, rows, interval)
        for prompt in prompts:
            expected = oracle_answer(oracle, prompt, 28, 6, "bicache", cache, threshold=0.5, **options)
            params = params_of(28, 6, options, threshold=0.5, ignore_eos=True)
            output = engine.generate(prompt, params)
            if expected.gap > GAP:
                compare(output, expected, oracle.num_layers)
                compared += 1
        assert_nothing_lost(engine)
    assert compared


@pytest.mark.parametrize("mode", ["none", "prefix", "lm", "bicache"])
def test_a_window_as_long_as_the_canvas_is_the_whole_canvas(folder, mode):
    outputs = []
    for window in (None, 24, 10_000):
        with make_engine(folder) as engine:
            params = SamplingParams(max_new_tokens=24, threshold=0.5, canvas_window=window)
            outputs.append(engine.generate([tokens(20, s) for s in range(3)], params, cache_mode=mode))
    assert len({tuple((o.token_ids, o.nfe, o.computed_token_layers) for o in some) for some in outputs}) == 1


@pytest.mark.parametrize("mode", ["dual", "bicache"])
def test_a_longer_limit_costs_nothing(llada, mode):
    """Texts that end in their first block take the same forwards and token-layers whatever their limit."""
    stopped = 0
    with make_engine(llada, canvas_window=8) as engine:
        for seed in range(60):
            outputs = []
            for size in (16, 128):
                params = SamplingParams(max_new_tokens=size, threshold=0.4)
                outputs.append(engine.generate(tokens(24, seed), params, cache_mode=mode))
                engine.flush_cache()
            short, long = outputs
            if short.finish_reason == "stop" and short.completion_tokens < 8:
                stopped += 1
                assert long.token_ids == short.token_ids
                assert (long.nfe, long.computed_token_layers) == (short.nfe, short.computed_token_layers)
            if stopped == 2:
                return
    raise AssertionError("too few texts end early")


def test_pages_are_taken_block_by_block(folder):
    with make_engine(folder, kv_cache_tokens=1024) as engine:
        worker = worker_of(engine)
        forward, taken = worker.forward, []

        def watched(message):
            taken.append(engine.core.parts.scheduler.memory.kv.num_pages - free_pages(engine)[0])
            return forward(message)

        worker.forward = watched
        params = SamplingParams(max_new_tokens=64, block_length=8, steps=16, canvas_window=8, ignore_eos=True)
        engine.generate(tokens(16), params, cache_mode="dual")
        bands = engine.core.parts.scheduler.memory.config.num_bands
        assert taken[0] == bands * (16 + 8 + 8) // 4
        assert taken[-1] == bands * (16 + 64) // 4
        assert sorted(taken) == taken
        assert len(set(taken)) == 7


def test_templates_need_their_whole_canvas(folder):
    template = [7] + [-1] * 10 + [9, 10] + [-1] * 11
    with make_engine(folder) as plain, make_engine(folder, canvas_window=0) as windowed:
        params = SamplingParams(threshold=0.5)
        for mode in ("none", "dual", "bicache"):
            expected = plain.generate(tokens(20), params, canvas=template, cache_mode=mode)
            output = windowed.generate(tokens(20), params, canvas=template, cache_mode=mode)
            assert (output.token_ids, output.nfe) == (expected.token_ids, expected.nfe)
        with pytest.raises(InvalidRequestError, match="canvas_window is 8"):
            windowed.generate(tokens(20), SamplingParams(canvas_window=8), canvas=template)


def test_a_schedule_in_a_mode_without_refreshes_is_refused(folder):
    with make_engine(folder, refresh_schedule="settled") as engine:
        assert engine.generate(tokens(9), SamplingParams(max_new_tokens=8), cache_mode="none").nfe
        with pytest.raises(InvalidRequestError, match="refresh_schedule"):
            engine.generate(tokens(9), SamplingParams(refresh_schedule="settled"), cache_mode="none")


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_the_gpu_path_grows_too(folder, tmp_path, mode):
    outputs = []
    for cuda in (False, True):
        options = {"executor": cuda_executor, "max_steps_per_message": 4} if cuda else {"max_steps_per_message": 1}
        with make_engine(folder, canvas_window=5, **options) as engine:
            schedule = None if mode == "none" else "settled"
            params = [SamplingParams(max_new_tokens=n, threshold=0.5, refresh_schedule=schedule) for n in (8, 40, 61)]
            outputs.append(engine.generate([tokens(21, s) for s in range(3)], params, cache_mode=mode))
            engine.check()
    for plain, fused in zip(*outputs, strict=True):
        assert fused.token_ids == plain.token_ids
        assert (fused.nfe, fused.computed_token_layers) == (plain.nfe, plain.computed_token_layers)
