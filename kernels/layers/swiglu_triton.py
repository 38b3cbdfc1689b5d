"""SwiGLU in Triton: y = silu(gate) * up, one pass over memory; the formula is in `swiglu.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_norm import RowNorm
from .row_norm_triton import norm_arguments, row_factor

_BLOCK_SIZE = 1024


@triton.jit
def _swiglu_kernel(
    gate_up_ptr, y_ptr, hidden_ptr, row_stride, n_cols, hidden_stride, hidden_cols, eps,
    BLOCK_SIZE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = columns < n_cols
    dtype = y_ptr.dtype.element_ty
    gate = tl.load(gate_up_ptr + row * row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * row_stride + n_cols + columns, mask=mask, other=0.0).to(tl.float32)
    if hidden_ptr is not None:
        factor = row_factor(hidden_ptr, row, hidden_stride, hidden_cols, eps, BLOCK_COLUMNS)
        gate *= factor
        up *= factor
    gated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(y_ptr + row * n_cols + columns, (gated * up).to(dtype), mask=mask)


def swiglu_triton(gate_up: Tensor, norm: RowNorm | None = None, *, block_size: int = _BLOCK_SIZE) -> Tensor:
    """`swiglu`: gate_up [T, 2F], any row stride, to a new [T, F] of the same dtype.

    silu(gate) is rounded to the dtype before it meets the up projection, as in the reference.
    """
    if gate_up.stride(1) != 1 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up {tuple(gate_up.shape)} needs an even, contiguous last dimension")
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    if norm is not None:
        norm.check(rows)
    y = torch.empty((rows, columns), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(columns, block_size))
        hidden, stride, width, eps, block_columns = norm_arguments(norm)
        _swiglu_kernel[grid](
            gate_up, y, hidden, gate_up.stride(0), columns, stride, width, eps,
            BLOCK_SIZE=block_size, BLOCK_COLUMNS=block_columns, num_warps=4,
        )  # fmt: skip
    return y
