"""The draws of `philox.py` inside Triton kernels."""

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
def gumbel(seed, first, position, step, LANES: tl.constexpr):
    """`gumbel_reference` of the columns first .. first + 8 LANES - 1, [LANES, 8]; first is a multiple of 8."""
    quads = first // 4 + tl.arange(0, LANES)[:, None] * 2 + tl.arange(0, 2)[None, :]
    zero = quads * 0
    a, b, c, d = tl.philox(seed, quads, zero + position, zero + step, zero)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [LANES, 8])
    v = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = v * (1 + v * (0.5 + v * (0.3333333333333333 + v * (0.25 + v * 0.2))))
    exponential = tl.where(v < 0.0078125, series, -tl.log(1 - tl.minimum(v, 0.999999940395355)))
    return -tl.log(exponential)
