"""RMSNorm deferred until after a matrix product: W (x / rms(x)) = (W x) / rms(x), so a row needs one factor afterwards.

With the norm's own weight multiplied into W, products can take hidden states as they are and the kernels that read
their outputs anyway apply the factor. That saves a pass over the hidden states and a launch, and costs one more read of
a row for each tile; it is meant for few rows. Formula: RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowNorm:
    """The rows that a product was computed from: hidden [T, H], contiguous last dimension, and the norm's eps."""

    hidden: Tensor
    eps: float

    def check(self, rows: int) -> None:
        """Raises ValueError unless hidden has `rows` rows and a contiguous last dimension."""
        if self.hidden.ndim != 2 or self.hidden.shape[0] != rows or self.hidden.stride(1) != 1:
            raise ValueError(
                f"hidden is {tuple(self.hidden.shape)}; it must be [{rows}, H], its last dimension contiguous"
            )

    def factor(self) -> Tensor:
        """1 / sqrt(mean(x^2) + eps) of each row: fp32 [T, 1]."""
        return self.hidden.float().square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
