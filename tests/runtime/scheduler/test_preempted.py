"""Requests that are preempted and start again: what they keep, what was shown, and that they end once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import assert_nothing_lost, by_hand, make_engine, open_requests, tokens, worker_of, write_profile
from ..worker.cuda_path import cuda_executor
from .test_priorities import EXACT, Driver, make

TEMPLATE = [-1] * 3 + [9, 10] + [-1] * 7 + [11] * 5 + [-1] * 7  # three blocks of eight


def preempt(driver: Driver, engine: Engine, low: Request, after: int) -> None:
    """One place: after some steps of `low` a request of higher priority takes it, and both run to their ends."""
    driver.add(low)
    for _ in range(after):
        driver.step()
    driver.add(make(engine, 99, 1, "none", max_new_tokens=8))
    driver.run(500)
    assert not driver.scheduler.has_work


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("after", [1, 2, 4, 6, 9])
def test_a_template_that_was_preempted_ends_as_if_it_had_not_been(folder, mode, after):
    params = SamplingParams(threshold=0.7)
    with make_engine(folder, max_running_requests=1) as engine:
        expected = engine.generate(tokens(24, 1), params, cache_mode=mode, canvas=TEMPLATE)
        (low,) = open_requests(engine, [tokens(24, 1)], params, mode, "", [TEMPLATE])
        driver = Driver(engine)
        preempt(driver, engine, low, after)
        end = driver.end(low)
        assert (end.token_ids, end.holes, end.canvas_tokens) == (expected.token_ids, expected.holes, 17)
        assert end.preemptions == 1
        assert_nothing_lost(engine)


def shown_otherwise(driver: Driver, engine: Engine, low: Request, tokens_shown: list[int]) -> None:
    """Put `low` back at the start of its second block, as if `tokens_shown` had been decoded there and shown."""
    driver.add(low)
    while low.canvas.block == 0:
        driver.step()
    driver.add(make(engine, 99, 1, "none", max_new_tokens=8))
    driver.step()
    canvas = low.canvas
    assert (low.tally.preemptions, canvas.frontier) == (1, 8)
    canvas.shown = (*canvas.shown[:8], *tokens_shown)
    canvas.tokens[: len(canvas.shown)] = canvas.shown
    driver.run(500)
    assert not driver.scheduler.has_work


@pytest.mark.parametrize("mode", ["none", "dual", "lm", "bicache"])
def test_what_was_shown_is_what_the_rest_is_decoded_behind(folder, mode):
    """Decoded again with other draws, or from another cache, a block may come out otherwise than it was shown."""
    with make_engine(folder, max_running_requests=1) as engine:
        worker, held = worker_of(engine), {}
        release = worker.release

        def look(message: Any) -> None:
            for rid in message.rids:
                held[rid] = worker.canvas(rid).tokens
            release(message)

        worker.release = look
        expected = engine.generate(
            tokens(24, 1), SamplingParams(max_new_tokens=32, threshold=0.6, ignore_eos=True), cache_mode=mode
        ).token_ids
        engine.flush_cache()
        other = [4 + (token - 3) % 50 for token in expected[8:11]]
        driver, low = Driver(engine), make(engine, 1, mode=mode)
        shown_otherwise(driver, engine, low, other)
        end = driver.end(low)
        assert end.finish_reason == "length"
        assert end.token_ids[:11] == (*expected[:8], *other)
        assert held[low.rid].tolist() == list(end.token_ids)
        assert end.canvas_tokens == 32
        assert_nothing_lost(engine)


@pytest.mark.parametrize("cuda", [False, True])
def test_an_end_that_was_not_shown_ends_nothing(llada, cuda):
    """The worker of a GPU commits nothing behind an end of text: it must not wait there for ever."""
    with make_engine(llada, executor=cuda_executor if cuda else None, max_running_requests=1) as engine:
        rule = SamplingParams(max_new_tokens=32, threshold=0.6, ignore_eos=True)
        expected = engine.generate(tokens(24, 1), rule, cache_mode="dual").token_ids
        stop = expected[8]
        other = [token for token in range(4, 50) if token != stop][:3]
        assert stop not in expected[:8]
        driver = Driver(engine)
        low = make(engine, 1, ignore_eos=False, stop_token_ids=[stop])
        shown_otherwise(driver, engine, low, other)
        end = driver.end(low)
        assert end.finish_reason in ("stop", "length")
        assert end.token_ids[:11] == (*expected[:8], *other)


def test_prefix_refreshes_go_on_after_it_was_preempted(llada, tmp_path):
    """Its canvas has commits, so nothing is captured; what it shares is still recomputed above the depth."""
    path = write_profile(tmp_path / "p.json", 6, [[0.0, 4]], refresh_interval=1)
    with make_engine(llada, depth_profile=path, max_running_requests=1) as engine:
        driver = Driver(engine)
        low = make(engine, 1, mode="bicache", threshold=None, steps=16)
        preempt(driver, engine, low, 7)  # in its second block of four steps
        end = driver.end(low)
        assert (end.preemptions, end.cached_tokens, low.tally.captured_tokens) == (1, 24, 0)
        assert end.prefix_refreshes == 5  # two blocks, the second of them again, two more
        assert_nothing_lost(engine)


@pytest.mark.parametrize("how", ["abort", "time-out"])
def test_who_ends_before_its_progress_was_taken_ends_once(llada, how, monkeypatch):
    """Between processes outputs are taken after the next forward was planned."""
    now = [100.0]
    monkeypatch.setattr("shoal.runtime.scheduler.scheduler.time.monotonic", lambda: now[0])
    with make_engine(llada) as engine:
        scheduler, worker = by_hand(engine), worker_of(engine)
        request = make(engine, 1, threshold=None, steps=32, timeout_s=50.0, arrival=now[0])
        scheduler.add(request)
        for _ in range(2):
            planned = scheduler.plan()
            assert planned is not None
            scheduler.apply(planned, worker.forward(planned.forward))
        if how == "abort":
            assert scheduler.end(request.rid) is request
            assert scheduler.take() == []
        else:
            now[0] += 60.0
            assert scheduler.plan() is None
            assert scheduler.take() == [request]
        assert scheduler.take() == []
        assert_nothing_lost(engine)


def test_a_deadline_that_comes_later_and_is_earlier_is_kept(llada, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("shoal.runtime.scheduler.scheduler.time.monotonic", lambda: now[0])
    with make_engine(llada, max_running_requests=1) as engine:
        driver = Driver(engine)
        long, short = (make(engine, seed, timeout_s=seconds, arrival=now[0]) for seed, seconds in ((1, 50.0), (2, 5.0)))
        driver.add(long, short)
        now[0] += 5.5
        driver.step()
        assert driver.end(short).finish_reason == "abort"
        assert not driver.end(long).finished
        driver.run()
        assert driver.end(long).finish_reason == "length"
        assert_nothing_lost(engine)


def test_an_id_in_use_is_refused_and_its_first_owner_is_answered(llada):
    with make_engine(llada) as engine:
        modes: tuple[CacheMode, CacheMode] = ("dual", "none")
        first, second = (make(engine, 1, mode=mode) for mode in modes)
        second.spec = replace(second.spec, rid=first.rid)
        answers: dict[str, list[RequestOutput]] = {"first": [], "second": []}

        def submit_both() -> None:  # in the engine's own thread: it makes no step between the two
            engine.core.loop.submit([first], answers["first"].append)
            engine.core.loop.submit([second], answers["second"].append)

        engine.core.loop.call_and_wait(submit_both)
        while engine.core.loop.call_and_wait(lambda: engine.core.parts.scheduler.has_work):
            pass
        assert [output.finish_reason for output in answers["second"]] == ["error"]
        assert isinstance(answers["second"][0].error, InvalidRequestError)
        assert answers["first"][-1].finish_reason == "length"
        assert sum(output.finished for output in answers["first"]) == 1
        assert_nothing_lost(engine)
