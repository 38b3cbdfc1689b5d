"""RMSNorm in Triton, alone or fused with the addition of a residual: one program a row, one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, sum_ptr,
    x_row_stride, residual_row_stride, n_cols, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """y and the sum are contiguous [rows, n_cols]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_SIZE)
    mask = columns < n_cols
    dtype = y_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * residual_row_stride + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(dtype)
        tl.store(sum_ptr + row * n_cols + columns, rounded, mask=mask)
        x = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    y = (x * scale).to(dtype).to(tl.float32) * weight
    tl.store(y_ptr + row * n_cols + columns, y.to(dtype), mask=mask)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference`: x [T, H], rows strided at will, weight [H], any float dtypes; a new [T, H] of x's dtype."""
    return _launch(x, None, weight, eps)[0]


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, num_warps: int | None = None
) -> tuple[Tensor, Tensor]:
    """(rms_norm_reference(x + residual), x + residual), both new tensors [T, H] of x's dtype.

    x and residual [T, H] of the same dtype, rows strided at will. The sum is rounded to x's dtype before it is
    normalised, as it would be if it were made by itself.
    """
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(f"x {tuple(x.shape)} {x.dtype}, residual {tuple(residual.shape)} {residual.dtype}")
    return _launch(x, residual, weight, eps, num_warps)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, num_warps: int | None = None
) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    if weight.shape != (columns,) or not weight.is_contiguous():
        raise ValueError(f"weight {tuple(weight.shape)} must be contiguous, [{columns}]")
    if x.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("the last dimension must be contiguous")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    other = x if residual is None else residual
    if rows:
        block = triton.next_power_of_2(columns)
        _rms_norm_kernel[(rows,)](
            x, other, weight, y, total, x.stride(0), other.stride(0), columns, eps,
            HAS_RESIDUAL=residual is not None, BLOCK_SIZE=block, num_warps=num_warps or min(16, max(1, block // 512)),
        )  # fmt: skip
    return y, total
