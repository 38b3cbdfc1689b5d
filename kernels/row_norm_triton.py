"""The factor of a deferred RMSNorm inside Triton kernels; the formula is in `row_norm.py`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .row_norm import RowNorm


@triton.jit
def row_factor(hidden_ptr, row_stride, n_cols, eps, rows, mask, BLOCK_COLUMNS: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps), fp32 [R], of hidden rows `rows` (int64 [R]) where `mask` holds."""
    squares = tl.zeros([rows.shape[0], BLOCK_COLUMNS], tl.float32)
    for start in range(0, n_cols, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        at = rows[:, None] * row_stride + columns[None, :]
        x = tl.load(hidden_ptr + at, mask=mask[:, None] & (columns < n_cols)[None, :], other=0.0).to(tl.float32)
        squares += x * x
    return 1.0 / tl.sqrt(tl.sum(squares, 1) / n_cols + eps)


@triton.jit
def one_row_factor(hidden_ptr, row, row_stride, n_cols, eps, BLOCK_COLUMNS: tl.constexpr):
    """`row_factor` of the hidden row `row` (int64) alone. (Compiled as a tile of one row, bf16 would spill 15 KB.)"""
    squares = tl.zeros([BLOCK_COLUMNS], tl.float32)
    for start in range(0, n_cols, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        x = tl.load(hidden_ptr + row * row_stride + columns, mask=columns < n_cols, other=0.0).to(tl.float32)
        squares += x * x
    return 1.0 / tl.sqrt(tl.sum(squares, 0) / n_cols + eps)


def norm_arguments(norm: RowNorm | None) -> tuple[Tensor | None, int, int, float]:
    """hidden, its row stride, its columns and eps, as kernels take them; the first is None without a norm."""
    if norm is None:
        return None, 0, 0, 0.0
    return norm.hidden, norm.hidden.stride(0), norm.hidden.shape[1], norm.eps
