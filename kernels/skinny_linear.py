"""Products of a few rows with a large weight (block steps of a small batch), alone or with what stands beside them.

y = x W^T + bias + residual, and the gated unit of `swiglu.py` on y. The weight is as checkpoints hold it, [out, in].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .swiglu import swiglu_reference


def skinny_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x [M, K] times weight [N, K], plus bias [N] and residual [M, N]; [M, N] of x's dtype.

    All of one dtype, bf16 or fp32. Products, bias and residual are summed in fp32 and rounded once.
    The result goes to `out` where given; `out` may be `residual`. The last dimension of each must be contiguous.
    """
    check_skinny(x, weight, bias, residual, out, weight.shape[0])
    y = torch.mm(x.float(), weight.float().t())
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y.to(x.dtype) if out is None else out.copy_(y)


def skinny_swiglu_reference(x: Tensor, gate_up_weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x [M, K], gate_up_weight [2F, K], the gate's rows first: swiglu(x gate_up_weight^T), [M, F] of x's dtype.

    Gate and up projection are rounded to the dtype, as is silu(gate), before they meet: as in two calls.
    """
    if gate_up_weight.shape[0] % 2:
        raise ValueError(f"gate_up_weight {tuple(gate_up_weight.shape)} needs an even number of rows")
    check_skinny(x, gate_up_weight, None, None, out, gate_up_weight.shape[0] // 2)
    y = swiglu_reference(skinny_linear_reference(x, gate_up_weight))
    return y if out is None else out.copy_(y)


def check_skinny(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None, columns: int
) -> None:
    """ValueError for arguments that do not fit one another."""
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"x is {x.dtype}; bfloat16 and float32 can be used")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not share their last dimension")
    if x.shape[1] == 0 or x.shape[1] % 16:
        raise ValueError(f"the inner dimension is {x.shape[1]}, which is not a positive multiple of 16")
    shape = (x.shape[0], columns)
    expected = {
        "weight": (weight, None),
        "bias": (bias, (columns,)),
        "residual": (residual, shape),
        "out": (out, shape),
    }
    for name, (tensor, wanted) in expected.items():
        if tensor is None:
            continue
        if wanted is not None and tensor.shape != wanted:
            raise ValueError(f"{name} {tuple(tensor.shape)} should be {wanted}")
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual), ("out", out)):
        if tensor is not None and tensor.numel() and tensor.stride(-1) != 1:
            raise ValueError(f"the last dimension of {name} must be contiguous")
