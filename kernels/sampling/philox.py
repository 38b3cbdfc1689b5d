"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A draw depends on (seed, index, step, stream) alone, so that the same seed gives the same tokens whatever else runs.
This is the torch reference; the Triton kernels compute the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKEN_STREAM = 0
RANDOM_STREAM = 1
MASK_STREAM = 2
"""Streams: noise of tokens; uniform numbers of the strategies `random` and `origin`; noise of masks' confidences."""

_LOW = 0xFFFFFFFF


def philox_reference(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """The four 32-bit words (int64 tensors) for counters c0 .. c3 (int64, below 2^32, broadcast together)."""
    k0, k1 = seed & _LOW, seed >> 32 & _LOW
    for _ in range(10):
        high_a, low_a = _product(c0, 0xD2511F53)
        high_b, low_b = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of x * factor, neither above 2^32, within int64."""
    low = x * (factor & 0xFFFF)
    high = x * (factor >> 16)
    middle = high + (low >> 16)
    return middle >> 16 & _LOW, (middle << 16 | low & 0xFFFF) & _LOW


def unit(words: Tensor) -> Tensor:
    """fp32 numbers in (0, 1) from 32-bit words: the middle of one of 2^23 equal parts."""
    return ((words >> 9).float() + 0.5) * 2.0**-23


def uniform_reference(seed: int, index: Tensor, step: int, stream: int) -> Tensor:
    """fp32 draws in (0, 1) for each index (int64), at `step` of `stream`."""
    zero = index * 0
    return unit(philox_reference(seed, index, zero + step, zero, zero + stream)[0])


def mask_gumbel_reference(seed: int, positions: Tensor, step: int) -> Tensor:
    """fp32 Gumbel noise of masks at positions (int64): words 0 and 1 of counter (position, step, 0, MASK_STREAM)."""
    zero = positions * 0
    high, low, _, _ = philox_reference(seed, positions, zero + step, zero, zero + MASK_STREAM)
    return gumbel_of_words(high, low)


def gumbel_reference(seed: int, columns: int, position: int, step: int) -> Tensor:
    """fp32 [columns]: Gumbel noise -log(-log u) of the tokens' logits at a position of the sequence and a step.

    Column c takes word c % 4 of counter (c // 4, position, step, TOKEN_STREAM), with the next of these four words
    (after the last the first) as its low half: see `gumbel_of_words`.
    """
    index = torch.arange(-(-columns // 4))
    words = torch.stack(
        philox_reference(seed, index, index * 0 + position, index * 0 + step, index * 0 + TOKEN_STREAM), 1
    )
    low = words.roll(-1, 1)
    return gumbel_of_words(words.flatten()[:columns], low.flatten()[:columns])


def gumbel_of_words(high: Tensor, low: Tensor) -> Tensor:
    """fp32 Gumbel noise -log E with E = -log(1 - v), v = (high 2^32 + low + 1/2) / 2^64; two 32-bit words as int64.

    The large noises, which decide, come of the smallest v. 32 bits would end them at 22.9 and thin them out from 21 on,
    a vocabulary's worth of tokens behind a lead of 20: with 64 bits they go on to 45. Below 2^-7 E is the series of
    -log(1 - v), else the logarithm of 1 - v taken from the complement of the word: fp32's relative precision at both
    ends. That a low half is another column's high one matters to no draw: it counts only where the high half is nearly
    0, once in 2^24 columns.
    """
    v = high.float() * 2.0**-32 + (low.float() + 0.5) * 2.0**-64
    rest = ((high ^ _LOW).float() + 0.5) * 2.0**-32
    series = v * (1 + v * (0.5 + v * (1 / 3 + v * (0.25 + v * 0.2))))
    return -torch.where(v < 2.0**-7, series, -rest.log()).log()
