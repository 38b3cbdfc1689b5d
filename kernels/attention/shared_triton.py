"""Attention of requests that share their first pages, in Triton: the shared keys are read once a group.

Two kernels. The first takes tiles of BLOCK_ROWS rows (query x head of a KV group) out of all requests of a group
together, so that a shared key is loaded once for up to BLOCK_ROWS rows, and leaves fp32 parts with their log-sum-exp.
Its programs are the items of the plan (`shared_groups.py`), which spreads few groups over the device by cutting their
keys into parts; items that are not in use return at once. The second is `attention_triton` over each request's own
keys: it begins with the state that the parts amount to, so that nothing is merged afterwards. Requests without a group
begin with an empty state at their first key, as they would alone.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import AttentionBatch
from .groups import BLOCK_ROWS, ITEM_FIELDS, MAX_PARTS, SharedGroups
from .tiling import SM_90_SHARED_MEMORY, AttentionTiling, shared_memory
from .triton import LOG2_E, attend_to_pages, attention_triton, check_attention, page_rows, queries_in_fp8


@triton.jit(do_not_specialize=["num_tokens", "band_offset"])
def _shared_attention_kernel(
    q_ptr, pages, parts_ptr, lse_ptr, tables_ptr, rows_ptr, items_ptr,
    num_tokens, num_heads, slot_stride, band_offset, scale_log2, q_stride_token, q_stride_head,
    stride_page, stride_kv, stride_slot, stride_head, stride_dim,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BULK: tl.constexpr, ITEM_FIELDS: tl.constexpr,
    PAGES_IN_FP8: tl.constexpr,
):  # fmt: skip
    """Parts [parts, tokens, heads, HEAD_DIM] and their log-sum-exps [parts, tokens, heads], fp32."""
    item_ptr = items_ptr + tl.program_id(0) * ITEM_FIELDS
    kv_head = tl.program_id(1)
    begin = tl.load(item_ptr)
    count = tl.load(item_ptr + 1)
    if count == 0:
        return
    tile = tl.load(item_ptr + 2)
    slot = tl.load(item_ptr + 3).to(tl.int64)
    first_key = tl.load(item_ptr + 4)
    stop = tl.load(item_ptr + 5)
    part = tl.load(item_ptr + 6).to(tl.int64)

    rows = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = rows < count * GROUP
    tokens = tl.load(rows_ptr + begin + rows // GROUP, mask=in_rows, other=0).to(tl.int64)
    heads = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, HEAD_DIM)
    q_offsets = tokens * q_stride_token + heads * q_stride_head
    q = tl.load(q_ptr + q_offsets[:, None] + dims[None, :], mask=in_rows[:, None], other=0.0)
    top = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    table_ptr = tables_ptr + slot * slot_stride + band_offset
    places = (part * num_tokens + tokens) * num_heads + heads
    if not BULK:
        kv_head = kv_head.to(tl.int64)
    if PAGES_IN_FP8:
        page_q, q_low, page_scale = queries_in_fp8(q, scale_log2)
    else:
        page_q, q_low, page_scale = q, None, scale_log2
    top, total, acc = attend_to_pages(
        page_q, q_low, top, total, acc, first_key, stop,
        table_ptr, pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, page_scale,
        PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, BULK,
    )  # fmt: skip
    out = acc / total[:, None]
    tl.store(parts_ptr + places[:, None] * HEAD_DIM + dims[None, :], out, mask=in_rows[:, None])
    tl.store(lse_ptr + places, (top + tl.log2(total)) * 0.6931471805599453, mask=in_rows)


SHARED_TILING = AttentionTiling(BLOCK_ROWS, 64, 8, 3, bulk=True)


def choose_shared_tiling(head_dim: int, memory: int) -> AttentionTiling:
    """Of the keys that a group shares: wider heads, and less shared memory than sm_90's, leave room for fewer keys."""
    if memory < SM_90_SHARED_MEMORY:
        return AttentionTiling(BLOCK_ROWS, 32 if head_dim <= 128 else 16, 8, 2)
    return SHARED_TILING if head_dim <= 128 else replace(SHARED_TILING, block_keys=32)


def shared_attention_triton(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, groups: SharedGroups, *, num_splits: int = 1,
    out: Tensor | None = None, tiling: AttentionTiling | None = None, shared_tiling: AttentionTiling | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention`, with the keys that groups share read once a group.

    Args:
        q, layer_pages, band, batch, num_splits, out, tiling: as in `attention_triton`; num_splits and tiling are those
            of the requests' own keys.
        groups: planned for this batch. A group's keys are the first of each of its requests.
        shared_tiling: of the first kernel, `choose_shared_tiling` by default; its block_rows are the plan's.
    """
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = layer_pages.shape[2:4]
    check_attention(q, layer_pages, band, batch)
    if shared_tiling is None:
        shared_tiling = choose_shared_tiling(head_dim, shared_memory(q.device))
    if groups.first_keys.shape[1] != batch.num_requests or groups.rows.shape[1] < tokens:
        raise ValueError(
            f"groups of {groups.first_keys.shape[1]} requests and {groups.rows.shape[1]} tokens for a batch of "
            f"{batch.num_requests} and {tokens}"
        )
    if shared_tiling.block_rows != BLOCK_ROWS:
        raise ValueError(f"block_rows is {shared_tiling.block_rows}; the plan's is {BLOCK_ROWS}")
    parts = torch.empty((MAX_PARTS, *q.shape), dtype=torch.float32, device=q.device)
    parts_lse = torch.empty((MAX_PARTS, tokens, heads), dtype=torch.float32, device=q.device)
    block_keys = 16 if q.dtype == torch.float32 else shared_tiling.block_keys
    bulk = shared_tiling.bulk and page_size % block_keys == 0
    pages, strides = page_rows(layer_pages, block_keys) if bulk else (layer_pages, layer_pages.stride())
    if tokens:
        _shared_attention_kernel[(groups.items.shape[1], kv_heads)](
            q, pages, parts, parts_lse, batch.page_tables, groups.rows[band], groups.items[band],
            tokens, heads, batch.page_tables.stride(0), band * batch.page_tables.stride(1),
            LOG2_E / math.sqrt(head_dim), q.stride(0), q.stride(1), *strides,
            GROUP=heads // kv_heads, PAGE_SIZE=page_size, HEAD_DIM=head_dim,
            BLOCK_ROWS=BLOCK_ROWS, BLOCK_KEYS=block_keys, BULK=bulk, ITEM_FIELDS=ITEM_FIELDS,
            PAGES_IN_FP8=layer_pages.dtype == torch.float8_e4m3fn,
            num_warps=shared_tiling.num_warps, num_stages=shared_tiling.num_stages,
            maxnreg=shared_tiling.most_registers,
        )  # fmt: skip
    return attention_triton(
        q, layer_pages, band, batch, num_splits=num_splits, out=out, tiling=tiling,
        begin=(groups.first_keys[band], groups.num_parts[band], parts, parts_lse),
    )  # fmt: skip
