"""Embeddings of the tokens at a batch's positions in one Triton kernel; what it does is in `embed.py`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _embed_kernel(
    table_ptr, tokens_ptr, slots_ptr, requests_ptr, positions_ptr, out_ptr, n_cols, table_stride, tokens_stride,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position = tl.maximum(tl.load(positions_ptr + row), 0)
    slot = tl.load(slots_ptr + tl.load(requests_ptr + row)).to(tl.int64)
    token = tl.load(tokens_ptr + slot * tokens_stride + position).to(tl.int64)
    columns = tl.arange(0, BLOCK_SIZE)
    x = tl.load(table_ptr + token * table_stride + columns, mask=columns < n_cols, other=0.0)
    tl.store(out_ptr + row * n_cols + columns, x, mask=columns < n_cols)


def embed_triton(table: Tensor, tokens: Tensor, slots: Tensor, requests: Tensor, positions: Tensor) -> Tensor:
    """`embed`: a program a row."""
    if table.stride(1) != 1 or tokens.stride(1) != 1:
        raise ValueError("the last dimensions of table and tokens must be contiguous")
    rows, columns = positions.shape[0], table.shape[1]
    for name, x in (("requests", requests), ("positions", positions)):
        if x.dtype != torch.int32 or x.shape != (rows,) or not x.is_contiguous():
            raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}; it must be int32 [{rows}], contiguous")
    out = torch.empty((rows, columns), dtype=table.dtype, device=table.device)
    if rows:
        _embed_kernel[(rows,)](
            table, tokens, slots, requests, positions, out, columns, table.stride(0), tokens.stride(0),
            BLOCK_SIZE=triton.next_power_of_2(columns), num_warps=4,
        )  # fmt: skip
    return out
