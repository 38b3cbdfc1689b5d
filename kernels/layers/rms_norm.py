"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * weight."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import kernel


@kernel("rms_norm_triton.rms_norm_triton")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise each row of x [T, H] (any float dtype) by its RMS, in fp32, then scale by weight [H].

    As in the models' own code, the normalised row is rounded to x's dtype before it meets the weight.
    Returns a new tensor [T, H] of x's dtype.
    """
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight)
