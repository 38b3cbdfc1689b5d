"""Sampling as published: against plain references, exactly where greedy and by distribution where drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal import SamplingParams
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.resolve import resolved
from shoal.runtime.worker.cpu.logit_rules import LogitRules
from shoal.runtime.worker.cpu.sampler import choose_commits, choose_tokens, cut, tempered
from shoal.runtime.worker.schedule import commits_of_block, transfer_shares

from ..tiny import EOS, make_engine, tokens

DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(logits: list[float], top_k: int, top_p: float, min_p: float, temperature: float) -> dict[int, float]:
    """Token -> probability that is left to draw from, by the words of the documentation, in float64."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    p = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(p)), key=lambda i: -p[i])
    left = []
    for place, token in enumerate(order):
        enough = place > 0 and sum(p[other] for other in order[:place]) > top_p
        if not enough and (top_k <= 0 or place < top_k) and p[token] >= min_p * max(p):
            left.append(token)
    return {token: p[token] / sum(p[other] for other in left) for token in left}


def chi_squared_is_fine(drawn: Tensor, expected: dict[int, float]) -> bool:
    counts = torch.bincount(drawn).tolist()
    assert {token for token, count in enumerate(counts) if count} <= set(expected)
    total = sum(counts)
    statistic = 0.0
    for token, p in expected.items():
        seen = counts[token] if token < len(counts) else 0
        statistic += (seen - total * p) ** 2 / (total * p)
    freedom = len(expected) - 1
    return statistic < freedom + 4.5 * math.sqrt(2 * freedom) + 8


LOGITS = [2.0, 1.7, 0.4, 1.1, -0.6, 0.9, -2.0, 0.1]
CUTS: list[dict[str, Any]] = [
    {}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_p": 0.9, "top_k": 5}, {"top_k": 6, "min_p": 0.25},
    {"top_p": 0.8, "top_k": 4, "min_p": 0.2}, {"top_k": 100}, {"top_p": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("ranking", ["model", "sampled"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("options", CUTS, ids=str)
def test_draws_follow_the_distribution(options: dict[str, Any], temperature: float, ranking: str) -> None:
    top_k, top_p, min_p = options.get("top_k", 0), options.get("top_p", 1.0), options.get("min_p", 0.0)
    expected = kept(LOGITS, top_k, top_p, min_p, temperature)
    params = SamplingParams(temperature=temperature, ranking=ranking, **options)
    drawn, confidence = choose_tokens(torch.tensor(LOGITS).repeat(DRAWS, 1), params, generator())
    assert chi_squared_is_fine(drawn, expected)
    plain = torch.tensor(LOGITS).double().softmax(-1)
    for token in set(drawn.tolist()):
        # LLaDA ranks positions by the undisturbed logits, Dream by what it draws from.
        right = expected[token] if ranking == "sampled" else float(plain[token])
        assert confidence[drawn == token][0] == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("strategy", ["margin", "entropy"])
def test_margin_and_entropy_of_the_tempered_and_cut_distribution(strategy: str) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, ranking="sampled", strategy=strategy)
    _, found = choose_tokens(torch.tensor(LOGITS)[None], params, generator())
    p = sorted(kept(LOGITS, 0, 0.9, 0.0, 0.7).values(), reverse=True)
    entropy = -sum(x * math.log(x) for x in p)
    right = p[0] - p[1] if strategy == "margin" else 1 - entropy / math.log(len(LOGITS))
    assert float(found[0]) == pytest.approx(right, abs=1e-6)


def test_top_k_of_one_is_greedy() -> None:
    logits = torch.randn(50, 30, generator=generator())
    drawn, _ = choose_tokens(logits, SamplingParams(temperature=1.3, top_k=1), generator())
    assert torch.equal(drawn, logits.argmax(-1))
    assert not SamplingParams(temperature=1.3, top_k=1).draws


def test_a_cut_keeps_the_best_whatever_it_says() -> None:
    logits = torch.randn(20, 30, generator=generator(1))
    for options in ({"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}):
        left = cut(tempered(logits, 0.7), SamplingParams(temperature=0.7, **options))
        assert torch.equal(left.isfinite(), torch.nn.functional.one_hot(logits.argmax(-1), 30).bool())


# Schedules


def dream_reference(masks: int, steps: int, eps: float) -> list[int]:
    """Dream's loop in its own words: commits of each step, zeros left out."""
    times = torch.linspace(1, eps, steps + 1)
    counts = []
    for step in range(steps):
        left = torch.tensor(float(masks))
        count = int(left * (1 - times[step + 1] / times[step])) if step < steps - 1 else int(left)
        masks -= count
        counts.append(count)
    return [count for count in counts if count]


@pytest.mark.parametrize("masks", [1, 7, 32, 128])
@pytest.mark.parametrize("steps", [1, 3, 32, 100, 512])
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_the_linear_schedule_is_dreams(masks: int, steps: int, eps: float) -> None:
    params = SamplingParams(schedule="linear", eps=eps, steps=steps)
    counts = commits_of_block(params, masks, steps)
    assert list(counts) == dream_reference(masks, steps, eps)
    assert sum(counts) == masks


def test_origin_commits_by_chance_and_all_at_the_end() -> None:
    params = SamplingParams(strategy="origin", steps=4)
    shares = transfer_shares(params.eps, 4)
    confidence = torch.rand(DRAWS, generator=generator())
    taken = choose_commits(confidence, params, 3, generator(), float(shares[1]))
    assert len(taken) / DRAWS == pytest.approx(float(shares[1]), abs=0.02)
    assert len(choose_commits(confidence, params, 3, generator(), float(shares[-1]))) == DRAWS


def test_alg_temp_draws_masks_without_replacement() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.1, 0.7])
    params, draw = SamplingParams(steps=2, alg_temp=0.4), generator()
    pairs = [tuple(choose_commits(confidence, params, 2, draw).tolist()) for _ in range(4000)]
    p = (confidence.double() / 0.4).softmax(-1).tolist()
    expected = {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a in range(4) for b in range(a + 1, 4)}
    names = sorted(expected)
    assert chi_squared_is_fine(
        torch.tensor([names.index(pair) for pair in pairs]), {i: expected[pair] for i, pair in enumerate(names)}
    )


def test_names_of_published_strategies() -> None:
    assert SamplingParams(strategy="maskgit_plus").strategy == "low_confidence"
    assert SamplingParams(strategy="topk_margin").strategy == "margin"
    for options in ({"strategy": "origin"}, {"alg_temp": 0.1}):
        with pytest.raises(InvalidRequestError, match="give steps"):
            SamplingParams(**options)


# Rules on logits


def test_penalties_and_biases_against_a_loop() -> None:
    params = SamplingParams(
        repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 2.0, 7: -100},
        eos_penalty=1.25, min_tokens=4,
    )  # fmt: skip
    logits = torch.randn(3, 12, generator=generator(3))
    prompt, canvas = [1, 1, 4], [5, -1, 5, 8, -1, -1, 4]
    places = [1, 4, 5]
    rules = LogitRules(params, eos=9, end_ids=frozenset({9, 10}), stop_ids=frozenset({9, 10, 11}))
    found = rules.apply(logits, np.array(places), torch.tensor(prompt), np.array(canvas))
    for row, place in enumerate(places):
        for token in range(12):
            x = float(logits[row, token])
            if token in prompt or token in canvas:
                x = x / 1.5 if x > 0 else x * 1.5
            x -= 0.5 * canvas.count(token) + 0.25 * (token in canvas)
            x += {3: 2.0, 7: -100.0}.get(token, 0.0)
            x -= 1.25 * (token in (9, 10))
            if place < 4 and token in (9, 10, 11):
                x = -math.inf
            assert float(found[row, token]) == pytest.approx(x, abs=1e-5)


def test_the_eos_options_of_lladas_evaluation() -> None:
    logits = torch.zeros(2, 6)
    logits[0, 4] = logits[1, 2] = 5.0
    rules = LogitRules(SamplingParams(logits_eos_inf=True), eos=4, end_ids=frozenset({4, 5}), stop_ids=frozenset())
    none = np.full(2, -1)
    found = rules.apply(logits, np.arange(2), torch.tensor([], dtype=torch.int64), none)
    assert found[:, 4].tolist() == [-math.inf] * 2
    assert found[:, 5].isfinite().all()
    params = SamplingParams(confidence_eos_eot_inf=True, steps=2)
    rules = LogitRules(params, eos=4, end_ids=frozenset({4, 5}), stop_ids=frozenset())
    token, confidence = choose_tokens(logits * 3, params, generator())
    assert choose_commits(rules.last(token, confidence), params, 1).tolist() == [1]


def test_min_tokens_and_biases_on_the_engine(llada: Any) -> None:
    prompt = tokens(12, seed=3)
    with make_engine(llada) as engine:
        always = {EOS: 100.0}
        assert engine.generate(prompt, SamplingParams(max_new_tokens=24, logit_bias=always)).completion_tokens == 0
        late = SamplingParams(max_new_tokens=24, logit_bias=always, min_tokens=11)
        assert engine.generate(prompt, late).completion_tokens == 11
        with pytest.raises(InvalidRequestError, match="logit_bias has token id 64"):
            engine.generate(prompt, SamplingParams(logit_bias={64: 1.0}))
        with pytest.raises(InvalidRequestError, match="min_tokens can't be used with a canvas"):
            engine.generate(prompt, SamplingParams(min_tokens=1), canvas=[-1, -1])
        every = SamplingParams(
            max_new_tokens=20, steps=9, schedule="linear", strategy="origin", temperature=0.8, top_p=0.9, top_k=20,
            min_p=0.01, ranking="sampled", repetition_penalty=1.1, seed=5, ignore_eos=True,
        )  # fmt: skip
        first, second = (
            engine.generate(prompt, every, cache_mode="none"),
            engine.generate(prompt, every, cache_mode="none"),
        )
        assert first.token_ids == second.token_ids
        assert len(first.token_ids) == 20


def test_each_family_ranks_as_its_reference(folders: Any) -> None:
    params = SamplingParams(temperature=0.5)
    for folder, ranking in ((folders["llada"], "model"), (folders["dream"], "sampled")):
        with make_engine(folder) as engine:
            facts = engine.core.parts.facts
        assert resolved(params, facts).ranking == ranking
        schedule = resolved(SamplingParams(steps=4), facts).schedule
        assert schedule == ("even" if ranking == "model" else "linear")
        assert resolved(SamplingParams(steps=4, schedule="even"), facts).schedule == "even"
        assert resolved(SamplingParams(), facts).ranking == "model"  # one and the same at temperature 0
        plain = resolved(SamplingParams(top_p=0.5, top_k=3, ranking="model"), facts)
        assert (plain.top_p, plain.top_k) == (1.0, 0)


def test_what_a_worker_does_not_serve_is_refused_by_name(llada: Any) -> None:
    import dataclasses

    unserved = ("strategy=origin", "ranking=sampled", "top_p")
    with make_engine(llada) as engine:
        facts = dataclasses.replace(engine.core.parts.facts, unserved=unserved)
    values: dict[str, Any] = {"strategy": "origin", "ranking": "sampled", "top_p": 0.5}
    for name, value in values.items():
        with pytest.raises(InvalidRequestError, match=f"{name} is .*not serve on a GPU") as caught:
            resolved(SamplingParams(temperature=0.5, steps=4, **{name: value}), facts)
        assert caught.value.field == name
    fine = SamplingParams(temperature=0.5, steps=4, strategy="margin", schedule="even", ranking="model")
    assert resolved(fine, facts) == fine
    assert resolved(SamplingParams(temperature=0.5, top_k=1), facts).temperature == 0
    assert resolved(SamplingParams(top_p=0.5), facts).top_p == 1.0
