"""Entropy bound, decaying threshold and settled distributions: each against a plain reference of its formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.resolve import resolved
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.commit_rules import Stability, by_entropy_bound, by_stability, decayed_threshold
from shoal.runtime.worker.gpu.slots import UNSERVED

from ..tiny import make_engine, tokens, worker_of

entropies = st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.1, 0.4, 1.0, 3.0]), min_size=1, max_size=12)


def entropy_bound_reference(values: list[float], bound: float) -> list[int]:
    """The largest set of least entropies whose sum less its maximum is within the bound, by trying every size."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    best = 1
    for size in range(1, len(order) + 1):
        some = [values[i] for i in order[:size]]
        if math.fsum(some) - max(some) <= bound + 1e-12:
            best = size
    return sorted(order[:best])


@given(values=entropies, bound=st.sampled_from([0.0, 0.07, 0.21, 0.56, 2.07, 50.0]))
def test_entropy_bound_commits_the_longest_prefix_within_the_bound(values, bound):
    found = by_entropy_bound(torch.tensor(values, dtype=torch.float32), bound)
    assert found.tolist() == entropy_bound_reference(values, bound)
    assert found.dtype == torch.int64


@pytest.mark.parametrize(("alpha", "masks", "expected"), [
    (0.0, 1, 0.9), (0.3, 8, 0.9), (0.3, 4, 0.9 * 0.85), (0.3, 2, 0.9 * (1 - 0.3 * 0.75)), (1.0, 2, 0.225),
])  # fmt: skip
def test_the_threshold_decays_with_the_masks_that_are_left(alpha, masks, expected):
    assert decayed_threshold(SamplingParams(threshold_decay=alpha), masks, 8) == pytest.approx(expected, abs=1e-12)


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def stability_reference(history: list[dict[int, list[float]]], bound: float) -> dict[int, int]:
    """For each mask of the latest pass, how many latest passes in a row its distribution moved less than the bound."""
    counts = {}
    for position in history[-1]:
        count = 0
        for before, after in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
            if kl(after[position], before[position]) >= bound:
                break
            count += 1
        counts[position] = count
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_stability_counts_passes_in_which_a_distribution_hardly_moved(seed):
    generator = torch.Generator().manual_seed(seed)
    stability, history = Stability(), list[dict[int, list[float]]]()
    positions = np.arange(20, 26)
    logits = torch.randn(6, 9, generator=generator)
    seen = set()
    for step in range(8):
        logits = logits + torch.randn(len(positions), 9, generator=generator) * torch.tensor(0.02 if step % 3 else 0.4)
        logits[:, 4] = -math.inf  # an impossible token, as the mask is
        p = logits.double().softmax(-1)
        history.append(dict(zip(positions.tolist(), p.tolist(), strict=True)))
        found = stability.passes((20, 28), positions, logits, 0.005).tolist()
        assert found == list(stability_reference(history, 0.005).values())
        seen |= set(found)
        if step in (2, 5):  # a mask was committed
            positions, logits = np.delete(positions, 1), torch.cat((logits[:1], logits[2:]))
    assert {0, 1, 2} <= seen
    assert stability.passes((28, 36), np.arange(28, 30), torch.randn(2, 9), 1e9).tolist() == [0, 0]


def test_stable_and_sure_masks_are_committed_or_else_the_surest():
    confidence = torch.tensor([0.95, 0.7, 0.2, 0.7])
    assert by_stability(confidence, torch.tensor([False, True, True, True]), 0.6).tolist() == [1, 3]
    assert by_stability(confidence, torch.tensor([False, False, True, False]), 0.6).tolist() == [0]
    assert by_stability(torch.tensor([0.5, 0.5]), torch.tensor([True, True]), 0.6).tolist() == [0]


@pytest.mark.parametrize(("options", "field"), [
    ({"entropy_bound": -1}, "entropy_bound"), ({"entropy_bound": 0.1, "threshold": 0.5}, "entropy_bound"),
    ({"entropy_bound": 0.1, "steps": 4}, "entropy_bound"), ({"entropy_bound": 0.1, "strategy": "random"}, "strategy"),
    ({"entropy_bound": 0.1, "strategy": "topk_margin"}, "strategy"),
    ({"threshold_decay": 1.5}, "threshold_decay"), ({"threshold_decay": 0.3, "factor": 1.0}, "threshold_decay"),
    ({"threshold_decay": 0.3, "entropy_bound": 1.0}, "threshold_decay"), ({"kl_threshold": 0}, "kl_threshold"),
    ({"kl_threshold": 0.01, "steps": 4}, "kl_threshold"), ({"kl_threshold": 0.01, "kl_history": 0}, "kl_history"),
    ({"canvas_window": -1}, "canvas_window"), ({"refresh_schedule": "never"}, "refresh_schedule"),
    ({"full_refresh_every": 0}, "full_refresh_every"), ({"refresh_entropy": math.nan}, "refresh_entropy"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(options, field):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**options)
    assert caught.value.field == field


RULES: list[dict[str, Any]] = [
    {"entropy_bound": 0.5}, {"threshold": 0.6, "threshold_decay": 0.8},
    {"threshold": 0.3, "kl_threshold": 0.05, "kl_history": 1}, {"threshold": 0.6, "refresh_entropy": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_answers_of_each_rule_do_not_depend_on_company(folder, rule):
    prompts = [tokens(11 + seed, seed) for seed in range(3)]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, **rule)
    with make_engine(folder) as engine:
        alone = [engine.generate(prompt, params, cache_mode="dual") for prompt in prompts]
        together = engine.generate(prompts, params, cache_mode="dual")
        assert [o.token_ids for o in together] == [o.token_ids for o in alone]
        assert [o.nfe for o in together] == [o.nfe for o in alone]


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
def test_each_rule_decides_how_many_forwards_there_are(llada, rule):
    """The rule's bound at its loosest takes one forward a block; at its strictest one a mask."""
    loose, strict = {**rule}, {**rule}
    if "entropy_bound" in rule:
        loose["entropy_bound"], strict["entropy_bound"] = 1e6, 0.0
    elif "threshold_decay" in rule:
        loose |= {"threshold": 1e-9}
        strict |= {"threshold": 1.0, "threshold_decay": 0.0}
    else:
        loose |= {"threshold": 1e-9, "kl_threshold": 1e6}
        strict |= {"kl_threshold": 1e-12}
    with make_engine(llada) as engine:
        few, many = (
            engine.generate(tokens(13, 1), SamplingParams(max_new_tokens=16, ignore_eos=True, **options)).nfe
            for options in (loose, strict)
        )
    assert many == 16
    assert few == (4 if "kl_threshold" in rule else 2)  # a block's first pass has no pass before it


def test_a_gpu_refuses_a_bound_on_entropy_by_name(llada):
    with make_engine(llada) as engine:
        facts = dataclasses.replace(engine.core.parts.facts, unserved=UNSERVED)
    with pytest.raises(InvalidRequestError, match=r"refresh_entropy is 0\.5, which shoal does not serve on a GPU"):
        resolved(SamplingParams(refresh_entropy=0.5), facts)


def test_entropy_above_the_bound_refreshes_everything(llada):
    """A bound of 0 is always passed: every block start is a prefix refresh; a large one never is."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for name, bound in (("always", 0.0), ("never", 50.0)):
        with make_engine(llada, refresh_schedule="settled", refresh_entropy=bound, block_length=8) as engine:
            worker = worker_of(engine)
            items: list[tuple[int, int]] = []
            forward = worker.forward

            def watched(message, forward=forward, items=items):
                items += [(item.join, item.start) for item in message.items if not item.is_block_alone]
                return forward(message)

            worker.forward = watched
            engine.generate(tokens(24, 1), SamplingParams(max_new_tokens=32, threshold=0.5, ignore_eos=True))
            seen[name] = items
    assert seen["always"] == [(0, 0), (0, 24), (0, 24), (0, 24)]
    assert seen["never"] == [(0, 0), (24, 24), (32, 32), (40, 40)]


def test_what_kl_threshold_keeps_from_pass_to_pass_is_bounded(llada):
    """A large vocabulary times a long block, for every running request."""
    with make_engine(llada) as engine:
        facts = engine.core.parts.facts
    large = dataclasses.replace(
        facts, model=dataclasses.replace(facts.model, vocab_size=1 << 17, embedding_size=1 << 17)
    )
    fits = SamplingParams(kl_threshold=0.1, block_length=512, max_new_tokens=600)
    assert resolved(fits, large).block_length == 512
    with pytest.raises(InvalidRequestError, match="block_length is 513; with kl_threshold it may be at most 512"):
        resolved(dataclasses.replace(fits, block_length=513), large)
    assert resolved(dataclasses.replace(fits, block_length=10**9, max_new_tokens=512), large).kl_threshold == 0.1
