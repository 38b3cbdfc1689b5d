"""Draws by distribution at a real vocabulary: tokens 12 to 20 behind the best one come as often as the softmax says."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch

from shoal.kernels.sampling.block_confidence import block_confidence
from shoal.kernels.sampling.canvas_state import CanvasState
from shoal.kernels.sampling.masked_rows import MaskedRows
from shoal.kernels.sampling.philox import gumbel_of_words
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.sampler import choose_tokens, gumbel

VOCABULARY = 126_464
BEST = 77_777


def binomial_bounds(draws: int, p: float, tail: float = 1e-4) -> tuple[int, int]:
    """Fewest and most successes, each of which a smaller or larger number has less than probability `tail` of."""
    spread = math.sqrt(draws * p * (1 - p))
    if spread > 25:
        margin = -NormalDist().inv_cdf(tail) * spread
        return math.floor(draws * p - margin), math.ceil(draws * p + margin)
    mass, below, low = math.exp(draws * math.log1p(-p)), 0.0, 0
    for successes in range(draws + 1):
        below += mass
        if below < tail:
            low = successes + 1
        if 1 - below < tail:
            return low, successes
        mass *= (draws - successes) / (successes + 1) * p / (1 - p)
    return low, draws


def beaten(draws: int, lead: float) -> tuple[int, int]:
    """Bounds of how many of so many draws are not the best token's, by the softmax."""
    others = VOCABULARY - 1
    return binomial_bounds(draws, others / (others + math.exp(lead)))


def row_with(lead: float) -> torch.Tensor:
    row = torch.zeros(1, VOCABULARY)
    row[0, BEST] = lead
    return row


def by_sampler(draws: int, lead: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    rows = row_with(lead).expand(100, -1)
    parts = [choose_tokens(rows, SamplingParams(temperature=1), generator)[0] for _ in range(draws // 100)]
    return torch.cat(parts)


def by_reference(draws: int, lead: float) -> torch.Tensor:
    state = CanvasState.empty(1, 8, 8, 1, "cpu")
    state.temperatures[0] = 1
    zero, place = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    row, parts = row_with(lead), []
    for position in range(draws):
        masked = MaskedRows(zero, place, place + position, place[None], place + 1)
        parts.append(block_confidence(row, state, masked).token)
    return torch.cat(parts)


@pytest.mark.parametrize(("lead", "draws"), [(12, 100), (14, 100), pytest.param(17, 3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("draw", [by_sampler, by_reference])
def test_tokens_far_behind_the_best_are_drawn_as_often_as_the_softmax_says(
    draw: Callable[[int, float], torch.Tensor], lead: float, draws: int
):
    tokens = draw(draws, lead)
    low, high = beaten(draws, lead)
    others = tokens[tokens != BEST]
    assert 0 < low <= len(others) <= high
    assert len(set(others.tolist())) > len(others) * 0.9


def log_uniform_tail(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words (high, low) of uniform 64-bit numbers below 2^40: the smallest of 2^24 equal parts."""
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randint(0, 256, (count,), generator=generator),
        torch.randint(0, 1 << 32, (count,), generator=generator),
    )


def noise_of_words(count: int) -> torch.Tensor:
    return gumbel_of_words(*log_uniform_tail(count))


def noise_of_uniforms(count: int) -> torch.Tensor:
    high, low = log_uniform_tail(count)
    return gumbel((high.double() * 2.0**32 + low) * 2.0**-64)


@pytest.mark.parametrize("noise_of", [noise_of_words, noise_of_uniforms])
def test_large_noises_come_as_often_as_gumbels_distribution_says(noise_of: Callable[[int], torch.Tensor]):
    """Given that its uniform is below 2^-24, a noise is above x with probability 2^24 (1 - exp(-exp(-x)))."""
    count = 1 << 20
    noise = noise_of(count)
    assert noise.isfinite().all()
    assert (noise > 16.6).all()
    for x in range(17, 28):
        low, high = binomial_bounds(count, 2.0**24 * -math.expm1(-math.exp(-x)))
        assert low <= int((noise > x).sum()) <= high, x


def test_the_ends_of_the_noise_are_finite_and_far_out():
    words = torch.tensor([0, 0xFFFFFFFF])
    largest, smallest = gumbel_of_words(words, words).tolist()
    assert largest == pytest.approx(-math.log(2.0**-65), rel=1e-6)
    assert smallest == pytest.approx(-math.log(-math.log(2.0**-33)), rel=1e-6)
    largest, smallest = gumbel(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).tolist()
    assert largest == pytest.approx(-math.log(2.0**-54))
    assert smallest == pytest.approx(-math.log(-math.log(2.0**-53)))


def test_noise_has_fp32s_precision_everywhere():
    generator = torch.Generator().manual_seed(6)
    exponents = torch.randint(0, 33, (10_000,), generator=generator)
    high = torch.randint(0, 1 << 32, (10_000,), generator=generator) >> exponents
    high = torch.cat((high, 0xFFFFFFFF - high[high > 1 << 20]))  # at the other end 32 bits are enough
    low = torch.randint(0, 1 << 32, high.shape, generator=generator)
    v = (high.double() * 2.0**32 + low + 0.5) * 2.0**-64
    expected = -(-torch.log1p(-v)).log()
    torch.testing.assert_close(gumbel_of_words(high, low).double(), expected, rtol=1e-5, atol=2e-5)


def test_the_samplers_uniforms_have_53_bits(monkeypatch):
    seen: list[torch.Tensor] = []

    def keep(uniform: torch.Tensor) -> torch.Tensor:
        seen.append(uniform.clone())
        return gumbel(uniform)

    monkeypatch.setattr("shoal.runtime.worker.cpu.sampler.gumbel", keep)
    choose_tokens(torch.zeros(20, 5000), SamplingParams(temperature=1), torch.Generator().manual_seed(0))
    scaled = torch.cat(seen) * 2.0**53
    assert scaled.shape == (20, 5000)
    assert torch.equal(scaled, scaled.round())
    odd = int((scaled % 2).sum())
    low, high = binomial_bounds(100_000, 0.5)
    assert low <= odd <= high
