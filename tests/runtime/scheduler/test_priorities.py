"""Priorities, requests that are preempted and start again, time-outs, the queue's limit: driven step by step."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError, QueueFullError, RequestTimeoutError
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import assert_nothing_lost, by_hand, make_engine, open_requests, tokens
from ..worker.cuda_path import cuda_executor

MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache")
EXACT: tuple[CacheMode, ...] = ("none", "prefix", "dual")  # nothing reused across requests


def make(engine: Engine, seed: int, priority: int = 0, mode: CacheMode = "dual", **options: Any) -> Request:
    """A request of 24 tokens and a canvas of 32 in blocks of 8."""
    own = {name: options.pop(name) for name in ("timeout_s", "waited_s", "stream", "arrival") if name in options}
    sampling = SamplingParams(**{"max_new_tokens": 32, "threshold": 0.6, "ignore_eos": True, "seed": 1, **options})
    (request,) = open_requests(engine, [tokens(24, seed)], sampling, mode, "", priority=priority, **own)
    return request


class Driver:
    """Steps a scheduler by hand; keeps what comes out, and checks that text and tokens only grow."""

    def __init__(self, engine: Engine):
        self.scheduler = by_hand(engine)
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.order: list[str] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)
            self.outputs[request.rid] = []

    def step(self) -> None:
        for output in self.scheduler.step():
            self.take(output)

    def take(self, output: RequestOutput) -> None:
        seen = self.outputs[output.rid]
        assert not (seen and seen[-1].finished), "a second terminal output"
        if seen:
            assert output.text.startswith(seen[-1].text)
            assert output.token_ids[: len(seen[-1].token_ids)] == seen[-1].token_ids
        seen.append(output)
        if output.finished:
            self.order.append(output.rid)

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if not self.scheduler.has_work:
                return
            self.step()

    def end(self, request: Request) -> RequestOutput:
        return self.outputs[request.rid][-1]


@pytest.mark.parametrize("policy", ["lpm", "fcfs", "dfs-weight"])
def test_higher_priorities_are_admitted_first(llada, policy):
    with make_engine(llada, max_running_requests=1, schedule_policy=policy) as engine:
        driver = Driver(engine)
        requests = [make(engine, seed, priority) for seed, priority in enumerate([0, 2, 1, 2, -1])]
        driver.add(*requests)
        driver.run()
        assert driver.order == [requests[i].rid for i in (1, 3, 2, 0, 4)]
        assert engine.core.parts.scheduler.counters.preemptions == 0
        assert_nothing_lost(engine)


@pytest.mark.parametrize(
    "rule", [{"threshold": 0.6}, {"threshold": None, "steps": 16}, {"threshold": None, "factor": 1.5}]
)
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13])
def test_a_request_that_was_put_back_ends_as_if_it_had_not_been(folder, name, mode, rule, after):
    """One place: a request of higher priority takes it after some steps."""
    with make_engine(folder, max_running_requests=1) as engine:
        expected = engine.generate(
            tokens(24, 1), SamplingParams(max_new_tokens=32, ignore_eos=True, **rule), cache_mode=mode
        )
        driver = Driver(engine)
        low, high = make(engine, 1, mode=mode, **rule), make(engine, 2, 1, mode=mode, **rule)
        driver.add(low)
        for _ in range(after):
            driver.step()
        if not driver.scheduler.has_work:
            pytest.skip("it was done by then")
        driver.add(high)
        driver.run()
        assert driver.order == [high.rid, low.rid]
        end = driver.end(low)
        assert (end.token_ids, end.text, end.finish_reason) == (expected.token_ids, expected.text, "length")
        assert end.preemptions == 1
        assert end.nfe >= expected.nfe
        assert driver.end(high).preemptions == 0
        assert_nothing_lost(engine)


@pytest.mark.parametrize("mode", EXACT)
def test_the_worker_of_the_gpu_starts_again_in_the_same_way(folder, mode):
    """Its code path, run on the CPU: preempted in each block."""
    with make_engine(folder, max_running_requests=1) as engine:
        params = SamplingParams(max_new_tokens=32, ignore_eos=True, steps=16)
        expected = engine.generate(tokens(24, 1), params, cache_mode=mode)
    with make_engine(folder, executor=cuda_executor, max_running_requests=1) as engine:
        for after in (2, 6, 11):
            driver = Driver(engine)
            low = make(engine, 1, mode=mode, threshold=None, steps=16)
            high = make(engine, 2, 1, mode=mode, threshold=None, steps=16)
            driver.add(low)
            for _ in range(after):
                driver.step()
            driver.add(high)
            driver.run()
            assert driver.order == [high.rid, low.rid]
            assert driver.end(low).preemptions == 1
            assert driver.end(low).token_ids == expected.token_ids


def test_it_starts_again_at_its_block_not_from_the_beginning(llada):
    with make_engine(llada, max_running_requests=1) as engine:
        rule: dict[str, Any] = {"threshold": None, "steps": 32}  # 8 steps a block
        driver = Driver(engine)
        low = make(engine, 1, mode="dual", **rule)
        driver.add(low)
        for _ in range(8 * 3 + 4):
            driver.step()
        assert low.canvas.block == 3
        driver.add(make(engine, 2, 1, **rule))
        driver.run()
        assert driver.end(low).nfe == 32 + 4
        assert_nothing_lost(engine)


def test_memory_is_taken_from_lower_priorities_and_no_more_than_needed(llada):
    """Each needs 14 pages a band; the pool has room for three. The youngest of the least important goes."""
    with make_engine(llada, kv_cache_tokens=3 * 56) as engine:
        driver = Driver(engine)
        running = [make(engine, seed, priority) for seed, priority in ((1, 1), (2, 0), (3, 0))]
        driver.add(*running)
        driver.step()
        driver.step()
        assert driver.scheduler.num_running == 3
        high = make(engine, 9, 5)
        driver.add(high)
        driver.step()
        assert high.tally.admitted_at is not None
        assert [request.tally.preemptions for request in running] == [0, 0, 1]
        driver.run()
        assert all(driver.end(request).finish_reason == "length" for request in (*running, high))
        assert_nothing_lost(engine)


def test_nobody_is_put_back_when_that_would_not_help(llada):
    """The pool has room for two; both are needed by the newcomer, one of them is as important as it is."""
    with make_engine(llada, kv_cache_tokens=2 * 56) as engine:
        driver = Driver(engine)
        equal, lower = make(engine, 1, 5), make(engine, 2, 0)
        driver.add(equal, lower)
        driver.step()
        large = make(engine, 3, 5, max_new_tokens=80)
        driver.add(large)
        while not driver.order:
            assert driver.scheduler.num_running == 2
            assert driver.scheduler.counters.preemptions == 0
            driver.step()
        assert driver.order == [equal.rid]
        driver.run()
        assert driver.order == [equal.rid, large.rid, lower.rid]
        assert driver.end(lower).preemptions == 1  # now it did help
        assert_nothing_lost(engine)


@pytest.mark.parametrize("seed", range(8))
def test_random_priorities_aborts_and_time_outs_lose_nothing(folder, name, seed):
    """A pool for about four requests; every one ends once, pages are checked after every step."""
    chooser = random.Random(seed)
    options: dict[str, Any] = {
        "kv_cache_tokens": 4 * 56, "max_running_requests": 2 + seed % 3, "max_refresh_tokens": 100,
        "schedule_policy": ["lpm", "fcfs", "dfs-weight"][seed % 3],
    }  # fmt: skip
    with make_engine(folder, **options) as engine:
        driver = Driver(engine)
        alive: list[Request] = []
        expected: dict[str, tuple[int, ...]] = {}
        for _ in range(60):
            if chooser.random() < 0.4:
                mode = chooser.choice(MODES)
                prompt_seed = chooser.randrange(5)
                size = chooser.choice([0, 8, 32])
                priority = chooser.randrange(4)
                timeout = chooser.choice([0.0001, 0.01]) if chooser.random() < 0.1 else None
                request = make(engine, prompt_seed, priority, mode, max_new_tokens=size, timeout_s=timeout)
                driver.add(request)
                alive.append(request)
            driver.step()
            if alive and chooser.random() < 0.1:
                output = driver.scheduler.abort(chooser.choice(alive).rid)
                if output is not None:
                    driver.take(output)
        driver.run()
        ends = {request.rid: driver.end(request) for request in alive}
        assert all(end.finished for end in ends.values())
        assert len(driver.order) == len(set(driver.order)) == len(alive)
        counters = driver.scheduler.counters
        assert counters.preemptions == sum(end.preemptions for end in ends.values()) > 0
        assert counters.requests == len(alive) == sum((counters.finished_length, counters.aborted, counters.timed_out))
        assert counters.timed_out == sum(isinstance(end.error, RequestTimeoutError) for end in ends.values())
        for request in alive:  # modes without sharing across requests: as if alone
            end = ends[request.rid]
            if end.finish_reason == "length" and request.spec.cache_mode in EXACT:
                spec = request.spec
                alone = engine.generate(spec.prompt.tolist(), spec.sampling, cache_mode=spec.cache_mode)
                expected[end.rid] = alone.token_ids
                assert end.token_ids == alone.token_ids
        assert expected
        assert_nothing_lost(engine)


def test_what_was_committed_before_is_not_captured_again(llada):
    """A request that comes back in a later block has no canvas of masks: the tree must not get its prompt from it."""
    with make_engine(llada, max_running_requests=1) as engine:
        driver = Driver(engine)
        low = make(engine, 1, mode="bicache", threshold=None, steps=32)
        driver.add(low)
        for _ in range(12):
            driver.step()
        assert low.canvas.block == 1
        engine.core.parts.scheduler.memory.tree.evict(10**6)  # its lock is on nothing: it made the capture itself
        driver.add(make(engine, 2, 1, mode="none"))
        driver.run()
        assert driver.end(low).preemptions == 1
        assert low.tally.captured_tokens == 0
        namespace = driver.scheduler.planner.namespace(low)
        assert driver.scheduler.memory.tree.match(low.prompt, namespace, touch=False).num_tokens == 0
        assert_nothing_lost(engine)


def test_time_outs_of_running_and_waiting_requests(llada, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("shoal.runtime.scheduler.scheduler.time.monotonic", lambda: now[0])
    with make_engine(llada, max_running_requests=1) as engine:
        driver = Driver(engine)
        first, second, third = (
            make(engine, seed, timeout_s=timeout, arrival=now[0]) for seed, timeout in ((1, 5.0), (2, 8.0), (3, None))
        )
        driver.add(first, second, third)
        for _ in range(4):
            driver.step()
        now[0] += 4.9
        driver.step()
        assert not driver.end(first).finished
        now[0] += 0.2
        driver.step()
        error = driver.end(first).error
        assert isinstance(error, RequestTimeoutError)
        assert (error.field, error.limit) == ("timeout_s", 5.0)
        assert "running" in error.message
        assert driver.end(first).finish_reason == "abort"
        assert driver.end(first).token_ids
        second.spec = replace(second.spec, timeout_s=5.0)
        now[0] += 10
        driver.step()
        assert driver.end(second).finish_reason == "abort"
        driver.run()
        assert driver.end(third).finish_reason == "length"
        assert driver.scheduler.counters.timed_out == 2
        assert_nothing_lost(engine)


def test_time_that_passed_before_a_request_came_counts(llada, monkeypatch):
    """Its error says the caller's number, and how long the caller has waited."""
    now = [100.0]
    monkeypatch.setattr("shoal.runtime.scheduler.scheduler.time.monotonic", lambda: now[0])
    with make_engine(llada) as engine:
        driver = Driver(engine)
        request = make(engine, 1, timeout_s=1234567.5, waited_s=1234562.5, arrival=now[0])
        driver.add(request)
        now[0] += 4.9
        driver.step()
        assert not driver.end(request).finished
        now[0] += 0.2
        driver.step()
        error = driver.end(request).error
        assert isinstance(error, RequestTimeoutError)
        assert error.message == "not done within timeout_s = 1234567.5 seconds (it was running)"
        assert (error.limit, error.value) == (1234567.5, pytest.approx(1234567.6))
        assert_nothing_lost(engine)


def test_a_waiting_request_times_out_without_having_run(llada, monkeypatch):
    with make_engine(llada, max_running_requests=1) as engine:
        driver = Driver(engine)
        running, waiting = make(engine, 1), make(engine, 2, timeout_s=1e-6)
        driver.add(running)
        driver.step()
        driver.add(waiting)
        driver.step()
        end = driver.end(waiting)
        assert (end.finish_reason, end.nfe, end.token_ids) == ("abort", 0, ())
        assert end.error is not None
        assert "waiting" in end.error.message
        driver.run()
        assert_nothing_lost(engine)


def test_the_queue_has_a_limit_beyond_the_free_places(llada):
    with make_engine(llada, max_running_requests=2, max_queued_requests=3) as engine:
        driver = Driver(engine)
        requests = [make(engine, seed) for seed in range(5)]
        driver.add(*requests)
        with pytest.raises(QueueFullError) as caught:
            driver.scheduler.add(make(engine, 9))
        assert (caught.value.field, caught.value.value, caught.value.limit) == ("max_queued_requests", 3, 3)
        with pytest.raises(InvalidRequestError, match="in use"):
            driver.scheduler.add(requests[0])
        driver.step()
        with pytest.raises(QueueFullError):
            driver.scheduler.add(make(engine, 9))
        driver.run()
        assert driver.scheduler.counters.refused == 3
        driver.add(make(engine, 9))
        driver.run()
        assert all(outputs[-1].finish_reason == "length" for outputs in driver.outputs.values())
        assert_nothing_lost(engine)


def test_who_waits_for_a_running_request_s_capture_puts_nobody_back(llada):
    """Mode `lm` captures at the end: a newcomer with the same prompt waits for it, however important it is."""
    with make_engine(llada, max_running_requests=2) as engine:
        driver = Driver(engine)
        first, other = make(engine, 1, 0, "lm"), make(engine, 2, 0, "dual", max_new_tokens=64, threshold=None, steps=64)
        driver.add(first, other)
        driver.step()
        follower = make(engine, 1, 3, "lm")
        driver.add(follower)
        driver.run(500)
        assert [driver.end(request).finish_reason for request in (first, other, follower)] == ["length"] * 3
        assert driver.scheduler.counters.preemptions == 0
        assert driver.end(follower).cached_tokens >= 24
        assert_nothing_lost(engine)


def test_without_streaming_only_the_end_is_reported(llada):
    with make_engine(llada) as engine:
        driver = Driver(engine)
        quiet, loud = make(engine, 1, stream=False), make(engine, 1)
        driver.add(quiet, loud)
        driver.run()
        assert len(driver.outputs[quiet.rid]) == 1
        assert len(driver.outputs[loud.rid]) > 1
        assert driver.end(quiet).token_ids == driver.end(loud).token_ids


def test_log_lines_name_what_operators_look_for(llada, caplog):
    with (
        make_engine(llada, log_interval=2) as engine,
        caplog.at_level("INFO", logger="shoal.runtime.scheduler.counters"),
    ):
        engine.generate([tokens(24, 1)] * 2, SamplingParams(max_new_tokens=32, steps=32, ignore_eos=True))
    lines = [record.getMessage() for record in caplog.records]
    prefill = next(
        line for line in lines if line.startswith("Prefill batch, #new-seq: 1, #new-token: 24, #cached-token: 0,")
    )
    for part in ("token usage: 0.", "#running-req: 0", "#queue-req: 1", "input throughput (token/s): "):
        assert part in prefill
    decode = next(line for line in lines if line.startswith("Decode batch, #running-req: "))
    for part in ("#token: ", "token usage: 0.", "gen throughput (token/s): ", "#queue-req: 0"):
        assert part in decode
