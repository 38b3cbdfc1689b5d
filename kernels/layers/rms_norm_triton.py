"""RMSNorm in Triton: one program a row, one pass over memory; the formula is in `rms_norm.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, y_ptr, x_row_stride, n_cols, eps, BLOCK_SIZE: tl.constexpr):
    """y is contiguous [rows, n_cols]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_SIZE)
    mask = columns < n_cols
    dtype = y_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    y = (x * scale).to(dtype).to(tl.float32) * weight
    tl.store(y_ptr + row * n_cols + columns, y.to(dtype), mask=mask)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, *, num_warps: int | None = None) -> Tensor:
    """`rms_norm`: x [T, H], any row stride, weight [H], any float dtypes; a new [T, H] of x's dtype."""
    rows, columns = x.shape
    if weight.shape != (columns,) or not weight.is_contiguous():
        raise ValueError(f"weight {tuple(weight.shape)} must be contiguous, [{columns}]")
    if x.stride(1) != 1:
        raise ValueError("the last dimension must be contiguous")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows:
        block = triton.next_power_of_2(columns)
        _rms_norm_kernel[(rows,)](
            x, weight, y, x.stride(0), columns, eps,
            BLOCK_SIZE=block, num_warps=num_warps or min(16, max(1, block // 512)),
        )  # fmt: skip
    return y
