"""The draws of `philox.py` inside Triton kernels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def uniform(seed, index, step, STREAM: tl.constexpr):
    """`uniform_reference` of a tensor of indices."""
    zero = index * 0
    word, _, _, _ = tl.philox(seed, index, zero + step, zero, zero + STREAM)
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def mask_gumbel(seed, positions, step, STREAM: tl.constexpr):
    """`mask_gumbel_reference` of a tensor of positions."""
    zero = positions * 0
    high, low, _, _ = tl.philox(seed, positions, zero + step, zero, zero + STREAM)
    return gumbel_of_words(high, low)


@triton.jit
def gumbel(seed, first, position, step, LANES: tl.constexpr):
    """`gumbel_reference` of the columns first .. first + 8 LANES - 1, [LANES, 8]; first is a multiple of 8."""
    quads = first // 4 + tl.arange(0, LANES)[:, None] * 2 + tl.arange(0, 2)[None, :]
    zero = quads * 0
    a, b, c, d = tl.philox(seed, quads, zero + position, zero + step, zero)
    high = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [LANES, 8])
    low = tl.reshape(tl.join(tl.join(b, d), tl.join(c, a)), [LANES, 8])
    return gumbel_of_words(high, low)


@triton.jit
def gumbel_of_words(high, low):
    """`gumbel_of_words` of tensors of uint32."""
    v = high.to(tl.float32) * 2.3283064365386963e-10 + (low.to(tl.float32) + 0.5) * 5.421010862427522e-20
    rest = ((high ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = v * (1 + v * (0.5 + v * (0.3333333333333333 + v * (0.25 + v * 0.2))))
    return -tl.log(tl.where(v < 0.0078125, series, -tl.log(rest)))
