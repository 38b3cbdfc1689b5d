"""Small pools, eviction, aborts at any moment: everybody gets an answer and no page is lost."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.radix_cache.eviction_policy import EVICTION_POLICIES
from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import PoolTooSmallError
from shoal.runtime.model.settings import pool_sizes
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker import facts

from ..freeze import Freeze
from ..tiny import (
    all_pages,
    assert_nothing_lost,
    by_hand,
    free_pages,
    make_engine,
    open_requests,
    tokens,
    worker_of,
    write_profile,
)

MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache")


def params(size: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=size, ignore_eos=True, **{"threshold": 0.5, **options})


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_for_one_request_serves_a_queue_one_at_a_time(folder, mode):
    prompts = [tokens(24, seed) for seed in range(6)]
    with make_engine(folder, kv_cache_tokens=1024) as engine:
        expected = [output.token_ids for output in engine.generate(prompts, params(), cache_mode="dual")]
    with make_engine(folder, kv_cache_tokens=32) as engine:
        most = 0
        scheduler = engine.core.parts.scheduler
        plain = scheduler.step

        def step():
            nonlocal most
            outputs = plain()
            most = max(most, scheduler.num_running + sum(output.finished for output in outputs))
            return outputs

        engine.core.loop.call_and_wait(lambda: setattr(scheduler, "step", step))
        outputs = engine.generate(prompts, params(), cache_mode=mode)
        assert most == 1
        assert all(output.finish_reason == "length" and output.completion_tokens == 8 for output in outputs)
        if mode == "dual":
            assert [output.token_ids for output in outputs] == expected
        assert_nothing_lost(engine)


def test_a_request_too_big_for_the_pool_is_told_so_and_the_others_go_on(llada):
    with make_engine(llada, kv_cache_tokens=64) as engine:
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.extend(engine.generate([tokens(24, s) for s in range(4)], params()))
        )
        thread.start()
        with pytest.raises(PoolTooSmallError, match="over the 64 that the KV pool holds"):
            engine.generate(tokens(60), params())
        thread.join(60)
        assert [answer.finish_reason for answer in answers] == ["length"] * 4
        # Prompt and canvas exactly as large as the pool.
        assert engine.generate(tokens(56), params()).completion_tokens == 8
        assert_nothing_lost(engine)


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
def test_many_prefixes_evict_one_another(folder, policy, tmp_path, name):
    """20 prefixes through a pool that holds about five, in waves, with hits between."""
    layers = 6 if name == "llada" else 7
    path = write_profile(tmp_path / "p.json", layers, [[0.1, 2], [0.4, 4], [0.6, layers]], refresh_interval=2)
    chooser = random.Random(4)
    hits = 0
    with make_engine(folder, depth_profile=path, kv_cache_tokens=200, eviction_policy=policy) as engine:
        for _ in range(12):
            prompts = [
                tokens(16 + 4 * (s % 4), s) + tokens(chooser.randrange(6), 50 + s)
                for s in chooser.choices(range(20), k=4)
            ]
            prompts[1] = prompts[0][:18] + tokens(5, chooser.randrange(999))
            modes = chooser.choice(MODES[2:])
            outputs = engine.generate(prompts, params(chooser.choice([8, 16, 24])), cache_mode=modes)
            hits += sum(output.cached_tokens > 0 for output in outputs)
        kinds = {kind for kind, count in engine.core.parts.scheduler.memory.tree.events.totals.items() if count}
        assert "evicted" in kinds
        assert ("trimmed" in kinds) == (policy == "cost")
        assert hits >= 5
        assert_nothing_lost(engine)


def shrink_boundary_pool(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    monkeypatch.setattr(facts, "pool_sizes", lambda *given: (pool_sizes(*given)[0], pages))


@pytest.mark.parametrize("pages", [0, 1, 5, 7])
def test_without_enough_boundary_pages_requests_run_without_capture(llada, monkeypatch, pages):
    """A prompt of 24 tokens needs 6 boundary pages; the KV pool has room for everybody."""
    shrink_boundary_pool(monkeypatch, pages)
    with make_engine(llada) as engine:
        outputs = engine.generate([tokens(24, s) for s in (1, 2, 1, 1)], params(steps=2, threshold=None))
        assert all(output.completion_tokens == 8 for output in outputs)
        assert any(output.cached_tokens for output in outputs) == (pages >= 6)
        assert all_pages(engine)[1] == pages
        assert_nothing_lost(engine)


def test_a_deep_prefix_in_a_pool_with_no_room_beside_it(llada, tmp_path):
    """Its lock would keep the deep bands that a shallower request has to compute for itself: it runs without.

    Pool of 18 pages a band; the prefix of 32 tokens is cached in all three bands. A request for the same prompt with a
    long canvas may use one band of it only, so it needs 2 x 8 pages for the prompt and 3 x 10 for the canvas.
    """
    path = write_profile(tmp_path / "p.json", 6, [[0.1, 2], [0.7, 6]], refresh_interval=None)
    prompt = tokens(32, 1)
    with make_engine(llada, depth_profile=path, kv_cache_tokens=72) as engine:
        assert engine.generate(prompt, params(8)).cached_tokens == 0
        assert engine.generate(prompt, params(8)).depth == 6
        output = engine.generate(prompt, params(40))
        assert output.completion_tokens == 40
        assert_nothing_lost(engine)


def test_pins_that_leave_no_room_are_named_with_the_room_that_can_be_made(llada):
    """120 pages in 3 bands, of which two hold prefixes: 16 tokens x 4 are pinned, 6 x 4 can be evicted."""
    with make_engine(llada, kv_cache_tokens=160) as engine:
        assert engine.pin(tokens(64, 1)) == 64
        engine.generate(tokens(24, 2), SamplingParams(max_new_tokens=0))
        with pytest.raises(PoolTooSmallError, match="120 tokens; room for 116 can be made") as caught:
            engine.generate(tokens(40, 3), params(80), cache_mode="dual")
        assert (caught.value.value, caught.value.limit) == (120, 116)
        assert engine.generate(tokens(36, 3), params(80), cache_mode="dual").completion_tokens == 80


def test_a_request_that_has_to_wait_evicts_nothing_in_vain(llada):
    """While a running request holds most of the pool, a waiting one that can't fit leaves the cache alone."""
    with make_engine(llada, kv_cache_tokens=96) as engine:
        engine.generate(tokens(16, 1), params(0))
        tree = engine.core.parts.scheduler.memory.tree
        held = tree.num_kv_pages
        assert held > 0
        scheduler = engine.core.parts.scheduler
        seen: list[Any] = []
        with Freeze(engine, lambda outputs: scheduler.num_waiting == 1 and len(seen) > 4) as frozen:
            requests = open_requests(engine, [tokens(40, 2), tokens(40, 3)], params(24), "dual", "")
            engine.core.loop.submit(requests, seen.append)
            assert frozen.held.wait(60)
            assert {output.rid for output in seen} == {requests[0].rid}
            assert not any(output.finished for output in seen)
            assert tree.num_kv_pages == held
        while engine.core.loop.call_and_wait(lambda: engine.core.parts.scheduler.has_work):
            pass
        assert_nothing_lost(engine)


def run_with_random_aborts(engine: Engine, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Drive the scheduler by hand; abort something after about every third step; everybody ends exactly once."""
    chooser = random.Random(seed)
    scheduler, worker = by_hand(engine), worker_of(engine)
    families = [tokens(20, 100 + family) for family in range(3)]
    alive: dict[str, bool] = {}
    reasons: dict[str, int] = {}
    plain = worker.executor.runner.forward
    broken = 0

    def forward(entries):
        nonlocal broken
        if chooser.random() < 0.05:
            broken += 1
            raise RuntimeError("a broken kernel")
        return plain(entries)

    monkeypatch.setattr(worker.executor.runner, "forward", forward)

    def end(output):
        assert alive.pop(output.rid)
        reasons[output.finish_reason] = reasons.get(output.finish_reason, 0) + 1

    for _ in range(150):
        if chooser.random() < 0.5 and len(alive) < 12:
            prompt = chooser.choice(families)[: chooser.randrange(1, 21)] + tokens(
                chooser.randrange(12), chooser.randrange(9)
            )
            options = params(chooser.choice([0, 4, 8, 20]), threshold=chooser.choice([0.3, 0.6, 1.0]))
            (request,) = open_requests(
                engine, [prompt or [5]], options, chooser.choice(MODES), chooser.choice(["", "a"])
            )
            scheduler.add(request)
            alive[request.rid] = True
        for output in scheduler.step():
            if output.finished:
                end(output)
        if alive and chooser.random() < 0.3:
            aborted = scheduler.abort(chooser.choice(sorted(alive)))
            assert aborted is not None
            end(aborted)
            scheduler.check()
    for _ in range(2000):
        if not scheduler.has_work:
            break
        for output in scheduler.step():
            if output.finished:
                end(output)
    assert not alive
    reasons["broken"] = broken
    monkeypatch.undo()
    return reasons


@pytest.mark.parametrize("seed", range(6))
def test_aborts_and_failures_at_random_moments_lose_nothing(folder, name, seed, tmp_path, monkeypatch):
    layers = 6 if name == "llada" else 7
    path = write_profile(tmp_path / "p.json", layers, [[0.1, 2], [0.4, 4]], refresh_interval=2 if seed % 2 else None)
    options: dict[str, Any] = {"kv_cache_tokens": 160, "max_refresh_tokens": 64, "max_running_requests": 6,
                               "schedule_policy": ["lpm", "fcfs", "dfs-weight"][seed % 3],
                               "eviction_policy": ["lru", "cost"][seed % 2],
                               "max_steps_per_message": 1 + seed % 3}  # fmt: skip
    with make_engine(folder, depth_profile=path, **options) as engine:
        reasons = run_with_random_aborts(engine, seed, monkeypatch)
        assert {"length", "abort"} <= set(reasons)
        assert (reasons["broken"] > 0) == ("error" in reasons)
        assert_nothing_lost(engine)


@pytest.mark.parametrize("policy", ["lpm", "fcfs", "dfs-weight"])
def test_a_long_miss_is_not_passed_for_ever_by_hits(llada, policy):
    """Before every forward a request comes that finds more in the cache, and no forward has room for both."""
    options: dict[str, Any] = {"kv_cache_tokens": 2048, "max_running_requests": 16, "schedule_policy": policy}
    with make_engine(llada, max_refresh_tokens=120, **options) as engine:
        base = tokens(40, 1)
        engine.generate(base, params(8, steps=1, threshold=None))
        scheduler = by_hand(engine)

        def ask(prompt: list[int], size: int, steps: int, mode: CacheMode = "bicache") -> Any:
            (request,) = open_requests(engine, [prompt], params(size, steps=steps, threshold=None), mode, "")
            scheduler.add(request)
            return request

        ask(base + tokens(3, 7), 8, 8)
        long = ask(tokens(80, 9), 32, 4)
        for step in range(6):
            ask(base + tokens(3, 10 + step), 8, 1)
            scheduler.step()
            if long.tally.admitted_at is not None:
                break
        assert long.tally.admitted_at is not None
        assert scheduler.num_waiting + scheduler.num_running > 1
        while scheduler.has_work:
            scheduler.step()
        assert_nothing_lost(engine)


def test_a_request_that_a_forward_had_no_room_for_holds_and_reports_nothing(llada):
    with make_engine(llada, max_refresh_tokens=60) as engine:
        base = tokens(40, 1)
        engine.generate(base, params(8, steps=1, threshold=None))
        scheduler = by_hand(engine)
        requests = open_requests(engine, [base + tokens(3, n) for n in (2, 3)], params(8), "bicache", "")
        for request in requests:
            scheduler.add(request)
        scheduler.step()
        scheduler.check()
        first, second = requests
        assert first.tally.cached_tokens == 40
        assert scheduler.num_waiting == 1
        locks = scheduler.memory.tree.num_locks
        output = scheduler.abort(second.rid)
        assert output is not None
        assert (output.finish_reason, output.cached_tokens, output.reused_token_layers) == ("abort", 0, 0)
        assert scheduler.memory.tree.num_locks == locks == 1
        while scheduler.has_work:
            scheduler.step()
        assert_nothing_lost(engine)


def test_pages_that_nobody_wrote_are_never_read(llada, monkeypatch):
    """Pools full of NaN to begin with: every answer as before."""
    prompts = [tokens(5 + 6 * i, i) for i in range(5)]
    answers = []
    for poison in (0.0, float("nan")):
        with make_engine(llada) as engine:
            runner = worker_of(engine).executor.runner
            runner.kv.data.fill_(poison)
            runner.boundary.data.fill_(poison)
            outputs = []
            for mode in MODES:
                for _ in range(2):
                    outputs += engine.generate(prompts, params(16), cache_mode=mode)
            answers.append([(output.token_ids, output.cached_tokens) for output in outputs])
    assert answers[0] == answers[1]


def test_cached_pages_are_never_written_again(llada, tmp_path):
    """Whatever runs after a capture, with refreshes and hits of every kind: the tree's pages keep their contents."""
    path = write_profile(tmp_path / "p.json", 6, [[0.1, 2], [0.4, 4]], refresh_interval=1)
    base = tokens(24, 1)
    with make_engine(llada, depth_profile=path) as engine:
        engine.generate(base, params(8))
        memory, runner = engine.core.parts.scheduler.memory, worker_of(engine).executor.runner

        def contents() -> list[tuple[np.ndarray[Any, Any], ...]]:
            references = memory.tree.page_references()
            ids = [np.flatnonzero(each) for each in references]
            return [(ids[0], runner.kv.data[ids[0]].numpy()), (ids[1], runner.boundary.data[ids[1]].numpy())]

        before = contents()
        assert len(before[0][0]) > 0
        assert len(before[1][0]) > 0
        for prompt in (base, base + tokens(9, 2), base[:14] + tokens(9, 3), base[:23]):
            for size in (8, 40):
                engine.generate(prompt, params(size, threshold=None, steps=size // 4))
        for (ids, pages), pool in zip(before, (runner.kv.data, runner.boundary.data), strict=True):
            assert np.array_equal(pool[ids].numpy(), pages)


def test_after_a_flush_everything_is_free(folder: Path):
    with make_engine(folder) as engine:
        engine.generate([tokens(24, s) for s in range(4)], params())
        assert free_pages(engine) != all_pages(engine)
        assert engine.cache_snapshot()
        assert engine.render_cache() is not None
        engine.flush_cache()
        assert free_pages(engine) == all_pages(engine)
        assert engine.generate(tokens(24, 1), params()).cached_tokens == 0
