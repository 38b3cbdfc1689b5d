"""No request starves: neither behind higher priorities, nor behind better fits for the cache. Driven step by step."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.request import Request
from shoal.runtime.scheduler.admission import POLICY_SHARE

from ..tiny import assert_nothing_lost, make_engine
from .test_priorities import Driver, make

OVERTAKES = 3


class Flood:
    """Keeps `count` requests of a kind under way; each new one comes as soon as one of them has ended."""

    def __init__(self, driver: Driver, engine: Engine, count: int, priority: int):
        self.driver, self.engine, self.count, self.priority = driver, engine, count, priority
        self.sent: list[Request] = []

    def fill(self) -> None:
        while sum(request.finish_reason is None for request in self.sent) < self.count:
            request = make(self.engine, len(self.sent) + 100, self.priority, threshold=None, steps=4)
            self.sent.append(request)
            self.driver.add(request)

    def until(self, request: Request, limit: int = 100) -> None:
        """Go on until `request` has ended; fails when it has not after `limit` requests of the flood."""
        while request.finish_reason is None:
            assert len(self.sent) < limit, "it starves"
            self.fill()
            self.driver.step()


@pytest.mark.parametrize("policy", ["lpm", "fcfs", "dfs-weight"])
def test_a_waiting_request_is_overtaken_so_many_times_and_no_more(llada, policy):
    options: dict[str, Any] = {"max_running_requests": 1, "schedule_policy": policy, "max_overtakes": OVERTAKES}
    with make_engine(llada, **options) as engine:
        driver = Driver(engine)
        flood = Flood(driver, engine, 3, priority=1000)
        flood.fill()
        low = make(engine, 1, -5)
        driver.add(low)
        flood.fill()
        driver.step()
        before = 3  # they came earlier: going first, they overtake nobody
        flood.until(low)
        assert driver.order.index(low.rid) == before + OVERTAKES
        assert low.tally.preemptions == 0
        assert_nothing_lost_after(driver, engine)


def test_a_running_request_is_preempted_so_many_times_and_no_more(llada):
    with make_engine(llada, max_running_requests=1, max_overtakes=OVERTAKES) as engine:
        driver = Driver(engine)
        low = make(engine, 1, threshold=None, steps=32)
        driver.add(low)
        driver.step()
        floods = 0
        while low.finish_reason is None:
            assert floods < 50, "it starves"
            if driver.scheduler.num_running == 1 and low.tally.admitted_at and not driver.scheduler.num_waiting:
                high = make(engine, 100 + floods, 1000, threshold=None, steps=4)
                driver.add(high)
                floods += 1
            driver.step()
        assert 0 < low.tally.preemptions <= OVERTAKES
        assert driver.end(low).finish_reason == "length"
        driver.run()
        assert_nothing_lost(engine)


def test_two_places_and_three_clients_of_the_highest_priority(llada):
    """Every ordinary request ends while the flood goes on."""
    with make_engine(llada, max_running_requests=2, max_overtakes=OVERTAKES) as engine:
        driver = Driver(engine)
        flood = Flood(driver, engine, 3, priority=1 << 31)
        victims = [make(engine, seed) for seed in range(3)]
        driver.add(*victims)
        for victim in victims:
            flood.until(victim)
        assert all(driver.end(victim).finish_reason == "length" for victim in victims)
        assert all(victim.tally.preemptions <= OVERTAKES for victim in victims)
        assert_nothing_lost_after(driver, engine)


def test_better_fits_for_the_cache_do_not_starve_a_request_either(llada):
    """Policy lpm: a prompt that is in the cache goes first, for ever if nobody counted."""
    rule: dict[str, Any] = {"mode": "bicache", "threshold": None, "steps": 4}
    with make_engine(llada, max_running_requests=1, max_overtakes=1) as engine:
        driver = Driver(engine)
        hot = make(engine, 7, **rule)
        driver.add(hot)
        driver.run()
        stranger = make(engine, 1, **rule)
        first = make(engine, 7, **rule)
        driver.add(first, stranger)
        sent = [first]
        while stranger.finish_reason is None:
            assert len(sent) < 100, "it starves"
            if sent[-1].finish_reason is not None or not driver.scheduler.num_waiting > 1:
                sent.append(make(engine, 7, **rule))
                driver.add(sent[-1])
            driver.step()
        overtook = driver.order.index(stranger.rid) - 2  # `hot` and `first` came before it
        assert overtook == POLICY_SHARE
        driver.run()
        assert_nothing_lost(engine)


def test_an_old_request_preempts_nobody_of_higher_priority(llada):
    with make_engine(llada, max_running_requests=1, max_overtakes=1) as engine:
        driver = Driver(engine)
        high = make(engine, 2, 5)
        driver.add(high)
        driver.step()
        low = make(engine, 1)
        low.tally.age = 10 * POLICY_SHARE
        driver.add(low)
        other = make(engine, 3, 5)
        driver.add(other)
        driver.run()
        assert driver.order == [high.rid, low.rid, other.rid]
        assert high.tally.preemptions == 0


@pytest.mark.parametrize("count", [1, 2])
def test_block_starts_of_others_do_not_starve_block_steps(llada, count):
    """A request of one step a block is a refresh at every forward; some of them always have one to run."""
    with make_engine(llada, max_running_requests=3) as engine:
        driver = Driver(engine)
        slow = make(engine, 1, threshold=None, steps=32)
        driver.add(slow)
        driver.step()
        flood = Flood(driver, engine, count, priority=0)
        flood.until(slow, limit=60)
        assert driver.end(slow).nfe == 32
        assert_nothing_lost_after(driver, engine)


def assert_nothing_lost_after(driver: Driver, engine: Engine) -> None:
    driver.run()
    assert_nothing_lost(engine)
