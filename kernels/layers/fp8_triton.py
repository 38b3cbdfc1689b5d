"""Residual, norm and SwiGLU with rows in fp8 as their result, in Triton: one program a row, one pass over memory."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fp8 import FP8, LARGEST, LEAST_SCALE, Rows8, Scales

_LARGEST, _LEAST_SCALE = tl.constexpr(LARGEST), tl.constexpr(LEAST_SCALE)


@triton.jit
def _quantize(x, data_ptr, scale_ptr, row, n_cols, columns, mask):
    """Store a row of fp32 x in fp8."""
    top = tl.max(tl.where(x == x, tl.abs(x), float("inf")), 0)
    scale = tl.maximum(top / _LARGEST, _LEAST_SCALE)
    tl.store(data_ptr + row * n_cols + columns, (x / scale).to(data_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _add_norm_quantize_kernel(
    hidden_ptr, product_ptr, rows_ptr, columns_ptr, weight_ptr, data_ptr, scale_ptr, n_cols, eps,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_SIZE)
    mask = columns < n_cols
    at = hidden_ptr + row * n_cols + columns
    x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if weight_ptr is not None:  # before the store below, which no load behind it overtakes
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if product_ptr is not None:
        dtype = hidden_ptr.dtype.element_ty
        y = tl.load(product_ptr + row * n_cols + columns, mask=mask, other=0.0).to(tl.float32)
        if rows_ptr is not None:
            y = y * tl.load(rows_ptr + row) * tl.load(columns_ptr + columns, mask=mask, other=0.0)
        x = (x + y.to(dtype).to(tl.float32)).to(dtype)
        tl.store(at, x, mask=mask)
        x = x.to(tl.float32)
    if weight_ptr is not None:
        factor = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
        x = x * factor * weight
    _quantize(x, data_ptr, scale_ptr, row, n_cols, columns, mask)


@triton.jit
def _swiglu_quantize_kernel(
    gate_up_ptr, rows_ptr, columns_ptr, data_ptr, scale_ptr, row_stride, n_cols, BLOCK_SIZE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_SIZE)
    mask = columns < n_cols
    at = gate_up_ptr + row * row_stride + columns
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + n_cols, mask=mask, other=0.0).to(tl.float32)
    if rows_ptr is not None:
        factor = tl.load(rows_ptr + row)
        gate = gate * factor * tl.load(columns_ptr + columns, mask=mask, other=0.0)
        up = up * factor * tl.load(columns_ptr + n_cols + columns, mask=mask, other=0.0)
    _quantize(gate / (1.0 + tl.exp(-gate)) * up, data_ptr, scale_ptr, row, n_cols, columns, mask)


def _empty(rows: int, columns: int, device: torch.device) -> Rows8:
    data = torch.empty((rows, columns), dtype=FP8, device=device)
    return Rows8(data, torch.empty((rows, 1), dtype=torch.float32, device=device))


def add_norm_quantize_triton(
    hidden: Tensor, product: Tensor | None = None, scales: Scales | None = None, weight: Tensor | None = None,
    eps: float = 0.0,
) -> Rows8:  # fmt: skip
    """`add_norm_quantize`."""
    rows, columns = hidden.shape
    if not hidden.is_contiguous() or (product is not None and not product.is_contiguous()):
        raise ValueError("hidden and product must be contiguous")
    if product is not None and product.shape != hidden.shape:
        raise ValueError(f"product {tuple(product.shape)} must have the shape of hidden, {tuple(hidden.shape)}")
    out = _empty(rows, columns, hidden.device)
    if rows:
        block = triton.next_power_of_2(columns)
        _add_norm_quantize_kernel[(rows,)](
            hidden, product, *(scales or (None, None)), weight, *out, columns, eps,
            BLOCK_SIZE=block, num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return out


def swiglu_quantize_triton(gate_up: Tensor, scales: Scales | None = None) -> Rows8:
    """`swiglu_quantize`."""
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.stride(1) != 1 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up {tuple(gate_up.shape)} needs an even, contiguous last dimension")
    out = _empty(rows, columns, gate_up.device)
    if rows:
        block = triton.next_power_of_2(columns)
        _swiglu_quantize_kernel[(rows,)](
            gate_up, *(scales or (None, None)), *out, gate_up.stride(0), columns,
            BLOCK_SIZE=block, num_warps=min(32, max(1, block // 512)),
        )  # fmt: skip
    return out
