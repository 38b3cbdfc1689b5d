"""Answers don't depend on company; prefixes are shared inside a batch; the cache keeps apart what it must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.radix_cache.node import Namespace
from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.forward import Forward
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import MASK, assert_nothing_lost, by_hand, make_engine, open_requests, tokens, worker_of, write_profile

PREFIX = tokens(17, 99)
RULES: list[dict[str, Any]] = [
    {"threshold": 0.5, "max_new_tokens": 16},
    {"steps": 6, "max_new_tokens": 24},
    {"factor": 1.5, "max_new_tokens": 8},
    {"threshold": 0.7, "max_new_tokens": 16, "strategy": "margin"},
    {"threshold": 0.6, "max_new_tokens": 8, "strategy": "entropy", "temperature": 0.7},
    {"steps": 4, "max_new_tokens": 16, "strategy": "random"},
    {"threshold": 0.5, "max_new_tokens": 16, "temperature": 1.0},
    {"threshold": 0.5, "max_new_tokens": 0},
]


def mixed_requests() -> list[tuple[list[int], SamplingParams]]:
    """16 of lengths 2 to 47, half of them behind one prefix, with every kind of rule."""
    requests = []
    for number in range(16):
        length = 2 + 3 * number
        prompt = (PREFIX + tokens(length, number))[: max(length, 20)] if number % 2 else tokens(length, number)
        rule = RULES[number * 5 % len(RULES)]
        requests.append((prompt, SamplingParams(block_length=8, seed=number, ignore_eos=number % 3 > 0, **rule)))
    return requests


def facts(output: RequestOutput) -> tuple[Any, ...]:
    return (
        output.token_ids, output.text, output.finish_reason, output.matched_stop, output.nfe, output.canvas_tokens,
        output.cached_tokens, output.depth, output.computed_token_layers, output.prefix_refreshes,
    )  # fmt: skip


def keep_contents(engine: Any, monkeypatch: Any) -> None:
    """From now on nothing is added to the cache: every request meets the same contents."""
    monkeypatch.setattr(engine.core.parts.scheduler.memory.tree, "capture", lambda *a, **k: None)
    monkeypatch.setattr(engine.core.parts.scheduler.memory.lm_tree, "capture", lambda *a, **k: None)


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_alone_in_a_batch_of_16_and_in_another_order_is_all_the_same(folder, name, mode, monkeypatch):
    """For modes that share, of the same cache contents: warmed with fixed requests, then kept."""
    requests = mixed_requests()
    order = np.random.default_rng(3).permutation(16)
    with make_engine(folder, max_refresh_tokens=100, max_running_requests=5) as engine:
        for prompt in (PREFIX + tokens(4, 1), tokens(20, 6), tokens(44, 14)):
            engine.generate(prompt, SamplingParams(max_new_tokens=8, ignore_eos=True), cache_mode=mode)
        keep_contents(engine, monkeypatch)
        alone = [engine.generate(prompt, params, cache_mode=mode) for prompt, params in requests]
        prompts, params = [p for p, _ in requests], [s for _, s in requests]
        together = engine.generate(prompts, params, cache_mode=mode)
        mixed = engine.generate([prompts[i] for i in order], [params[i] for i in order], cache_mode=mode)
        monkeypatch.undo()
        assert_nothing_lost(engine)
    assert [facts(o) for o in together] == [facts(o) for o in alone]
    assert [facts(o) for o in mixed] == [facts(alone[i]) for i in order]
    hits = sum(output.cached_tokens > 0 for output in alone)
    assert hits >= 6 if mode in ("lm", "bicache") else hits == 0


def test_other_ways_to_run_the_same_batch(llada):
    """Several steps a message, one request at a time, a target, other pages: modes without sharing answer the same."""
    requests = mixed_requests()
    prompts, params = [p for p, _ in requests], [s for _, s in requests]
    answers = []
    for options in ({}, {"max_steps_per_message": 4}, {"max_running_requests": 1}, {"max_refresh_tokens": 1},
                    {"target_first_text_ms": 1, "max_steps_per_message": 4},
                    {"page_size": 8, "layers_per_band": 4, "schedule_policy": "fcfs"}):  # fmt: skip
        with make_engine(llada, **options) as engine:
            outputs = engine.generate(prompts, params, cache_mode="dual")
            answers.append([(o.token_ids, o.nfe, o.computed_token_layers) for o in outputs])
            assert_nothing_lost(engine)
    assert all(each == answers[0] for each in answers[1:])


def test_logits_are_the_same_bits_whatever_else_is_in_the_batch(folder, name, monkeypatch):
    with make_engine(folder) as engine:
        runner = worker_of(engine).executor.runner
        seen: list[dict[int, list[Any]]] = []
        plain = type(runner).logits

        def record(hidden):
            result = plain(runner, hidden)
            seen[-1].setdefault(len(seen[-1]), []).append(result.clone())
            return result

        monkeypatch.setattr(runner, "logits", record)
        params = SamplingParams(max_new_tokens=8, block_length=8, steps=1, ignore_eos=True)
        prompts = [tokens(5 + 7 * i, i) for i in range(4)]
        for batch in ([prompts[2]], prompts):
            seen.append({})
            engine.generate(batch, params, cache_mode="none")
        alone, together = seen[0][0][0], seen[1][0][0]
    assert alone.shape[0] == 8
    assert together.shape[0] == 32
    assert (together[16:24] == alone).all()


def test_temperature_draws_depend_on_the_seed_alone(llada):
    params = [
        SamplingParams(max_new_tokens=16, temperature=1.0, threshold=0.5, seed=s, ignore_eos=True) for s in (1, 2)
    ]
    with make_engine(llada) as engine:
        first, second, again = engine.generate([tokens(9)] * 3, [params[0], params[1], params[0]], cache_mode="dual")
        assert first.token_ids == again.token_ids != second.token_ids
        drawn = SamplingParams(max_new_tokens=16, temperature=1.0, threshold=0.5, ignore_eos=True)
        assert len({o.token_ids for o in engine.generate([tokens(9)] * 4, drawn, cache_mode="dual")}) > 1


# Sharing


def test_of_requests_with_one_uncached_prefix_one_computes_it_and_the_others_hit(folder):
    prompts = [tokens(24, 1) + tokens(5, 100 + i) for i in range(6)] + [tokens(24, 2)]
    params = SamplingParams(max_new_tokens=8, steps=2, ignore_eos=True)
    with make_engine(folder) as engine:
        outputs = engine.generate(prompts, params)
        assert sorted(o.cached_tokens for o in outputs) == [0, 0, 24, 24, 24, 24, 24]
        assert [o.cached_tokens for o in outputs if o.depth == 0] == [0, 0]
        assert {o.depth for o in outputs} == {0, 4}
        layers = engine.model_config.num_layers
        shift = int(engine.model_config.shift_logits)
        for output in outputs[:6]:
            saved = 24 * 4 if output.cached_tokens else 0
            assert output.computed_token_layers == layers * (37 + 8 + shift) - saved
            assert output.reused_token_layers == saved
        assert_nothing_lost(engine)


def batch_sizes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Items of each forward from now on."""
    worker, sizes = worker_of(engine), []
    plain = worker.forward

    def record(message: Forward):
        sizes.append(len(message.items))
        return plain(message)

    monkeypatch.setattr(worker, "forward", record)
    return sizes


def test_followers_wait_for_their_leader_only(llada, monkeypatch):
    """The leader and the stranger are in the first forward, the followers in the second."""
    with make_engine(llada) as engine:
        batches = batch_sizes(engine, monkeypatch)
        prompts = [tokens(24, 1) + tokens(5, 100 + i) for i in range(4)] + [tokens(24, 2)]
        engine.generate(prompts, SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True))
    assert batches == [2, 3]


def test_modes_that_share_nothing_wait_for_nobody(llada, monkeypatch):
    with make_engine(llada) as engine:
        batches = batch_sizes(engine, monkeypatch)
        params = SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True)
        scheduler = by_hand(engine)
        requests = open_requests(engine, [tokens(24, 1)], params, "bicache", "")
        requests += open_requests(engine, [tokens(24, 1)] * 2, params, "dual", "")
        for request in requests:
            scheduler.add(request)
        while scheduler.has_work:
            scheduler.step()
    assert batches == [3]


def test_a_request_without_new_tokens_warms_the_cache(folder):
    with make_engine(folder) as engine:
        warm = engine.generate(tokens(24, 1), SamplingParams(max_new_tokens=0))
        assert (warm.text, warm.token_ids, warm.finish_reason, warm.nfe) == ("", (), "length", 1)
        assert (warm.completion_tokens, warm.canvas_tokens, warm.prompt_tokens) == (0, 0, 24)
        assert warm.computed_token_layers == 32 * engine.model_config.num_layers
        hit = engine.generate(tokens(24, 1) + tokens(3, 2), SamplingParams(max_new_tokens=8, ignore_eos=True))
        whole = (24 - engine.model_config.shift_logits) // 4 * 4
        assert (hit.cached_tokens, hit.depth) == (whole, 4)
        modes: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm")
        for mode in modes:
            output = engine.generate(tokens(7, 3), SamplingParams(max_new_tokens=0), cache_mode=mode)
            assert (output.text, output.finish_reason, output.nfe) == ("", "length", 1)
        assert_nothing_lost(engine)


def test_a_salt_and_a_mode_see_their_own_captures_only(llada):
    params = SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True)
    prompt = [*tokens(16, 1), MASK, MASK, MASK, MASK, *tokens(3, 2)]
    with make_engine(llada) as engine:
        asked: list[tuple[CacheMode, str]] = [
            ("lm", ""), ("bicache", ""), ("bicache", "a"), ("bicache", "b"), ("bicache", "a"), ("lm", "a"), ("lm", ""),
            ("bicache", ""), ("dual", ""),
        ]  # fmt: skip
        cached = [
            engine.generate(prompt, params, cache_mode=mode, cache_salt=salt).cached_tokens for mode, salt in asked
        ]
        assert cached == [0, 0, 0, 0, 20, 0, 20, 20, 0]
        tree = engine.core.parts.scheduler.memory.tree
        assert {node.namespace for node in tree.nodes()} == {Namespace(s, "first") for s in ("", "a", "b")}
        together = engine.generate([prompt[:12]] * 2, params, cache_salt="c")
        assert sorted(o.cached_tokens for o in together) == [0, 12]
        apart = [engine.generate(prompt[:12], params, cache_salt=salt).cached_tokens for salt in ("d", "e")]
        assert apart == [0, 0]
        assert_nothing_lost(engine)


def test_depth_zero_never_reuses(llada):
    with make_engine(llada, depth=0) as engine:
        outputs = [engine.generate(tokens(24, 1), SamplingParams(max_new_tokens=8, steps=2)) for _ in range(2)]
        assert [(o.cached_tokens, o.depth) for o in outputs] == [(0, 0), (0, 0)]
        assert engine.core.parts.scheduler.memory.tree.num_nodes == 0
        assert_nothing_lost(engine)


def test_a_profile_deeper_than_what_was_captured_takes_what_is_there(llada, tmp_path):
    """Captured at a small ratio (depth 2); a request at a large one (depth 4) resumes at 2 and deepens."""
    path = write_profile(tmp_path / "p.json", 6, [[0.1, 2], [0.6, 4]], refresh_interval=1)
    prompt = tokens(20, 1)
    with make_engine(llada, depth_profile=path) as engine:
        depths = [
            engine.generate(prompt, SamplingParams(max_new_tokens=size, steps=size // 8, ignore_eos=True)).depth
            for size in (64, 8, 8, 64)
        ]
        assert depths == [0, 2, 4, 2]
        assert_nothing_lost(engine)


@pytest.mark.parametrize(
    ("size", "depth", "refreshes"), [(16, 4, 1), (24, 2, 3), (56, 2, 7), (64, 2, 8), (72, 0, 9), (8, 4, 1)]
)
def test_depth_and_refresh_interval_are_of_the_same_row_of_the_profile(llada, tmp_path, size, depth, refreshes):
    """16 prompt tokens: with a canvas of 16 the ratio is the second row's own, with 64 the first row's.

    Below the first row nothing is captured: every block begins with a forward over everything.
    """
    path = tmp_path / "p.json"
    DepthProfile(6, ((0.2, 2), (0.5, 4)), intervals=(1, None)).save(path)
    params = SamplingParams(max_new_tokens=size, block_length=8, steps=size // 4, ignore_eos=True)
    with make_engine(llada, depth_profile=str(path)) as engine:
        outputs = [engine.generate(tokens(16, 1), params) for _ in range(2)]
        assert [(o.depth, o.prefix_refreshes) for o in outputs] == [(0, refreshes), (depth, refreshes)]
        assert_nothing_lost(engine)


@pytest.mark.parametrize("policy", ["lpm", "fcfs", "dfs-weight"])
def test_policies_order_the_queue(llada, policy):
    """One at a time: the longest cached prefix first, or first come, or the prefix that most wait for."""
    short, long = tokens(8, 1), tokens(24, 2)
    params = SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True)
    order: list[str] = []
    names = {}
    with make_engine(llada, schedule_policy=policy, max_running_requests=1) as engine:
        engine.generate([short, long], SamplingParams(max_new_tokens=0))
        prompts = {"new": tokens(9, 3), "short1": [*short, 9], "long": [*long, 9], "short2": [*short, 8, 9]}
        requests = open_requests(engine, list(prompts.values()), params, "bicache", "")
        names = {r.rid: name for r, name in zip(requests, prompts, strict=True)}
        scheduler = by_hand(engine)
        for request in requests:
            scheduler.add(request)
        while scheduler.has_work:
            order += [names[o.rid] for o in scheduler.step() if o.finished]
        assert_nothing_lost(engine)
    expected = {
        "lpm": ["long", "short1", "short2", "new"],
        "fcfs": ["new", "short1", "long", "short2"],
        "dfs-weight": ["short1", "long", "short2", "new"],  # once short1 has run, short is asked for once, like long
    }
    assert order == expected[policy]


@pytest.mark.parametrize("mode", ["none", "dual", "bicache", "lm"])
def test_block_steps_behind_a_refresh_change_nothing(llada, mode):
    params = [SamplingParams(max_new_tokens=24, steps=9), SamplingParams(max_new_tokens=24, threshold=0.4)]
    prompts = [tokens(20, seed=1) + tokens(5, seed=2), tokens(20, seed=1) + tokens(7, seed=3)]
    answers, forwards = [], []
    for steps in (1, 8):
        with make_engine(llada, max_steps_per_message=steps) as engine:
            sent: list[Any] = []
            worker = worker_of(engine)
            run = worker.forward
            worker.forward = lambda message, run=run, sent=sent: (sent.append(message), run(message))[1]
            outputs = engine.generate(prompts, params, cache_mode=mode)
            answers.append([(o.token_ids, o.nfe, o.computed_token_layers, o.prefix_refreshes) for o in outputs])
            forwards.append(sent)
    assert answers[0] == answers[1]
    assert not any(message.then for message in forwards[0])
    assert any(message.then for message in forwards[1]) or mode == "none"
    assert len(forwards[1]) < len(forwards[0])
