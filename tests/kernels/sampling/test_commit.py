"""The block step's rules on the device are those of the sampler; draws are what the paper's numbers and chance say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.sampling.block_confidence import block_confidence
from shoal.kernels.sampling.canvas_state import CanvasState, acceptance_bounds
from shoal.kernels.sampling.commit import commit
from shoal.kernels.sampling.confidence import Confidence
from shoal.kernels.sampling.masked_rows import masked_rows
from shoal.kernels.sampling.philox import gumbel_reference, philox_reference, uniform_reference
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.sampler import choose_commits

WIDTH = 12


def one_request(masked: list[bool]) -> tuple[CanvasState, AttentionBatch]:
    state = CanvasState.empty(1, 20, WIDTH, 1, "cpu")
    state.masked[0, 4 : 4 + len(masked)] = torch.tensor(masked).to(torch.uint8)
    state.block_starts[0], state.block_stops[0] = 4, 4 + len(masked)
    return state, AttentionBatch.build(torch.zeros((1, 1, 1), dtype=torch.int32), [0], [len(masked)], [20])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_commits_are_the_samplers(data):
    masked = data.draw(st.lists(st.booleans(), min_size=1, max_size=WIDTH).filter(any))
    levels = st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
    confidence = torch.tensor(data.draw(st.lists(levels, min_size=sum(masked), max_size=sum(masked))))
    state, batch = one_request(masked)
    mode = data.draw(st.sampled_from(["steps", "threshold", "factor"]))
    count = None
    if mode == "steps":
        params = SamplingParams()
        quotas = data.draw(st.lists(st.integers(1, WIDTH), min_size=WIDTH, max_size=WIDTH))
        state.quotas[0] = torch.tensor(quotas)
        state.block_step[0] = step = data.draw(st.integers(0, WIDTH + 1))
        count = quotas[step] if step < WIDTH else 1
    elif mode == "threshold":
        params = SamplingParams(threshold=data.draw(levels.filter(bool)))
        state.bounds[0] = acceptance_bounds(params.threshold, None, WIDTH)
    else:
        params = SamplingParams(factor=data.draw(st.sampled_from([0.1, 0.3, 1.0, 1.5])))
        state.bounds[0] = acceptance_bounds(None, params.factor, WIDTH)
        state.takes_last[0] = 1
    rows = masked_rows(state, batch, torch.tensor([4], dtype=torch.int32), WIDTH)
    assert int(rows.total) == sum(masked)
    padded = torch.zeros(WIDTH)
    padded[: len(confidence)] = confidence
    commit(state, batch, rows, Confidence(torch.arange(WIDTH) + 100, padded, padded, padded), 1000)
    expected = choose_commits(confidence, params, count).tolist()
    positions = [i for i, is_mask in enumerate(masked) if is_mask]
    committed = [n for n, i in enumerate(positions) if not int(state.masked[0, 4 + i])]
    assert committed == expected
    assert [int(state.tokens[0, 4 + positions[n]]) for n in committed] == [100 + n for n in committed]
    assert int(state.nfe[0]) == 1


def test_bounds_need_one_rule():
    with pytest.raises(ValueError, match="one of them must be given"):
        acceptance_bounds(None, None, 4)
    with pytest.raises(ValueError, match="one of them must be given"):
        acceptance_bounds(0.9, 0.5, 4)


def test_philox_gives_the_published_words():
    """Known answers of Philox4x32-10 from the authors' library (Random123, kat_vectors)."""
    zero = [torch.zeros(1, dtype=torch.int64)] * 4
    ones = [torch.full((1,), 0xFFFFFFFF)] * 4
    assert [int(word) for word in philox_reference(0, *zero)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    found = [int(word) for word in philox_reference(0xFFFFFFFFFFFFFFFF, *ones)]
    assert found == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_noise_is_gumbels_and_uniform_draws_are_uniform():
    noise = gumbel_reference(7, 200_000, 3, 1).double()
    assert noise.isfinite().all()
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = float((noise < -math.log(-math.log(quantile))).double().mean())
        assert below == pytest.approx(quantile, abs=5 * math.sqrt(quantile * (1 - quantile) / 200_000))
    draws = uniform_reference(7, torch.arange(100_000), 2, 1).double()
    assert 0 < draws.min() < draws.max() < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.005)
    assert not torch.equal(draws, uniform_reference(7, torch.arange(100_000), 3, 1).double())


def test_tokens_are_drawn_from_the_tempered_softmax_whatever_else_runs():
    state, batch = one_request([True] * WIDTH)
    state.temperatures[0] = 0.5
    rows = masked_rows(state, batch, torch.tensor([4], dtype=torch.int32), WIDTH)
    logits = torch.tensor([0.0, 0.5, 1.0, 1.2]).repeat(WIDTH, 1)
    counts = torch.zeros(4)
    for seed in range(500):
        state.seeds[0] = seed
        counts += torch.bincount(block_confidence(logits, state, rows).token, minlength=4)
    expected = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(counts / counts.sum(), expected, rtol=0, atol=0.03)
    state.temperatures[0] = 0
    assert (block_confidence(logits, state, rows, impossible_token=3).token == 2).all()
