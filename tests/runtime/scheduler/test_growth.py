"""Growing canvases in a pool that is too small for all of them: nothing is lost, nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import PoolTooSmallError
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.intake import Intake
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.scheduler.build import build_scheduler
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.null import build_null_worker

from ..tiny import assert_nothing_lost, by_hand, make_engine, open_requests, tokens

BLOCK, PAGE = 8, 4


@st.composite
def asked(draw: st.DrawFn) -> list[tuple[int, dict[str, Any]]]:
    """Requests: the step at which each comes, and what it asks for."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        mode = draw(st.sampled_from(["none", "prefix", "dual", "lm", "bicache"]))
        options = {
            "family": draw(st.integers(0, 2)), "length": draw(st.integers(1, 40)), "mode": mode,
            "size": draw(st.integers(1, 90)), "window": draw(st.sampled_from([None, 0, 3, 8, 20])),
            "schedule": "full" if mode == "none" else draw(st.sampled_from(["full", "settled"])),
            "every": draw(st.sampled_from([None, 2])), "priority": draw(st.integers(0, 2)),
        }  # fmt: skip
        found.append((draw(st.integers(0, 30)), options))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=asked(), room=st.integers(0, 200), running=st.integers(1, 8), interval=st.sampled_from([0, 1, 4]),
    aborted=st.integers(0, 40), budget=st.sampled_from([1, 60, 400]), target=st.sampled_from([None, 1, 1000]),
)  # fmt: skip
def test_every_request_ends_and_no_page_is_lost(asked, room, running, interval, aborted, budget, target):
    """Any mixture of windows, schedules, modes and priorities, in any pool that holds the largest request."""
    need = max([4 * PAGE, *(-(-(options["length"] + options["size"]) // PAGE) * PAGE for _, options in asked)])
    config = EngineConfig(
        kv_cache_tokens=need + room, page_size=PAGE, block_length=BLOCK, max_running_requests=running, depth=8,
        refresh_interval=interval, max_refresh_tokens=budget, reuse_margin=0, check_invariants=True, device="cpu",
        target_first_text_ms=target, max_steps_per_message=1 if target is None else 4,
    )  # fmt: skip
    worker, facts = build_null_worker(config, 3)
    assert DepthProfile.from_json(facts.depth_profile).max_depth == 8
    scheduler = build_scheduler(config, facts, worker)
    waiting = sorted(enumerate(asked), key=lambda pair: pair[1][0])
    requests: dict[str, Request] = {}
    ended: dict[str, Any] = {}
    for step in range(4000):
        while waiting and waiting[0][1][0] <= step:
            number, (_, options) = waiting.pop(0)
            request = make_request(facts, config, number, options)
            requests[request.rid] = request
            scheduler.add(request)
        if step == aborted and requests:
            output = scheduler.abort("r0")
            if output is not None:
                ended["r0"] = output
        for output in scheduler.step():
            if output.finished:
                assert output.rid not in ended
                ended[output.rid] = output
        if not waiting and not scheduler.has_work:
            break
    assert set(ended) == set(requests)
    for rid, output in ended.items():
        if output.finish_reason != "abort":
            assert output.finish_reason == "length"
            assert output.completion_tokens == requests[rid].spec.sampling.max_new_tokens
    scheduler.check()
    scheduler.memory.flush()
    assert scheduler.memory.kv.num_free == scheduler.memory.kv.num_pages
    assert scheduler.memory.boundary.num_free == scheduler.memory.boundary.num_pages


def make_request(facts: Any, config: EngineConfig, number: int, options: dict[str, Any]) -> Request:
    """A request of `asked`, as intake makes it."""
    params = SamplingParams(
        max_new_tokens=options["size"], canvas_window=options["window"], refresh_schedule=options["schedule"],
        full_refresh_every=options["every"], ignore_eos=True,
    )  # fmt: skip
    given = GenerateInput(
        prompt=tokens(40, options["family"])[: options["length"]], rid=f"r{number}", sampling=params,
        cache_mode=options["mode"], priority=options["priority"],
    )  # fmt: skip
    (spec,) = Intake(config, facts, None).specs([given])
    return Request(spec, TextStream(None, ()))


def run_together(engine: Any, requests: list[Request]) -> list[Any]:
    """Step by hand until all have ended; their terminal outputs."""
    scheduler = by_hand(engine)
    ends: dict[str, Any] = {}
    for request in requests:
        scheduler.add(request)
    for _ in range(2000):
        if not scheduler.has_work:
            return [ends[request.rid] for request in requests]
        for output in scheduler.step():
            if output.finished:
                ends[output.rid] = output
    raise AssertionError("not all ended")


@pytest.mark.parametrize("mode", ["none", "prefix", "dual"])
@pytest.mark.parametrize("schedule", ["full", "settled"])
def test_answers_do_not_depend_on_company_or_memory(folder, mode, schedule):
    """Alone in a large pool, and six together in one that holds two of them: the same answers."""
    if (mode, schedule) == ("none", "settled"):
        pytest.skip("none has no refreshes")
    prompts = [tokens(20, seed) for seed in range(6)]
    params = SamplingParams(
        max_new_tokens=40, threshold=0.5, canvas_window=8, refresh_schedule=schedule, ignore_eos=True
    )
    with make_engine(folder) as engine:
        alone = [engine.generate(prompt, params, cache_mode=mode) for prompt in prompts]
    with make_engine(folder, kv_cache_tokens=136) as engine:
        together = run_together(engine, open_requests(engine, prompts, params, mode))
        assert sum(output.preemptions for output in together) > 0
        assert_nothing_lost(engine)
    for one, many in zip(alone, together, strict=True):
        if schedule == "full" or not many.preemptions:
            assert many.token_ids == one.token_ids
        if not many.preemptions:
            assert (many.nfe, many.computed_token_layers) == (one.nfe, one.computed_token_layers)


def test_the_oldest_is_never_preempted_by_growth(llada):
    with make_engine(llada, kv_cache_tokens=136) as engine:
        params = SamplingParams(max_new_tokens=80, threshold=1.0, canvas_window=0, ignore_eos=True)
        outputs = run_together(engine, open_requests(engine, [tokens(20, seed) for seed in range(5)], params, "dual"))
        assert outputs[0].preemptions == 0
        assert {output.completion_tokens for output in outputs} == {80}


def test_a_higher_priority_takes_pages_from_a_lower_one(llada):
    with make_engine(llada, kv_cache_tokens=136) as engine:
        params = SamplingParams(max_new_tokens=80, threshold=1.0, canvas_window=0, ignore_eos=True)
        prompts = [tokens(20, seed) for seed in range(3)]
        requests = [
            open_requests(engine, [prompt], params, "dual", priority=priority)[0]
            for prompt, priority in zip(prompts, (0, 0, 3), strict=True)
        ]
        outputs = run_together(engine, requests)
        assert outputs[2].preemptions == 0
        assert outputs[0].preemptions + outputs[1].preemptions > 0


def test_more_requests_run_than_whole_canvases_would_fit(llada):
    """Memory is taken by what is written: a pool for two whole canvases runs eight requests at once."""
    params = SamplingParams(max_new_tokens=100, threshold=1.0, canvas_window=8, ignore_eos=True)
    with make_engine(llada, kv_cache_tokens=320, max_running_requests=8) as engine:
        scheduler = by_hand(engine)
        for request in open_requests(engine, [tokens(12, seed) for seed in range(8)], params, "dual"):
            scheduler.add(request)
        scheduler.step()
        assert scheduler.num_running == 8
        while scheduler.has_work:
            scheduler.step()
        assert_nothing_lost(engine)


def test_pins_that_leave_no_room_end_the_request_with_an_error(llada):
    """Pinned while it runs: the request fails by name instead of waiting for ever."""
    with make_engine(llada, kv_cache_tokens=160) as engine:
        scheduler = by_hand(engine)
        prompt = tokens(64, 1)
        run_together(engine, open_requests(engine, [prompt], SamplingParams(max_new_tokens=0), "bicache"))
        params = SamplingParams(max_new_tokens=96, threshold=1.0, canvas_window=0, ignore_eos=True)
        (request,) = open_requests(engine, [tokens(40, 2)], params, "dual")
        scheduler.add(request)
        scheduler.step()
        assert scheduler.memory.tree.pin(prompt, scheduler.planner.namespace(open_requests(engine, [prompt], None)[0]))
        ends = []
        for _ in range(500):
            ends += [output for output in scheduler.step() if output.finished]
            if not scheduler.has_work:
                break
        (end,) = ends
        assert end.finish_reason == "error"
        assert isinstance(end.error, PoolTooSmallError)
        scheduler.check()
