"""Ragged bidirectional attention over paged KVs in Triton: one kernel for long queries and for block steps.

What: flash attention (Dao 2023, arXiv 2307.08691) without a causal mask. A tile holds BLOCK_ROWS pairs (query, head
of one KV group), the heads of a query side by side, so that grouped-query attention reads a key once for the whole
group. A program works on one tile, one KV head and one split of the keys. With one split it writes the output; with
several (flash-decoding, for few queries) it writes fp32 parts, which `attention_merge_triton` puts together.

Ragged: tile i of request r is program floor(query_start[r] * group / BLOCK_ROWS) + r + i. Every request has at least as
many program ids there as it has tiles; surplus ones return at once. So the grid depends on the number of tokens
and requests alone, nothing is padded to the longest request, and the launch needs no look at device memory.

Cautions: fp32 products are exact ("ieee", no TF32), hence slow on tensor cores. Keys past a request's length are
never used, whatever their pages hold; page ids past it are never followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_merge_triton import merge_states_triton

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Where the queries and keys of each request of a batch are; the same for every layer of a band.

    page_tables: int32 [requests, max_pages], contiguous; entries past a request's keys may be anything.
    query_starts: int32 [requests + 1]; request r's queries are rows query_starts[r] .. query_starts[r + 1] - 1 of q.
    key_lengths: int32 [requests].
    """

    page_tables: Tensor
    query_starts: Tensor
    key_lengths: Tensor

    @staticmethod
    def build(page_tables: Sequence[Tensor], query_lengths: Sequence[int], key_lengths: Sequence[int]) -> PagedBatch:
        """From the arguments of `paged_attention_reference`, at least one request, on the page tables' device."""
        device = page_tables[0].device
        table = torch.nn.utils.rnn.pad_sequence(list(page_tables), batch_first=True).to(torch.int32)
        starts = torch.tensor([0, *query_lengths]).cumsum(0)
        return PagedBatch(
            table.contiguous(),
            starts.to(device, torch.int32),
            torch.tensor(list(key_lengths), dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class AttentionTiling:
    """Rows (query x head of a group) and keys of a tile; keys of a split, or None for one split; warps and stages."""

    block_rows: int
    block_keys: int
    split_keys: int | None = None
    num_warps: int = 4
    num_stages: int = 2

    @staticmethod
    def choose(
        tokens: int, requests: int, heads: int, kv_heads: int, max_keys: int, wide: bool, processors: int = 132
    ) -> AttentionTiling:
        """Tiling from what the host knows without a look at the device.

        Splits are made when (tile, KV head) pairs are too few for two programs on each processor, down to 256 keys
        a split. `wide` means fp32, whose products need many registers: hence the small tiles. Chosen by arithmetic
        and by what the compiler reports, not by measurement.
        """
        rows = math.ceil(tokens / max(1, requests)) * (heads // kv_heads)
        block_rows = min(32 if wide else 128, max(16, triton.next_power_of_2(rows)))
        block_keys = 16 if wide else 64
        programs = requests * triton.cdiv(rows, block_rows) * kv_heads
        splits = min(triton.cdiv(2 * processors, max(1, programs)), triton.cdiv(max_keys, 256))
        split_keys = None
        if splits > 1:
            split_keys = triton.cdiv(triton.cdiv(max_keys, splits), block_keys) * block_keys
        num_warps = 8 if wide or block_rows == 128 else 4
        return AttentionTiling(block_rows, block_keys, split_keys, num_warps, 2 if wide else 3)


@triton.jit
def _attend_to_tile(
    q, top, total, acc, keys, key_length,
    table_row_ptr, k_ptr, v_ptr, stride_page, stride_slot, stride_dim, scale_log2,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Take keys .. keys + BLOCK_KEYS - 1 into the running softmax; LAST means that some lie past key_length."""
    columns = keys + tl.arange(0, BLOCK_KEYS)
    dims = tl.arange(0, HEAD_DIM)
    valid = columns < key_length
    if PAGE_SIZE % BLOCK_KEYS == 0:
        page = tl.load(table_row_ptr + keys // PAGE_SIZE).to(tl.int64)
    else:
        if LAST:
            page = tl.load(table_row_ptr + columns // PAGE_SIZE, mask=valid, other=0).to(tl.int64)
        else:
            page = tl.load(table_row_ptr + columns // PAGE_SIZE).to(tl.int64)
    at = page * stride_page + (columns % PAGE_SIZE).to(tl.int64) * stride_slot
    offsets = at[:, None] + dims[None, :] * stride_dim
    if LAST:
        k = tl.load(k_ptr + offsets, mask=valid[:, None], other=0.0)
    else:
        k = tl.load(k_ptr + offsets)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if LAST:
        scores = tl.where(valid[None, :], scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    kept = tl.exp2(top - new_top)
    total = total * kept + tl.sum(weights, 1)
    if LAST:
        v = tl.load(v_ptr + offsets, mask=valid[:, None], other=0.0)
    else:
        v = tl.load(v_ptr + offsets)
    acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit
def _paged_attention_kernel(
    q_ptr, pages_ptr, out_ptr, lse_ptr, tables_ptr, starts_ptr, lengths_ptr,
    num_requests, num_tokens, num_heads, table_stride, split_keys, scale_log2,
    q_stride_token, q_stride_head,
    stride_page, stride_kv, stride_slot, stride_head, stride_dim,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_REQUESTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Output [splits, tokens, heads, HEAD_DIM] and log-sum-exp [splits, tokens, heads], both contiguous."""
    program = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)

    numbers = tl.arange(0, BLOCK_REQUESTS)
    starts = tl.load(starts_ptr + numbers, mask=numbers < num_requests, other=0)
    first_tiles = (starts * GROUP) // BLOCK_ROWS + numbers
    before = (numbers < num_requests) & (first_tiles <= program)
    request = tl.sum(before.to(tl.int32), 0) - 1
    start = tl.load(starts_ptr + request)
    queries = tl.load(starts_ptr + request + 1) - start
    tile = program - (start * GROUP) // BLOCK_ROWS - request
    if tile * BLOCK_ROWS >= queries * GROUP:
        return

    rows = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = rows < queries * GROUP
    tokens = (start + rows // GROUP).to(tl.int64)
    heads = kv_head * GROUP + rows % GROUP
    places = tokens * num_heads + heads
    dims = tl.arange(0, HEAD_DIM)
    key_length = tl.load(lengths_ptr + request)
    first_key = 0
    stop = key_length
    if SPLIT:
        first_key = split * split_keys
        stop = tl.minimum(key_length, first_key + split_keys)
        places += split.to(tl.int64) * num_tokens * num_heads
        if first_key >= key_length:
            tl.store(lse_ptr + places, tl.full([BLOCK_ROWS], -float("inf"), tl.float32), mask=in_rows)
            return

    q_offsets = tokens * q_stride_token + heads * q_stride_head
    q = tl.load(q_ptr + q_offsets[:, None] + dims[None, :], mask=in_rows[:, None], other=0.0)
    top = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    table_row_ptr = tables_ptr + request.to(tl.int64) * table_stride
    k_ptr = pages_ptr + kv_head * stride_head
    v_ptr = k_ptr + stride_kv
    whole_stop = first_key + (stop - first_key) // BLOCK_KEYS * BLOCK_KEYS
    for keys in range(first_key, whole_stop, BLOCK_KEYS):
        top, total, acc = _attend_to_tile(
            q, top, total, acc, keys, stop,
            table_row_ptr, k_ptr, v_ptr, stride_page, stride_slot, stride_dim, scale_log2,
            PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, False,
        )  # fmt: skip
    if whole_stop < stop:
        top, total, acc = _attend_to_tile(
            q, top, total, acc, whole_stop, stop,
            table_row_ptr, k_ptr, v_ptr, stride_page, stride_slot, stride_dim, scale_log2,
            PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, True,
        )  # fmt: skip

    has_keys = total > 0.0
    safe = tl.where(has_keys, total, 1.0)
    lse = tl.where(has_keys, (top + tl.log2(safe)) * 0.6931471805599453, -float("inf"))
    out = acc / safe[:, None]
    tl.store(out_ptr + places[:, None] * HEAD_DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), in_rows[:, None])
    tl.store(lse_ptr + places, lse, mask=in_rows)


def paged_attention_triton(
    q: Tensor, layer_pages: Tensor, batch: PagedBatch, tiling: AttentionTiling | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`paged_attention_reference`, with the log-sum-exp of each row's scaled scores beside the output.

    Args:
        q: [tokens, heads, head_dim]; its last dimension contiguous, the others strided at will.
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim] of q's dtype, strided at will.
        batch: the requests; their queries together are q's tokens. Nothing in it is read on the host.
        tiling: sizes of tiles and splits; `AttentionTiling.choose` by default.
        out: contiguous [tokens, heads, head_dim] to write to, for a caller that merges or captures graphs.

    Returns out (q's dtype) and the log-sum-exp (fp32 [tokens, heads], natural logarithm). A request without keys gets
    zeros and -inf. Heads must be a multiple of kv_heads; head_dim and page_size are powers of two, head_dim >= 16.
    """
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = layer_pages.shape[2:4]
    requests = batch.key_lengths.shape[0]
    _check(q, layer_pages, batch)
    if tiling is None:
        max_keys = batch.page_tables.shape[1] * page_size
        tiling = AttentionTiling.choose(tokens, requests, heads, kv_heads, max_keys, q.dtype == torch.float32)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse
    splits = split_count(batch, page_size, tiling)
    parts, parts_lse = out, lse
    if splits > 1:
        parts = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
        parts_lse = torch.empty((splits, tokens, heads), dtype=torch.float32, device=q.device)
    group = heads // kv_heads
    grid = (tokens * group // tiling.block_rows + requests, kv_heads, splits)
    _paged_attention_kernel[grid](
        q, layer_pages, parts, parts_lse, batch.page_tables, batch.query_starts, batch.key_lengths,
        requests, tokens, heads, batch.page_tables.stride(0), tiling.split_keys or 0, _LOG2_E / math.sqrt(head_dim),
        q.stride(0), q.stride(1), *layer_pages.stride(),
        GROUP=group, PAGE_SIZE=page_size, HEAD_DIM=head_dim,
        BLOCK_ROWS=tiling.block_rows, BLOCK_KEYS=tiling.block_keys,
        BLOCK_REQUESTS=triton.next_power_of_2(requests), SPLIT=splits > 1,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    if splits > 1:
        merge_states_triton(parts, parts_lse, out, lse)
    return out, lse


def split_count(batch: PagedBatch, page_size: int, tiling: AttentionTiling) -> int:
    """Splits of the keys that a launch makes: enough for a request that fills its row of the page tables."""
    if tiling.split_keys is None:
        return 1
    return triton.cdiv(batch.page_tables.shape[1] * page_size, tiling.split_keys)


def _check(q: Tensor, layer_pages: Tensor, batch: PagedBatch) -> None:
    heads, head_dim = q.shape[1:]
    page_size, kv_heads, page_head_dim = layer_pages.shape[2:]
    if q.dtype != layer_pages.dtype:
        raise ValueError(f"q is {q.dtype}, the pages are {layer_pages.dtype}")
    if head_dim != page_head_dim or heads % kv_heads:
        raise ValueError(f"q {tuple(q.shape)} does not fit pages {tuple(layer_pages.shape)}")
    if head_dim < 16 or head_dim & (head_dim - 1) or page_size & (page_size - 1):
        raise ValueError(f"head_dim {head_dim} and page_size {page_size} must be powers of two, head_dim >= 16")
    if q.stride(2) != 1 or batch.page_tables.stride(1) != 1:
        raise ValueError("the last dimension of q and of the page tables must be contiguous")
