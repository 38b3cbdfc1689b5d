"""Every cache mode, token for token, against the float64 oracle of `oracle.py`.

Decisions that are too close to call in fp32 (a gap below 1e-4) would make a test depend on the CPU: such prompts are
passed over, and the tests say how many must remain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..oracle import Answer, Cache, Dense, answer
from ..tiny import MASK, assert_nothing_lost, make_engine, tokens, write_profile

GAP = 1e-4
RULES: list[dict[str, Any]] = [{"threshold": 0.5}, {"threshold": 0.8}, {"factor": 1.0}, {"factor": 2.5}, {"steps": 12}]


def compare(output: RequestOutput, expected: Answer, layers: int) -> None:
    assert list(output.token_ids) == expected.tokens
    assert output.nfe == expected.nfe
    assert output.computed_token_layers == expected.token_layers
    assert (output.cached_tokens, output.depth) == (expected.cut, expected.depth)
    assert output.reused_token_layers == expected.cut * expected.depth
    assert output.prefix_refreshes == expected.prefix_refreshes
    assert output.canvas_tokens == sum(token is not None for token in expected.canvas)
    assert output.finish_reason == ("stop" if expected.stopped else "length")


def clear_cases(
    oracle: Dense, mode: str, length: int, size: int, block: int, wanted: int, **rule: Any
) -> Iterator[tuple[list[int], Answer]]:
    """Prompts that no fp32 rounding can decide otherwise, with their answers."""
    found = 0
    for seed in range(100):
        prompt = tokens(length, seed)
        expected = answer(oracle, prompt, size, block, mode, **rule)
        if expected.gap > GAP:
            yield prompt, expected
            found += 1
            if found == wanted:
                return
    raise AssertionError("too few clear cases")


@pytest.fixture
def engine(folder) -> Iterator[Engine]:
    with make_engine(folder) as made:
        yield made
        assert_nothing_lost(made)


@pytest.mark.parametrize("strategy", ["low_confidence", "margin", "entropy"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, *rule.items())))
def test_none_is_the_plain_decoder(engine, oracle, rule, strategy):
    """Three blocks of 6 behind prompts that fill no whole page."""
    for prompt, expected in clear_cases(oracle, "none", 11, 18, 6, 2, strategy=strategy, **rule):
        params = SamplingParams(max_new_tokens=18, block_length=6, strategy=strategy, ignore_eos=True, **rule)
        compare(engine.generate(prompt, params, cache_mode="none"), expected, oracle.num_layers)


@pytest.mark.parametrize("mode", ["prefix", "dual"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, *rule.items())))
def test_prefix_and_dual_keep_the_stale_kvs_that_fast_dllm_keeps(engine, oracle, rule, mode):
    for length, prompt_seeds in ((1, 1), (8, 1), (13, 2)):
        for prompt, expected in clear_cases(oracle, mode, length, 18, 6, prompt_seeds, **rule):
            params = SamplingParams(max_new_tokens=18, block_length=6, ignore_eos=True, **rule)
            compare(engine.generate(prompt, params, cache_mode=mode), expected, oracle.num_layers)


def test_the_modes_differ_and_the_rules_differ(engine, oracle):
    """Else the comparisons above would show less than they seem to."""
    different = 0
    for seed in range(6):
        answers = {m: answer(oracle, tokens(13, seed), 18, 6, m, threshold=0.5) for m in ("none", "prefix", "dual")}
        different += len({tuple(a.tokens) for a in answers.values()}) == 3
    assert different >= 2
    assert len({a.token_layers for a in answers.values()}) == 3
    assert 3 < answers["dual"].nfe < 18
    passes = [answer(oracle, tokens(13, 5), 18, 6, "none", **rule).nfe for rule in RULES]
    assert len(set(passes)) >= 3


ENDING = {"llada": (0, 2, 9), "dream": (21, 53, 190)}  # prompts whose answers end, to spare the search


def test_an_end_of_text_stops_after_the_contiguous_part(engine, oracle, name):
    stopped = 0
    for seed in (*ENDING[name], *range(200)):
        if stopped == 3:
            break
        prompt = tokens(9, seed)
        expected = answer(oracle, prompt, 24, 8, "dual", threshold=0.4, ignore_eos=False)
        if not expected.stopped or expected.gap < GAP:
            continue
        stopped += 1
        params = SamplingParams(max_new_tokens=24, block_length=8, threshold=0.4)
        compare(engine.generate(prompt, params, cache_mode="dual"), expected, oracle.num_layers)
    assert stopped == 3


def test_default_blocks_may_end_with_a_short_one(engine, oracle):
    """The engine's default block length is 8: a canvas of 20 has blocks of 8, 8 and 4."""
    for mode in ("none", "dual"):
        for prompt, expected in clear_cases(oracle, mode, 10, 20, 8, 2, steps=6):
            params = SamplingParams(max_new_tokens=20, steps=6, ignore_eos=True)
            compare(engine.generate(prompt, params, cache_mode=mode), expected, oracle.num_layers)


TABLES = {
    "constant": [[0.0, 4]],
    "rising": [[0.2, 2], [0.45, 4]],
    "to-all": [[0.1, 2], [0.5, 4], [0.7, 99]],
    "all": [[0.0, 99]],
    "none": [[0.0, 0]],
}


@pytest.mark.parametrize(("refresh_interval", "margin"), [(None, 0), (1, 0), (4, 5)])
@pytest.mark.parametrize("table", list(TABLES))
def test_bicache_is_dual_with_a_frozen_prompt_and_reuses_what_others_left(
    folder, oracle, tmp_path, table, refresh_interval, margin
):
    """Chains of turns, repeated prompts, shorter prefixes, other ratios: engine and oracle keep a cache each."""
    layers = oracle.num_layers
    rows = [[ratio, min(depth, layers)] for ratio, depth in TABLES[table]]
    path = write_profile(tmp_path / "profile.json", layers, rows, refresh_interval)
    cache = Cache(4, layers, rows, refresh_interval, margin)
    base = tokens(22, 1)
    requests: list[tuple[Sequence[int], int, dict[str, Any]]] = [
        (base, 16, {"threshold": 0.5}),
        (base, 16, {"threshold": 0.5}),  # the same again: its whole prompt is there
        (base + tokens(9, 2), 16, {"factor": 0.8}),  # a longer one
        (base[:13], 8, {"threshold": 0.5}),  # a prefix of what is there
        (base, 72, {"steps": 18}),  # a smaller ratio: a shallower depth
        (base[:10] + tokens(14, 3), 24, {"threshold": 0.7}),  # parts in the middle of a page
        (base[:10] + tokens(14, 3) + tokens(20, 4), 8, {"threshold": 0.7}),
        (tokens(30, 5), 8, {"threshold": 0.5}),
        (tokens(30, 5)[:20] + tokens(8, 6), 16, {"steps": 8}),
        (tokens(3, 7), 8, {"threshold": 0.5}),  # less than a page
        (tokens(3, 7), 8, {"threshold": 0.5}),
        (base + tokens(9, 2), 0, {}),
        (base + tokens(9, 2) + tokens(6, 8), 16, {"threshold": 0.5}),
    ]
    hits, compared, refreshed = 0, 0, 0
    with make_engine(folder, depth_profile=path, reuse_margin=margin) as engine:
        for prompt, size, rule in requests:
            expected = answer(oracle, prompt, size, 8, "bicache", cache, **rule)
            assert expected.gap > 1e-5, "too close to call: choose another prompt"
            params = SamplingParams(max_new_tokens=size, block_length=8, ignore_eos=True, **rule)
            compare(engine.generate(prompt, params), expected, layers)
            hits += expected.cut > 0
            refreshed += expected.prefix_refreshes > 1
            compared += 1
        assert_nothing_lost(engine)
    assert compared == len(requests)
    assert hits >= (0 if table == "none" else 5)
    if table == "none":
        assert hits == 0
    if table in ("constant", "rising"):
        assert refreshed == 0 if refresh_interval is None else refreshed > 3


def test_bicache_on_a_miss_is_not_dual_but_has_its_cost_per_canvas(engine, oracle):
    """The first block is dual's; later refreshes leave the whole pages of the prompt (12 of 13 tokens) alone."""
    prompt = tokens(13, 5)
    params = SamplingParams(max_new_tokens=16, block_length=8, steps=4, ignore_eos=True)
    dual = engine.generate(prompt, params, cache_mode="dual")
    bicache = engine.generate(prompt, params)
    assert bicache.cached_tokens == 0
    assert bicache.token_ids[:8] == dual.token_ids[:8]
    shift = oracle.shift
    block_step = 8 + shift
    assert dual.computed_token_layers == oracle.num_layers * (29 + block_step + 29 + block_step)
    assert bicache.computed_token_layers == oracle.num_layers * (29 + block_step + 17 + block_step)


@pytest.mark.parametrize("block", [8, 16])
def test_lm_captures_prompt_and_answer_of_all_layers_at_the_end(folder, oracle, block):
    layers = oracle.num_layers
    cache = Cache(4, layers, [[0.0, layers]])
    prompt = tokens(13, 3)
    hits = []
    with make_engine(folder) as engine:
        for turn in range(4):
            params = SamplingParams(max_new_tokens=16, block_length=block, threshold=0.5, ignore_eos=True)
            expected = answer(oracle, prompt, 16, block, "lm", cache, threshold=0.5)
            assert expected.gap > 1e-5
            output = engine.generate(prompt, params, cache_mode="lm")
            compare(output, expected, layers)
            hits.append(output.cached_tokens)
            prompt = prompt + list(output.token_ids) + tokens(5, 50 + turn)
        assert hits[0] == 0
        assert hits == sorted(set(hits))
        assert hits[1] >= 28  # beyond the first prompt: its answer as well
        assert_nothing_lost(engine)


def test_masks_written_in_a_prompt_are_ordinary_tokens(engine, oracle):
    """They are neither filled in nor counted, and they are cached under their own id."""
    prompt = tokens(6, 1) + [MASK] * 5 + tokens(6, 2)
    cache = Cache(4, oracle.num_layers, [[0.0, 4]])
    for mode in ("none", "bicache", "bicache"):
        expected = answer(oracle, prompt, 8, 8, mode, cache, threshold=0.5)
        assert expected.gap > 1e-5
        output = engine.generate(
            prompt, SamplingParams(max_new_tokens=8, threshold=0.5, ignore_eos=True), cache_mode=mode
        )
        compare(output, expected, oracle.num_layers)
    assert output.cached_tokens == 16
    assert MASK not in output.token_ids
