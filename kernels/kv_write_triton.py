"""RoPE and the paged write of fresh KVs in one Triton kernel.

`apply_rope_reference` on q and k, then `write_kv_reference`: q and k are read once, k goes rotated to its page and
nowhere else, v is copied. A program takes BLOCK_TOKENS tokens and up to HEADS_PER_PROGRAM heads of q, of k or of v,
and holds the tokens' cosines and sines for all of these heads. Both halves of a pair are loaded before either is
stored, so q may be rotated in place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_TOKENS = 16
_HEADS_PER_PROGRAM = 8


@triton.jit
def _rotate(x_ptr, left_at, right_at, cos, sin, mask):
    left = tl.load(x_ptr + left_at, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + right_at, mask=mask, other=0.0).to(tl.float32)
    return left * cos - right * sin, right * cos + left * sin


@triton.jit
def _rope_write_kernel(
    q_ptr, k_ptr, v_ptr, q_out_ptr, cos_ptr, sin_ptr, pages_ptr, page_ids_ptr, slots_ptr,
    num_tokens, num_heads, num_kv_heads,
    q_stride_token, q_stride_head, k_stride_token, k_stride_head, v_stride_token, v_stride_head,
    q_out_stride_token, q_out_stride_head, cos_stride, sin_stride,
    stride_page, stride_kv, stride_slot, stride_head, stride_dim,
    HALF: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEADS_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    chunk = tl.program_id(1).to(tl.int64)
    q_chunks = tl.cdiv(num_heads, HEADS_PER_PROGRAM)
    kv_chunks = tl.cdiv(num_kv_heads, HEADS_PER_PROGRAM)
    in_tokens = tokens < num_tokens
    mask = in_tokens[:, None]
    dims = tl.arange(0, HALF)[None, :]

    if chunk < q_chunks + kv_chunks:
        cos = tl.load(cos_ptr + tokens[:, None] * cos_stride + dims, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + tokens[:, None] * sin_stride + dims, mask=mask, other=0.0)
        if chunk < q_chunks:
            first = chunk * HEADS_PER_PROGRAM
            for head in range(first, tl.minimum(first + HEADS_PER_PROGRAM, num_heads)):
                at = tokens[:, None] * q_stride_token + head * q_stride_head + dims
                left, right = _rotate(q_ptr, at, at + HALF, cos, sin, mask)
                to = q_out_ptr + tokens[:, None] * q_out_stride_token + head * q_out_stride_head + dims
                tl.store(to, left.to(q_out_ptr.dtype.element_ty), mask=mask)
                tl.store(to + HALF, right.to(q_out_ptr.dtype.element_ty), mask=mask)
        else:
            page = tl.load(page_ids_ptr + tokens, mask=in_tokens, other=0).to(tl.int64)
            slot = tl.load(slots_ptr + tokens, mask=in_tokens, other=0).to(tl.int64)
            place = (page * stride_page + slot * stride_slot)[:, None] + dims * stride_dim
            first = (chunk - q_chunks) * HEADS_PER_PROGRAM
            for head in range(first, tl.minimum(first + HEADS_PER_PROGRAM, num_kv_heads)):
                at = tokens[:, None] * k_stride_token + head * k_stride_head + dims
                left, right = _rotate(k_ptr, at, at + HALF, cos, sin, mask)
                to = pages_ptr + place + head * stride_head
                tl.store(to, left.to(pages_ptr.dtype.element_ty), mask=mask)
                tl.store(to + HALF * stride_dim, right.to(pages_ptr.dtype.element_ty), mask=mask)
    else:
        page = tl.load(page_ids_ptr + tokens, mask=in_tokens, other=0).to(tl.int64)
        slot = tl.load(slots_ptr + tokens, mask=in_tokens, other=0).to(tl.int64)
        all_dims = tl.arange(0, 2 * HALF)[None, :]
        place = (page * stride_page + slot * stride_slot)[:, None] + all_dims * stride_dim + stride_kv
        first = (chunk - q_chunks - kv_chunks) * HEADS_PER_PROGRAM
        for head in range(first, tl.minimum(first + HEADS_PER_PROGRAM, num_kv_heads)):
            at = tokens[:, None] * v_stride_token + head * v_stride_head + all_dims
            v = tl.load(v_ptr + at, mask=mask, other=0.0)
            tl.store(pages_ptr + place + head * stride_head, v.to(pages_ptr.dtype.element_ty), mask=mask)


def rope_write_kv_triton(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor,
    layer_pages: Tensor, pages: Tensor, offsets: Tensor, q_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rotate q and k by their positions, and write k (rotated) and v to the tokens' places in the pool.

    Args:
        q: [tokens, heads, head_dim], not rotated. Like k and v: any strides but a contiguous last dimension.
        k, v: [tokens, kv_heads, head_dim], k not rotated. Neither is changed.
        cos, sin: fp32 [tokens, head_dim / 2], as `rope_table` rows of the tokens' positions.
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim], strided at will, written.
        pages, offsets: int32 or int64 [tokens], page id and position within the page; no two tokens share a place.
        q_out: where the rotated q goes, last dimension contiguous; q itself means in place; a new tensor by default.

    Returns the rotated q. head_dim is a power of two.
    """
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    if q_out is None:
        q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if head_dim & (head_dim - 1):
        raise ValueError(f"head_dim {head_dim} must be a power of two")
    if any(x.stride(2) != 1 for x in (q, k, v, q_out)) or cos.stride(1) != 1 or sin.stride(1) != 1:
        raise ValueError("the last dimension of q, k, v, cos and sin must be contiguous")
    if k.shape != v.shape or (kv_heads, head_dim) != layer_pages.shape[3:] or q_out.shape != q.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} do not fit pages {tuple(layer_pages.shape)}")
    if not pages.is_contiguous() or not offsets.is_contiguous():
        raise ValueError("pages and offsets must be contiguous")
    if tokens:
        chunks = triton.cdiv(heads, _HEADS_PER_PROGRAM) + 2 * triton.cdiv(kv_heads, _HEADS_PER_PROGRAM)
        _rope_write_kernel[(triton.cdiv(tokens, _BLOCK_TOKENS), chunks)](
            q, k, v, q_out, cos, sin, layer_pages, pages, offsets, tokens, heads, kv_heads,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *q_out.stride()[:2], cos.stride(0), sin.stride(0),
            *layer_pages.stride(),
            HALF=head_dim // 2, BLOCK_TOKENS=_BLOCK_TOKENS, HEADS_PER_PROGRAM=_HEADS_PER_PROGRAM, num_warps=4,
        )  # fmt: skip
    return q_out
