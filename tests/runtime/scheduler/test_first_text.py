"""A target for first texts: what it lets run together, who goes first, and that it changes no answer.

Time is a number that the worker moves on: every token-layer of a refresh and every block step takes its time.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from shoal.runtime.config import EngineConfig
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.forward import Forward, ForwardItem, StepResult
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.intake import Intake
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.scheduler.build import build_scheduler
from shoal.runtime.scheduler.pace import Pace
from shoal.runtime.scheduler.planned import Planned
from shoal.runtime.scheduler.scheduler import Scheduler
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.null import build_null_worker

from ..tiny import tokens

PROMPT, NEW, BLOCK, TOKENS = 64, 32, 8, 4
REFRESH_S, STEP_S = 0.1, 0.01
"""Of one request's first forward, and of a block step."""


class Clock:
    """Seconds, as everything reads them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@dataclass
class Bench:
    """A scheduler over a worker whose forwards take their time.

    Attributes:
        ran: (whether they are refreshes, ids, seconds) of each forward.
        first: seconds from a request's arrival to its first tokens.
    """

    clock: Clock
    options: dict[str, Any]
    ran: list[tuple[bool, list[str], float]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    ended: dict[str, RequestOutput] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    scheduler: Scheduler = field(init=False)
    facts: Facts = field(init=False)
    config: EngineConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = EngineConfig(
            device="cpu", depth=8, block_length=BLOCK, check_invariants=True, max_steps_per_message=8,
            **{"kv_cache_tokens": 8192, **self.options},
        )  # fmt: skip
        worker, self.facts = build_null_worker(self.config, TOKENS)
        layers = self.facts.model.num_layers
        token_layer_s = REFRESH_S / ((PROMPT + NEW) * layers)
        plain = worker.forward

        def forward(message: Forward) -> list[StepResult]:
            results = plain(message)
            refreshes = any(request.needs_refresh for request in map(self.requests.get, rids(message)) if request)
            steps = max(result.nfe for result in results)
            cost = sum(item.token_layers(layers) for item in message.items) * token_layer_s
            seconds = cost + STEP_S * (steps - 1) if refreshes else STEP_S * steps
            self.clock.now += seconds
            self.ran.append((refreshes, rids(message), seconds))
            return results

        worker.forward = forward  # type: ignore[method-assign]
        self.scheduler = build_scheduler(self.config, self.facts, worker)

    def ask(self, name: str, new: int = NEW, mode: Any = "dual", **options: Any) -> None:
        """A request whose prompt nobody shares."""
        params = SamplingParams(max_new_tokens=new, ignore_eos=True)
        prompt = tokens(PROMPT, len(self.requests))
        given = GenerateInput(prompt=prompt, rid=name, sampling=params, cache_mode=mode, **options)
        (spec,) = Intake(self.config, self.facts, None).specs([given])
        self.requests[name] = Request(spec, TextStream(None))
        self.scheduler.add(self.requests[name])

    def step(self) -> None:
        for output in self.scheduler.step():
            if output.token_ids:
                self.first.setdefault(output.rid, self.clock.now - self.requests[output.rid].spec.arrival)
            if output.finished:
                self.ended[output.rid] = output

    def run(self) -> None:
        """On to the end of all requests."""
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert set(self.ended) == set(self.requests)
        assert all(output.error is None for output in self.ended.values())

    def refreshes(self) -> list[tuple[list[str], float]]:
        """(ids, seconds) of the refreshes."""
        return [(ids, seconds) for refresh, ids, seconds in self.ran if refresh]


def rids(message: Forward) -> list[str]:
    return [item.rid for item in message.items]


def burst(clock: Clock, count: int = 12, **options: Any) -> Bench:
    """So many requests at once, to their ends."""
    bench = Bench(clock, options)
    for number in range(count):
        bench.ask(f"r{number}")
    bench.run()
    return bench


def test_a_forward_takes_a_quarter_of_the_target(clock):
    """400 ms of 1,600: three first forwards of 100 ms and what fits beside them, after one that is measured."""
    plain, bound = burst(clock), burst(clock, target_first_text_ms=1600)
    assert len(plain.refreshes()[0][0]) == 12
    assert [len(ids) for ids, _ in bound.refreshes()][:4] == [1, 4, 4, 3]
    assert all(seconds <= 0.4 + 1e-9 for _, _, seconds in bound.ran)
    assert max(seconds for _, _, seconds in plain.ran) > 1.0


def test_first_texts_come_earlier_and_answers_stay(clock):
    plain, bound = burst(clock), burst(clock, target_first_text_ms=1000)
    assert statistics.median(bound.first.values()) < 0.7 * statistics.median(plain.first.values())
    for rid, output in plain.ended.items():
        again = bound.ended[rid]
        assert (again.token_ids, again.nfe, again.computed_token_layers) == (
            output.token_ids, output.nfe, output.computed_token_layers
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_a_request_larger_than_its_share_runs_alone(clock, mode):
    bench = Bench(clock, {"target_first_text_ms": 8})
    for number in range(5):
        bench.ask(f"r{number}", mode=mode)
    bench.run()
    assert {len(ids) for ids, _ in bench.refreshes()} == {1}


def test_a_new_request_waits_for_two_forwards_at_most(clock):
    """Beside that in flight: a message of block steps and a batch of block starts, however many requests run."""
    bench = Bench(clock, {"target_first_text_ms": 100})
    for number in range(10):
        bench.ask(f"long{number}", new=560)
    waited: list[int] = []
    for number in range(250):
        bench.step()
        if number >= 40 and number % 11 == 0:
            bench.ask(f"short{number}", new=BLOCK)
            before = len(bench.ran)
            while not any(f"short{number}" in ids for _, ids, _ in bench.ran[before:]):
                bench.step()
            waited.append(len(bench.ran) - before - 1)
    assert bench.scheduler.num_running > 5
    assert len(waited) > 15
    assert max(waited) <= 2
    bench.run()


def test_new_requests_do_not_starve_running_ones(clock):
    """Short requests wait at all times, one at a time fits a refresh: a long one gets every ninth refresh.

    After four refreshes comes a block step, which ends its block.
    """
    bench = Bench(clock, {"target_first_text_ms": 100})
    bench.ask("long", new=10 * BLOCK)
    made = 0
    while "long" not in bench.ended:
        while bench.scheduler.num_waiting < 3:
            made += 1
            bench.ask(f"short{made}", new=0)
        bench.step()
        assert made < 200
    refreshed = [number for number, (ids, _) in enumerate(bench.refreshes()) if "long" in ids]
    assert len(refreshed) == 10
    assert 9 <= max(after - before for before, after in itertools.pairwise(refreshed)) <= 8 + 4
    bench.run()


def test_without_a_target_nothing_is_bounded_or_measured():
    pace = Pace(1000, 8, 16)
    assert pace.max_token_layers == math.inf
    assert pace.combines
    assert pace.newcomers_in_row == 0
    assert (pace.steps(others_wait=False), pace.steps(others_wait=True)) == (8, 1)
    assert pace.numbers() == {}


def test_one_stall_changes_no_bound(clock):
    """Also the first forward may stall, while kernels are compiled."""
    pace = Pace(1000, 8, 16, target_s=0.4)
    item = ForwardItem("r", 0, 10, 10, 0, 10, join=0)
    refresh, step = Planned(Forward((item,)), refreshes=True), Planned(Forward((item,)))
    assert pace.fitting([item, item]) == 1
    assert pace.steps(others_wait=False) == 1
    for stall in (9.0, 0.0, 0.0, 9.0, 0.0):
        pace.begin()
        clock.now += 160e-6 + stall
        pace.end(refresh, [])
        pace.begin()
        clock.now += 0.038 + stall
        pace.end(step, [StepResult("r", nfe=2)])
    assert pace.max_token_layers == pytest.approx(0.1 / 1e-6)
    assert pace.steps(others_wait=False) == 5
    assert pace.numbers() == {
        "target_first_text_s": 0.4, "refresh_token_layer_s": pytest.approx(1e-6), "block_step_s": pytest.approx(0.019),
        "refresh_token_layers_limit": pytest.approx(1e5),
    }  # fmt: skip
