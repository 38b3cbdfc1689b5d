"""Rules and cuts as the kernels' references have them: those of the CPU's sampler, exactly or by distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.sampling.block_confidence import block_confidence
from shoal.kernels.sampling.canvas_state import CanvasState
from shoal.kernels.sampling.commit import commit, origin_share
from shoal.kernels.sampling.confidence import Confidence
from shoal.kernels.sampling.cutoffs import cutoffs, ruled_reference
from shoal.kernels.sampling.masked_rows import MaskedRows
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.logit_rules import LogitRules
from shoal.runtime.worker.cpu.sampler import choose_tokens, cut, tempered
from shoal.runtime.worker.gpu.slot_request import SlotRequest
from shoal.runtime.worker.gpu.slots import CanvasSlots
from shoal.runtime.worker.schedule import transfer_shares

from ...runtime.worker.test_sampling import CUTS, LOGITS, chi_squared_is_fine, kept

VOCABULARY, EOS = 40, 7
RULES = SamplingParams(
    repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 2.0, 9: -100.0}, min_tokens=4,
    eos_penalty=1.25,
)  # fmt: skip


def slots_with(sampling: SamplingParams, tokens: list[int], prompt: int, vocabulary: int = VOCABULARY) -> CanvasSlots:
    """Slots whose slot 0 has a request of these tokens; -1 is a mask."""
    slots = CanvasSlots(1, 64, 16, 1, 16, torch.device("cpu"), vocabulary, EOS)
    sequence, masked = np.array(tokens), np.array(tokens) < 0
    table = np.zeros((1, 4), np.int32)
    ends = frozenset({EOS, 8})
    slots.take(SlotRequest(np.where(masked, 1, sequence), masked, prompt, table, sampling, ends | {11}, ends, 5))
    return slots


def rows_at(positions: list[int]) -> MaskedRows:
    at = torch.tensor(positions, dtype=torch.int32)
    return MaskedRows(at.long(), at * 0, at, torch.arange(len(at), dtype=torch.int32)[None], at[:1] * 0 + len(at))


def summaries(logits: torch.Tensor, state: CanvasState, masked: MaskedRows) -> Confidence:
    return block_confidence(logits, state, masked, cut=cutoffs(logits, state, masked))


@pytest.mark.parametrize("more", [{}, {"logits_eos_inf": True}])
def test_rules_are_those_of_the_cpu(more: dict[str, Any]) -> None:
    prompt, canvas = [4, 4, 21, 63], [5, -1, 5, 21, -1, -1, 60]
    params = SamplingParams(**{**{n: getattr(RULES, n) for n in RULES.__dataclass_fields__}, **more})
    state = slots_with(params, prompt + canvas, len(prompt)).state
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))
    places = [1, 4, 5]
    rules = LogitRules(params, EOS, frozenset({EOS, 8}), frozenset({EOS, 8, 11}))
    expected = rules.apply(logits, np.array(places), torch.tensor(prompt), np.array(canvas))
    for row, place in enumerate(places):
        found = ruled_reference(logits[row], state, 0, len(prompt) + place)
        torch.testing.assert_close(found, expected[row])


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.6])
@pytest.mark.parametrize("options", CUTS, ids=str)
def test_a_cutoff_leaves_what_the_cpu_leaves(options: dict[str, Any], temperature: float) -> None:
    """Logits of few values, so that there are equals at the cut."""
    params = SamplingParams(temperature=temperature, ranking="sampled", **options)
    state = slots_with(params, [1, -1], 1).state
    logits = torch.randint(-8, 8, (30, VOCABULARY), generator=torch.Generator().manual_seed(2)) / 4
    found = cutoffs(logits, state, rows_at([1] * 30))
    left = cut(tempered(logits, temperature), params).isfinite()
    assert torch.equal(logits >= found.least[:, None], left)
    asked = temperature > 0 or bool(options)
    assert torch.equal(found.largest, logits.amax(-1) * asked)


@pytest.mark.parametrize("strategy", ["low_confidence", "margin", "entropy"])
@pytest.mark.parametrize("options", CUTS, ids=str)
def test_confidences_of_what_is_drawn_from(options: dict[str, Any], strategy: str) -> None:
    """Greedy draws (top_k of 1 at a temperature) and none: exactly the CPU's."""
    logits = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(3))
    for more in ({"temperature": 0.0}, {"temperature": 0.7, "top_k": 1}):
        params = SamplingParams(ranking="sampled", strategy=strategy, **{**options, **more})
        state = slots_with(params, [1, -1], 1).state
        best = summaries(logits, state, rows_at([1] * 9))
        token, confidence = choose_tokens(logits, params, None)
        assert torch.equal(best.token, token)
        column = {"low_confidence": best.probability, "margin": best.margin,
                  "entropy": 1 - best.entropy / math.log(VOCABULARY)}[strategy]  # fmt: skip
        torch.testing.assert_close(column, confidence, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranking", ["model", "sampled"])
@pytest.mark.parametrize("options", [CUTS[0], CUTS[2], CUTS[6]], ids=str)
def test_draws_follow_the_distribution(options: dict[str, Any], ranking: str) -> None:
    temperature, draws = 0.8, 600
    params = SamplingParams(temperature=temperature, ranking=ranking, **options)
    state = slots_with(params, [1, -1], 1, len(LOGITS)).state
    expected = kept(LOGITS, options.get("top_k", 0), options.get("top_p", 1.0), options.get("min_p", 0.0), temperature)
    best = summaries(torch.tensor(LOGITS).repeat(draws, 1), state, rows_at(list(range(draws))))
    assert chi_squared_is_fine(best.token, expected)
    plain = torch.tensor(LOGITS).double().softmax(-1)
    for token in set(best.token.tolist()):
        right = expected[token] if ranking == "sampled" else float(plain[token])
        assert best.probability[best.token == token][0] == pytest.approx(right, abs=1e-6)


def test_origin_has_dreams_shares() -> None:
    for steps in (1, 4, 200):
        found = [origin_share(step, steps, 1e-3) for step in range(steps)]
        assert found == pytest.approx(transfer_shares(1e-3, steps).tolist(), abs=1e-5)
        assert origin_share(steps + 3, steps, 1e-3) == 1


def committed(state: CanvasState, probability: list[float], tokens: list[int] | None = None) -> list[int]:
    """Which of the masks behind position 1 a commit takes; the state is left as it is."""
    state, count = state.clone(), len(probability)
    batch = AttentionBatch.build(torch.zeros((2, 1, 1), dtype=torch.int32), [0], [count], [20])
    column = torch.tensor(probability)
    best = Confidence(torch.tensor(tokens or [20] * count), column, column, column)
    commit(state, batch, rows_at([1 + at for at in range(count)]), best, VOCABULARY)
    return torch.nonzero(state.masked[0, 1 : 1 + count] == 0)[:, 0].tolist()


def test_masks_are_drawn_without_replacement_or_by_chance() -> None:
    confidence, draws = [0.9, 0.5, 0.1, 0.7], 600
    slots = slots_with(SamplingParams(steps=2, alg_temp=0.4), [1, *[-1] * 4], 1)
    state = slots.state
    state.block_starts[0], state.block_stops[0], state.quotas[0] = 1, 5, 2
    pairs: list[Any] = []
    for seed in range(draws):
        state.seeds[0] = seed
        pairs.append(tuple(committed(state, confidence)))
    p = (torch.tensor(confidence).double() / 0.4).softmax(-1).tolist()
    expected = {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a in range(4) for b in range(a + 1, 4)}
    names = sorted(expected)
    assert chi_squared_is_fine(
        torch.tensor([names.index(pair) for pair in pairs]), {i: expected[pair] for i, pair in enumerate(names)}
    )
    state.mask_temperatures[0], state.origin_steps[0], state.origin_ends[0], state.block_step[0] = 0, 4, 1e-3, 1
    taken = 0
    for seed in range(draws):
        state.seeds[0] = seed
        taken += len(committed(state, confidence))
    share = origin_share(1, 4, 1e-3)
    assert taken / (4 * draws) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / (4 * draws)))


def test_masks_of_ends_come_last_and_commits_are_counted() -> None:
    params = SamplingParams(steps=2, confidence_eos_eot_inf=True, presence_penalty=1.0)
    slots = slots_with(params, [1, *[-1] * 3], 1)
    state = slots.state
    state.block_starts[0], state.block_stops[0], state.quotas[0] = 1, 4, 2
    assert committed(state, [0.9, 0.1, 0.2], [EOS, 20, 21]) == [1, 2]
    assert committed(state, [0.9, 0.1, 0.2], [12, 20, 21]) == [0, 2]
    batch = AttentionBatch.build(torch.zeros((2, 1, 1), dtype=torch.int32), [0], [3], [20])
    column = torch.tensor([0.9, 0.1, 0.8])
    commit(state, batch, rows_at([1, 2, 3]), Confidence(torch.tensor([20, 5, 20]), column, column, column), VOCABULARY)
    assert int(state.counts[0, 20]) == 2
    assert int(state.counts[0, 5]) == 0
