"""Activations in fp8 (e4m3) with a scale a row, made where they are computed anyway (torch references).

A product of such rows with weights that have a scale a column is (data W) times both scales. Kernels that read products
take them unscaled with `Scales`, so that no launch multiplies them out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import kernel

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number in e4m3."""
LEAST_SCALE = 1e-12
"""The scale of a row of zeros."""


class Rows8(NamedTuple):
    """Rows in fp8: data [T, N] and scale fp32 [T, 1]; row t is data[t] * scale[t]."""

    data: Tensor
    scale: Tensor


class Scales(NamedTuple):
    """What a product [T, N] still has to be multiplied by: rows fp32 [T, 1] and columns fp32 [1, N]."""

    rows: Tensor
    columns: Tensor

    def apply(self, product: Tensor) -> Tensor:
        """The product, fp32."""
        return product.float() * self.rows * self.columns


def quantized(x: Tensor) -> Rows8:
    """x [T, N] with the largest scale that loses no row's maximum; a row of zeros stays zeros, one with NaN is NaN."""
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp_(min=LEAST_SCALE)
    return Rows8((x / scale).to(FP8), scale)


@kernel("fp8_triton.add_norm_quantize_triton")
def add_norm_quantize(
    hidden: Tensor, product: Tensor | None = None, scales: Scales | None = None, weight: Tensor | None = None,
    eps: float = 0.0,
) -> Rows8:  # fmt: skip
    """hidden += product, in place, then fp8 rows of RMSNorm(hidden).

    Args:
        hidden: [T, N], contiguous.
        product: [T, N], contiguous; None: nothing is added.
        scales: of the product; None: it is final.
        weight: [N] of the norm; None: hidden itself is quantised.
    """
    if product is not None:
        hidden += (product if scales is None else scales.apply(product)).to(hidden.dtype)
    x = hidden.float()
    if weight is not None:
        x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt_() * weight.float()
    return quantized(x)


@kernel("fp8_triton.swiglu_quantize_triton")
def swiglu_quantize(gate_up: Tensor, scales: Scales | None = None) -> Rows8:
    """fp8 rows of silu(gate) * up; gate_up [T, 2F] as in `swiglu`, `scales` of it if it is not final."""
    gate, up = (gate_up.float() if scales is None else scales.apply(gate_up)).chunk(2, dim=-1)
    return quantized(torch.nn.functional.silu(gate) * up)
