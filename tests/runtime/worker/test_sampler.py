"""The sampler's functions: which masks are committed, to which tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.sampler import choose_commits, choose_tokens
from shoal.runtime.worker.schedule import commits_of_block

# Few distinct values, so that ties and equalities with the threshold come up.
confidences = st.lists(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=12)


def brute_force(values: list[float], rule: dict[str, Any], count: int | None) -> list[int]:
    """Take the most confident mask again and again, the earlier of equal ones, for as long as the rule says."""
    left, chosen = list(range(len(values))), list[int]()
    while left:
        best = max(left, key=lambda i: (values[i], -i))
        n = len(chosen) + 1
        if count is not None:
            go_on = n <= count
        elif "factor" in rule:
            go_on = values[best] >= 1 - rule["factor"] / (n + 1)
        else:
            go_on = values[best] >= rule.get("threshold", 0.9)
        if not go_on and chosen:
            break
        chosen.append(best)
        left.remove(best)
        if not go_on:
            break
    if "factor" in rule and count is None and len(left) == 1:
        chosen += left
    return sorted(chosen)


@given(values=confidences, threshold=st.sampled_from([0.25, 0.5, 0.6, 0.9, 1.0, None]))
def test_threshold_commits_all_that_reach_it_and_at_least_one(values, threshold):
    rule = {} if threshold is None else {"threshold": threshold}
    found = choose_commits(torch.tensor(values, dtype=torch.float64), SamplingParams(**rule), None)
    assert found.tolist() == brute_force(values, rule, None)
    assert found.dtype == torch.int64


@given(values=confidences, factor=st.sampled_from([0.01, 0.5, 0.75, 1.0, 2.0, 20.0]))
def test_factor_commits_while_the_nth_is_sure_enough(values, factor):
    found = choose_commits(torch.tensor(values, dtype=torch.float64), SamplingParams(factor=factor), None)
    assert found.tolist() == brute_force(values, {"factor": factor}, None)


@pytest.mark.parametrize(("values", "chosen"), [
    ([0.6, 0.3], [0, 1]), ([0.3], [0]), ([0.99, 0.2, 0.95], [0, 1, 2]), ([0.99, 0.2, 0.1], [0]), ([0.1, 0.2, 0.3], [2]),
])  # fmt: skip
def test_factor_leaves_no_mask_alone(values, chosen):
    """Fast-dLLM's loop over the ranks stops in front of the first mask that is not sure enough, or at the last one,
    which it commits in either case."""
    assert choose_commits(torch.tensor(values), SamplingParams(factor=1), None).tolist() == chosen


@given(values=confidences, count=st.integers(0, 14))
def test_a_quota_commits_that_many_and_at_least_one(values, count):
    found = choose_commits(torch.tensor(values), SamplingParams(steps=1, max_new_tokens=1, block_length=1), count)
    assert found.tolist() == brute_force(values, {}, max(1, count))


@given(masks=st.integers(1, 64), steps=st.integers(1, 64))
def test_quotas_of_a_block_add_up_and_differ_by_one_at_most(masks, steps):
    shares = list(commits_of_block(SamplingParams(), masks, steps)) + [0] * max(0, steps - masks)
    assert sum(shares) == masks
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def logits(rows: int = 6, vocabulary: int = 20) -> torch.Tensor:
    values = 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(5))
    values[:, 3] = -math.inf
    return values


@pytest.mark.parametrize("strategy", ["low_confidence", "margin", "entropy"])
def test_confidence_by_strategy(strategy):
    p = logits().double().softmax(1)
    first, second = p.sort(1, descending=True).values[:, :2].T
    entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(1)
    expected = {"low_confidence": first, "margin": first - second, "entropy": 1 - entropy / math.log(20)}[strategy]
    token, confidence = choose_tokens(logits(), SamplingParams(strategy=strategy), None)
    assert torch.equal(token, p.argmax(1))
    torch.testing.assert_close(confidence.double(), expected, rtol=1e-5, atol=1e-6)


def test_random_confidence_comes_of_the_generator_alone():
    params = SamplingParams(strategy="random")
    first = choose_tokens(logits(), params, torch.Generator().manual_seed(1))
    again = choose_tokens(logits() * 2, params, torch.Generator().manual_seed(1))
    other = choose_tokens(logits(), params, torch.Generator().manual_seed(2))
    assert torch.equal(first[0], logits().argmax(1))
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_temperature_draws_from_the_softmax_and_never_what_is_impossible():
    """20,000 draws of one row: frequencies within 5 standard deviations of softmax(logits / T)."""
    row, temperature, draws = logits(1), 1.7, 20_000
    params = SamplingParams(temperature=temperature)
    token, confidence = choose_tokens(row.expand(draws, -1), params, torch.Generator().manual_seed(3))
    frequency = torch.bincount(token, minlength=20).double() / draws
    p = (row[0].double() / temperature).softmax(0)
    assert frequency[3] == 0
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 1e-12).all()
    undisturbed = row[0].double().softmax(0)
    torch.testing.assert_close(confidence.double(), undisturbed[token], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e30, 1e-30, 1e-300])
def test_no_temperature_draws_what_is_impossible(temperature):
    """Above the limit noise becomes infinite in fp32, and infinity less infinity the best of all."""
    params = SamplingParams(temperature=temperature)
    token, _ = choose_tokens(logits(300), params, torch.Generator().manual_seed(0))
    assert not (token == 3).any()
    assert temperature > 1 or torch.equal(token, logits(300).argmax(1))
    with pytest.raises(InvalidRequestError, match=r"temperature is 1e\+31; it must be .* at most 1e\+30"):
        SamplingParams(temperature=1e31)


def test_a_small_temperature_is_nearly_greedy():
    token, _ = choose_tokens(logits(), SamplingParams(temperature=1e-4), torch.Generator().manual_seed(0))
    assert torch.equal(token, logits().argmax(1))
