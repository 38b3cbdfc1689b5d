"""RoPE and the paged write of fresh KVs in one Triton kernel.

q and k are read once, k goes rotated to its page (and, on request, to a contiguous tensor), v is copied. A program
takes a few tokens and a few heads of q, of k or of v; it looks up the tokens' cosines, sines and pages itself. Both
halves of a pair are loaded before either is stored, so q and k may be rotated in place. A deferred norm
(`row_norm.py`) is made up for here; each program then reads its tokens' hidden states, so tiles have few tokens and
many heads.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.batch import AttentionBatch
from .fp8 import FP8, LARGEST, Scales
from .head_norm import HeadNorm
from .row_norm import RowNorm
from .row_norm_triton import norm_arguments, row_factor

MANY_TOKENS = 512
"""A launch for more tokens than this takes larger tiles."""


@triton.jit
def _project(left, right, scale, scales_ptr, factor, bias_ptr, heads, dims, mask, HALF: tl.constexpr):
    """Both halves, fp32, times scales of tokens and columns and the tokens' factor, plus the heads' bias, if any."""
    left = left.to(tl.float32)
    right = right.to(tl.float32)
    if scales_ptr is not None:
        left *= scale * tl.load(scales_ptr + heads * (2 * HALF) + dims, mask=mask, other=0.0)
        right *= scale * tl.load(scales_ptr + heads * (2 * HALF) + dims + HALF, mask=mask, other=0.0)
    if factor is not None:
        left *= factor
        right *= factor
    if bias_ptr is not None:
        left += tl.load(bias_ptr + heads * (2 * HALF) + dims, mask=mask, other=0.0).to(tl.float32)
        right += tl.load(bias_ptr + heads * (2 * HALF) + dims + HALF, mask=mask, other=0.0).to(tl.float32)
    return left, right


@triton.jit
def _as_stored(x, dtype: tl.constexpr, LARGEST: tl.constexpr):
    """fp32 x in the pages' dtype; with LARGEST nothing is larger."""
    if LARGEST > 0.0:
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    return x.to(dtype)


@triton.jit
def _head_norm(left, right, weight_ptr, dims, eps, HALF: tl.constexpr):
    """Both halves of heads, fp32, after the heads' norm; left alone where there is none."""
    if weight_ptr is not None:
        squares = tl.sum(left * left, axis=2, keep_dims=True) + tl.sum(right * right, axis=2, keep_dims=True)
        scale = 1.0 / tl.sqrt(squares / (2 * HALF) + eps)
        left *= scale * tl.load(weight_ptr + dims).to(tl.float32)
        right *= scale * tl.load(weight_ptr + dims + HALF).to(tl.float32)
    return left, right


@triton.jit(do_not_specialize=["num_tokens", "band_offset"])
def _rope_write_kernel(
    q_ptr, k_ptr, v_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr, pages_ptr, bias_ptr, hidden_ptr,
    q_norm_ptr, k_norm_ptr, row_scales_ptr, scales_ptr,
    positions_ptr, rows_ptr, tables_ptr, slots_ptr,
    num_tokens, num_heads, num_kv_heads, slot_stride, band_offset,
    q_stride_token, q_stride_head, k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    q_out_stride_token, q_out_stride_head, k_out_stride_token, k_out_stride_head, cos_stride, sin_stride,
    stride_page, stride_kv, stride_slot, stride_head, stride_dim, hidden_stride, hidden_cols, eps, head_eps,
    PAGE_SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Tiles are [BLOCK_TOKENS, BLOCK_HEADS, HALF]; `chunk` counts groups of heads, first of q, then of k, then of v."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    chunk = tl.program_id(1)
    q_chunks = tl.cdiv(num_heads, BLOCK_HEADS)
    kv_chunks = tl.cdiv(num_kv_heads, BLOCK_HEADS)
    factor = None
    if hidden_ptr is not None:  # tiles of one token
        factor = row_factor(hidden_ptr, tl.program_id(0).to(tl.int64), hidden_stride, hidden_cols, eps, BLOCK_COLUMNS)
    scale = None
    if row_scales_ptr is not None:
        scale = tl.load(row_scales_ptr + tokens, mask=tokens < num_tokens, other=0.0)[:, None, None]
    position = tl.load(positions_ptr + tokens, mask=tokens < num_tokens, other=-1)
    row = tl.load(rows_ptr + tokens, mask=tokens < num_tokens, other=0)
    real = position >= 0
    dims = tl.arange(0, HALF)[None, None, :]
    lanes = tl.arange(0, BLOCK_HEADS)
    token_at = tokens[:, None, None]

    if chunk < q_chunks:
        heads = (chunk * BLOCK_HEADS + lanes).to(tl.int64)[None, :, None]
        mask = real[:, None, None] & (heads < num_heads)
        at = token_at * q_stride_token + heads * q_stride_head + dims
        left = tl.load(q_ptr + at, mask=mask, other=0.0)
        right = tl.load(q_ptr + at + HALF, mask=mask, other=0.0)
        left, right = _project(left, right, scale, scales_ptr, factor, bias_ptr, heads, dims, mask, HALF)
        left, right = _head_norm(left, right, q_norm_ptr, dims, head_eps, HALF)
        angle = position.to(tl.int64)[:, None, None]
        cos = tl.load(cos_ptr + angle * cos_stride + dims, mask=real[:, None, None], other=0.0)
        sin = tl.load(sin_ptr + angle * sin_stride + dims, mask=real[:, None, None], other=0.0)
        to = q_out_ptr + token_at * q_out_stride_token + heads * q_out_stride_head + dims
        tl.store(to, (left * cos - right * sin).to(q_out_ptr.dtype.element_ty), mask=mask)
        tl.store(to + HALF, (right * cos + left * sin).to(q_out_ptr.dtype.element_ty), mask=mask)
        return

    slot = tl.load(slots_ptr + row, mask=real, other=0).to(tl.int64)
    table = tables_ptr + slot * slot_stride + band_offset
    page = tl.load(table + position // PAGE_SIZE, mask=real, other=0).to(tl.int64)
    place = (page * stride_page + (position % PAGE_SIZE).to(tl.int64) * stride_slot)[:, None, None]
    is_value = chunk >= q_chunks + kv_chunks
    chunk -= q_chunks
    first = num_heads  # of the heads that a bias counts
    if is_value:
        chunk -= kv_chunks
        first += num_kv_heads
    heads = (chunk * BLOCK_HEADS + lanes).to(tl.int64)[None, :, None]
    mask = real[:, None, None] & (heads < num_kv_heads)
    to = pages_ptr + place + heads * stride_head + dims * stride_dim
    dtype = pages_ptr.dtype.element_ty
    if is_value:
        v_at = token_at * v_stride_token + heads * v_stride_head + dims
        v_left = tl.load(v_ptr + v_at, mask=mask, other=0.0)
        v_right = tl.load(v_ptr + v_at + HALF, mask=mask, other=0.0)
        v_left, v_right = _project(
            v_left, v_right, scale, scales_ptr, factor, bias_ptr, first + heads, dims, mask, HALF
        )
        tl.store(to + stride_kv, _as_stored(v_left, dtype, LARGEST), mask=mask)
        tl.store(to + stride_kv + HALF * stride_dim, _as_stored(v_right, dtype, LARGEST), mask=mask)
    else:
        at = token_at * k_stride_token + heads * k_stride_head + dims
        left = tl.load(k_ptr + at, mask=mask, other=0.0)
        right = tl.load(k_ptr + at + HALF, mask=mask, other=0.0)
        left, right = _project(left, right, scale, scales_ptr, factor, bias_ptr, first + heads, dims, mask, HALF)
        left, right = _head_norm(left, right, k_norm_ptr, dims, head_eps, HALF)
        angle = position.to(tl.int64)[:, None, None]
        cos = tl.load(cos_ptr + angle * cos_stride + dims, mask=real[:, None, None], other=0.0)
        sin = tl.load(sin_ptr + angle * sin_stride + dims, mask=real[:, None, None], other=0.0)
        turned_left = left * cos - right * sin
        turned_right = right * cos + left * sin
        tl.store(to, _as_stored(turned_left, dtype, LARGEST), mask=mask)
        tl.store(to + HALF * stride_dim, _as_stored(turned_right, dtype, LARGEST), mask=mask)
        if k_out_ptr is not None:
            k_to = k_out_ptr + token_at * k_out_stride_token + heads * k_out_stride_head + dims
            tl.store(k_to, turned_left.to(k_out_ptr.dtype.element_ty), mask=mask)
            tl.store(k_to + HALF, turned_right.to(k_out_ptr.dtype.element_ty), mask=mask)


def rope_write_kv_triton(
    q: Tensor, k: Tensor, v: Tensor, cos_table: Tensor, sin_table: Tensor, positions: Tensor, rows: Tensor,
    batch: AttentionBatch, band: int, layer_pages: Tensor, *, q_out: Tensor | None = None, k_out: Tensor | None = None,
    norm: RowNorm | None = None, bias: Tensor | None = None, head_norm: HeadNorm | None = None,
    scales: Scales | None = None, block: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """`rope_write_kv`; reads nothing of the batch on the host. k_out needs k's dtype.

    `block`: (tokens, heads) of a tile, powers of two; chosen by the number of tokens by default. head_dim must be a
    power of two.
    """
    tokens, heads, head_dim = q.shape
    kv_heads, page_size = k.shape[1], layer_pages.shape[2]
    if q_out is None:
        q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if head_dim & (head_dim - 1) or page_size & (page_size - 1):
        raise ValueError(f"head_dim {head_dim} and page_size {page_size} must be powers of two")
    strided = [q, k, v, q_out, cos_table, sin_table] + ([] if k_out is None else [k_out])
    if any(x.stride(-1) != 1 for x in strided):
        raise ValueError("the last dimension of q, k, v, cos_table and sin_table must be contiguous")
    if k.shape != v.shape or (kv_heads, head_dim) != layer_pages.shape[3:] or q_out.shape != q.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} do not fit pages {tuple(layer_pages.shape)}")
    if k_out is not None and (k_out.shape != k.shape or k_out.dtype != k.dtype):
        raise ValueError(f"k_out {tuple(k_out.shape)} {k_out.dtype} must be {tuple(k.shape)} {k.dtype}")
    for name, x in (("positions", positions), ("rows", rows)):
        if x.dtype != torch.int32 or x.shape != (tokens,) or not x.is_contiguous():
            raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}; it must be int32 [{tokens}], contiguous")
    if not 0 <= band < batch.page_tables.shape[1]:
        raise ValueError(f"band {band} of {batch.page_tables.shape[1]}")
    if norm is not None:
        norm.check(tokens)
        if block is not None and block[0] != 1:
            raise ValueError(f"block {block}: with a norm a tile holds one token")
    if bias is not None and (bias.numel() != (heads + 2 * kv_heads) * head_dim or not bias.is_contiguous()):
        raise ValueError(f"bias {tuple(bias.shape)} must be contiguous, [{heads + 2 * kv_heads}, {head_dim}]")
    if scales is not None and (scales.rows.numel(), scales.columns.numel()) != (
        tokens, (heads + 2 * kv_heads) * head_dim,
    ):  # fmt: skip
        raise ValueError(f"scales {tuple(scales.rows.shape)}, {tuple(scales.columns.shape)} do not fit q, k and v")
    q_norm, k_norm, head_eps = None, None, 0.0
    if head_norm is not None:
        head_norm.check(head_dim)
        q_norm, k_norm, head_eps = head_norm.q_weight, head_norm.k_weight, head_norm.eps
    if tokens:
        usual = (1, 8) if norm is not None else (4, 8) if tokens > MANY_TOKENS else (4, 2)
        block_tokens, block_heads = block or usual
        chunks = triton.cdiv(heads, block_heads) + 2 * triton.cdiv(kv_heads, block_heads)
        k_to = k if k_out is None else k_out
        hidden, stride, width, eps, block_columns = norm_arguments(norm)
        grid = (triton.cdiv(tokens, block_tokens), chunks)
        num_warps = 4 if norm is not None or block_tokens * block_heads * head_dim >= 4096 else 2
        _rope_write_kernel[grid](
            q, k, v, q_out, k_out, cos_table, sin_table, layer_pages, bias, hidden, q_norm, k_norm,
            *(scales or (None, None)),
            positions, rows, batch.page_tables, batch.slots, tokens, heads, kv_heads,
            batch.page_tables.stride(0), band * batch.page_tables.stride(1),
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *q_out.stride()[:2], *k_to.stride()[:2],
            cos_table.stride(0), sin_table.stride(0), *layer_pages.stride(), stride, width, eps, head_eps,
            PAGE_SIZE=page_size, HALF=head_dim // 2, BLOCK_TOKENS=block_tokens, BLOCK_HEADS=block_heads,
            BLOCK_COLUMNS=block_columns, LARGEST=LARGEST if layer_pages.dtype == FP8 else 0.0, num_warps=num_warps,
        )  # fmt: skip
    return q_out
