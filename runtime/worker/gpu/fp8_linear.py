"""Linear layers with weights in fp8 (e4m3), a scale an output, for rows in fp8.

`torch._scaled_mm` with a scale for each row and column writes final products; with one scale it is faster for few rows
(measured on an H200 for a layer of LLaDA-8B's shape: 67 us against 97 at 32 rows, 334 against 323 at 1,024), and the
kernels that read the product multiply.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ....kernels.layers.fp8 import Rows8, Scales, quantized
from ...model.decoder import LayerWeights
from ...model.linear import Linear
from ...model.mlp import DenseMlp

MOST_UNSCALED_ROWS = 512
"""Most rows whose products are left to others to scale; above, RoPE's kernel has other tiles."""


class Fp8Linear(Linear):
    """y = x @ W^T (+ bias) with W in fp8.

    Args:
        linear: in 16 bits or fp32; not changed.

    Attributes:
        data: fp8 [out, in]. scale: fp32 [1, out], largest magnitude of each output's weights / 448.
        dtype: of final products.
    """

    __slots__ = ("data", "dtype", "scale")

    def __init__(self, linear: Linear):
        rows = quantized(linear.weight_t.t())
        self.data, self.scale, self.dtype = rows.data, rows.scale.t(), linear.weight_t.dtype
        super().__init__(self.data.t(), linear.bias)

    def of_rows(self, x: Rows8, final: bool) -> tuple[Tensor, Scales | None]:
        """The product without the bias, and what it has still to be multiplied by (never if `final`)."""
        scaled = final or x.data.shape[0] > MOST_UNSCALED_ROWS
        scales = None if scaled else Scales(x.scale, self.scale)
        if x.data.device.type == "cpu":
            y = x.data.float() @ self.data.float().t()
            return (y * x.scale * self.scale if scaled else y).to(self.dtype), scales
        one = _one(x.data.device)
        of_x, of_w = (x.scale, self.scale) if scaled else (one, one)
        y = torch._scaled_mm(x.data, self.data.t(), of_x, of_w, out_dtype=self.dtype, use_fast_accum=True)
        return y, scales

    def product(self, x: Tensor) -> Tensor:
        """x [T, in] -> a new [T, out], without bias."""
        return self.of_rows(quantized(x), final=True)[0]


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def quantize_layer(weights: LayerWeights) -> None:
    """Put fp8 in the place of a dense layer's matrices; norms stay as they are."""
    mlp = weights.mlp
    assert isinstance(mlp, DenseMlp)  # a model with experts is refused before
    weights.qkv, weights.attention_out = Fp8Linear(weights.qkv), Fp8Linear(weights.attention_out)
    weights.mlp = DenseMlp(Fp8Linear(mlp.gate_up), Fp8Linear(mlp.down))
