"""The factor of a deferred RMSNorm inside Triton kernels; the formula is in `row_norm.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .row_norm import RowNorm


@triton.jit
def row_factor(hidden_ptr, row, row_stride, n_cols, eps, BLOCK_COLUMNS: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of the hidden row `row` (int64), fp32; BLOCK_COLUMNS: a power of two, n_cols or more.

    All of the row is asked for at once: a loop over parts of it would wait for each.
    """
    columns = tl.arange(0, BLOCK_COLUMNS)
    x = tl.load(hidden_ptr + row * row_stride + columns, mask=columns < n_cols, other=0.0).to(tl.float32)
    return 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)


def norm_arguments(norm: RowNorm | None) -> tuple[Tensor | None, int, int, float, int]:
    """hidden, its row stride, its columns and eps, as kernels take them, and the columns' next power of two.

    The first is None without a norm.
    """
    if norm is None:
        return None, 0, 0, 0.0, 1
    columns = norm.hidden.shape[1]
    return norm.hidden, norm.hidden.stride(0), columns, norm.eps, triton.next_power_of_2(columns)
