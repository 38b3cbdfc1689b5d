"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split pairing.

Dimension j of a head is paired with j + D/2 (the "rotate half" layout of Llama, LLaDA and Qwen2 weights) and the
pair is rotated by position * theta^(-2j/D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rope_table(
    length: int, head_dim: int, theta: float, device: torch.device | str = "cpu",
    multipliers: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(cos, sin), each fp32 [length, head_dim / 2], for positions 0 .. length - 1.

    `multipliers` [head_dim / 2] scale the frequencies theta^(-2j/D), the fastest first; None: they stay. Angles are
    formed in fp64 and rounded once.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if multipliers is not None:
        frequencies *= torch.tensor(multipliers, dtype=torch.float64)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] (any float dtype, any strides) by cos, sin [T, D/2] (fp32), computing in fp32.

    Returns a new contiguous tensor [T, H, D] of x's dtype.
    """
    wide = x.float()
    half = x.shape[-1] // 2
    left, right = wide[..., :half], wide[..., half:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    torch.mul(left, cos, out=out[..., :half]).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out[..., half:]).addcmul_(left, sin)
    return out.to(x.dtype)
