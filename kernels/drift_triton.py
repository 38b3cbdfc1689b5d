"""How far cached KVs have moved, in Triton: both pages are read once, nothing is gathered.

A program takes a page of one layer, keys or values, and leaves three fp32 sums; torch adds those up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .drift import Drift


@triton.jit
def _drift_kernel(
    pages_ptr, cached_ptr, fresh_ptr, sums_ptr, tokens, kv_heads,
    stride_page, stride_layer, stride_kv, stride_slot, stride_head, stride_dim,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Sums [3, layers, 2, pages]: of cosines, of squared differences, of squares of the fresh."""
    number = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    kv = tl.program_id(2).to(tl.int64)
    base = pages_ptr + layer * stride_layer + kv * stride_kv
    a_ptr = base + tl.load(cached_ptr + number).to(tl.int64) * stride_page
    b_ptr = base + tl.load(fresh_ptr + number).to(tl.int64) * stride_page
    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, HEAD_DIM)[None, :]
    num_rows = tl.minimum(PAGE_SIZE, tokens - number * PAGE_SIZE) * kv_heads
    cosines = tl.zeros([BLOCK_ROWS], tl.float32)
    differences = tl.zeros([BLOCK_ROWS], tl.float32)
    squares = tl.zeros([BLOCK_ROWS], tl.float32)
    for first in range(0, num_rows, BLOCK_ROWS):
        at = first + rows
        mask = (at < num_rows)[:, None]
        offset = (at // kv_heads).to(tl.int64) * stride_slot + (at % kv_heads).to(tl.int64) * stride_head
        offsets = offset[:, None] + dims * stride_dim
        a = tl.load(a_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        b_squares = tl.sum(b * b, 1)
        norms = tl.sqrt(tl.sum(a * a, 1)) * tl.sqrt(b_squares)
        cosines += tl.sum(a * b, 1) / tl.maximum(norms, 1e-20)
        differences += tl.sum((a - b) * (a - b), 1)
        squares += b_squares
    pages = tl.num_programs(0)
    plane = tl.num_programs(1) * 2 * pages
    to = sums_ptr + (layer * 2 + kv) * pages + number
    tl.store(to, tl.sum(cosines, 0))
    tl.store(to + plane, tl.sum(differences, 0))
    tl.store(to + 2 * plane, tl.sum(squares, 0))


def drift_triton(pages: Tensor, cached: Tensor, fresh: Tensor, tokens: int) -> Drift:
    """`drift_reference`; head_dim and page_size are powers of two."""
    layers, page_size, kv_heads, head_dim = pages.shape[1], *pages.shape[3:]
    count = triton.cdiv(tokens, page_size)
    if tokens < 1 or min(cached.shape[0], fresh.shape[0]) < count:
        raise ValueError(f"{tokens} tokens in {cached.shape[0]} and {fresh.shape[0]} pages of {page_size}")
    sums = torch.empty((3, layers, 2, count), dtype=torch.float32, device=pages.device)
    _drift_kernel[(count, layers, 2)](
        pages, cached, fresh, sums, tokens, kv_heads, *pages.stride(),
        PAGE_SIZE=page_size, HEAD_DIM=head_dim, BLOCK_ROWS=32, num_warps=4,
    )  # fmt: skip
    cosines, differences, squares = sums.sum(-1)
    return Drift(cosines / (tokens * kv_heads), (differences / squares.clamp(min=1e-20)).sqrt())
