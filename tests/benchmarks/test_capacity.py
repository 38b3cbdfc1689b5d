"""The search for a capacity, the traffic, and the summary of the measurements of tensor parallelism."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from benchmarks.capacity import Search, trial
from benchmarks.load.client import Decoding, Done, quantile
from benchmarks.load.traffic import MEDIAN_INPUT, MEDIAN_OUTPUT, Planned, Traffic, plan
from benchmarks.tensor_parallel import summarize

TRAFFIC = Traffic(1.0, 0.8, 200, 4, 4, 1000, 100_000)


@pytest.mark.parametrize(("start", "limit"), [(1.0, 7.3), (1.0, 0.3), (2.0, 2.0)])
def test_the_search_closes_in_on_the_limit(start, limit):
    search = Search(start, refinements=6)
    while search.next is not None:
        search.tell(search.next, search.next <= limit)
    assert search.passed <= limit < search.failed
    assert search.failed / search.passed < 1.05


def test_the_search_gives_up_far_below_its_start():
    search, tried = Search(8.0, refinements=6), []
    while search.next is not None:
        tried.append(search.next)
        search.tell(search.next, False)
    assert tried == [8.0, 4.0, 2.0, 1.0]
    assert search.passed == 0.0


def test_traffic_has_its_medians_shares_and_rate():
    items = plan(TRAFFIC, 2.0, 4000, seed=0)
    heads = Counter(tuple(item.prompt[:9]) for item in items)
    common = {head for head, count in heads.items() if count > 100}
    shared = [item for item in items if tuple(item.prompt[:9]) in common]
    assert len(common) == 4
    assert len(shared) / len(items) == pytest.approx(0.8, abs=0.03)
    assert np.median([len(item.prompt) - 200 for item in shared]) == pytest.approx(MEDIAN_INPUT, rel=0.08)
    assert np.median([item.new_tokens for item in items]) == pytest.approx(MEDIAN_OUTPUT, rel=0.08)
    assert len(items) / items[-1].at == pytest.approx(2.0, rel=0.05)


def test_a_faster_rate_sends_the_same_requests_sooner():
    slow, fast = plan(TRAFFIC, 1.0, 20, seed=1), plan(TRAFFIC, 4.0, 20, seed=1)
    assert [(item.prompt, item.new_tokens) for item in slow] == [(item.prompt, item.new_tokens) for item in fast]
    assert [item.at for item in slow] == pytest.approx([4 * item.at for item in fast])


def test_no_request_exceeds_the_longest():
    traffic = Traffic(1.0, 1.0, 300, 1, 4, 1000, 500)
    assert all(len(item.prompt) + item.new_tokens <= 500 for item in plan(traffic, 1.0, 200, seed=2))


def test_a_trial_fails_by_an_error_or_a_slow_request():
    good = [Done(0.1, 0.5, 32, 16)] * 99
    assert trial([*good, Done(0.1, 0.6, 32, 16)], 10.0, (0.2, 1.0))["passes"] == 1
    assert trial([*good, Done(0.3, 0.5, 32, 16)] * 2, 10.0, (0.2, 1.0))["passes"] == 1  # p99: one in a hundred may
    assert trial([*good, *[Done(0.3, 0.5, 32, 16)] * 2], 10.0, (0.2, 1.0))["passes"] == 0
    assert trial([*good, Done(math.inf, math.inf, 0, 0, "ReadError")], 10.0, (0.2, 1.0))["passes"] == 0
    assert quantile([1.0, 2.0, math.inf], 50) == 2.0


def test_steps_of_a_body_are_spread_over_its_blocks():
    body = Decoding("dual", block=32, nfe=8).body(Planned(0.0, [5], 70))
    assert body["sampling_params"] == {"max_new_tokens": 70, "block_length": 32, "steps": 24, "ignore_eos": True}


def test_a_summary_has_ratios_and_differences(tmp_path):
    header = "part,batch,tokens_per_s,block_step_ms,refresh_ms\n"
    (tmp_path / "tensor_parallel_tp1.csv").write_text(f"{header}sum plain,,,,\nrequests,1,100,5.0,40\n")
    assert summarize(tmp_path, "tiny") == {"two ranks over one": {}}
    (tmp_path / "tensor_parallel_tp2.csv").write_text(f"{header}requests,1,160,2.5,20\n")
    for size, values in ((1, [-1.0, -2.0]), (2, [-1.0, -2.5])):
        text = json.dumps({"tokens": [[1, 2]], "log_probabilities": values})
        (tmp_path / f"tiny_tp{size}.json").write_text(text)
    assert summarize(tmp_path, "tiny") == {
        "two ranks over one": {"block step, batch 1": 2.0, "refresh, batch 1": 2.0, "requests, batch 1": 1.6},
        "tiny": {"equal_tokens": True, "largest_difference_of_log_probabilities": 0.5},
    }
