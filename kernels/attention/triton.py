"""Ragged bidirectional attention over paged KVs in Triton: one kernel for refreshes and for block steps.

What: flash attention (Dao 2023, arXiv 2307.08691) without a causal mask. A tile holds BLOCK_ROWS pairs (query, head
of one KV group), the heads of a query side by side, so that grouped-query attention reads a key once for the whole
group. A program works on one tile, one KV head and one split of the keys. With one split it writes the output; with
several (flash-decoding, for few queries) it writes fp32 parts, which `merge_state_triton` puts together.

Ragged: tile i of request r is program floor(query_start[r] * group / BLOCK_ROWS) + r + i. Every request has at least as
many program ids there as it has tiles; surplus ones return at once. So the grid depends on the number of tokens
and requests alone, nothing is padded to the longest request, and the launch needs no look at device memory.

Keys come from pages, through the request's page table, by one of two ways: tiles of pointers, for any page size and
strides; or one bulk copy a tile (tensor memory accelerator), where a page holds whole tiles. In a refresh the keys of
the queries' own positions can be read from the contiguous tensors that the projection left (`fresh_kv`).

Cautions: fp32 products are exact ("ieee", no TF32), hence slow. Keys past a request's length are never used, whatever
their pages hold; page ids past it are never followed.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .batch import AttentionBatch
from .merge_triton import merge_states_triton
from .tiling import AttentionTiling, choose_tiling, request_lanes, shared_memory

LOG2_E = 1.4426950408889634


@triton.jit
def queries_in_fp8(q, scale_log2):
    """Queries for products with keys in fp8: two numbers in e4m3 whose sum is q times a factor of its row.

    Their sum has seven binary digits, as bfloat16 has. Returns them, and what makes scores of their products with keys.
    That is at most 8: a fused product and the stored top of the scores then differ by less than exp2 can bear. Only
    queries beyond 2e4 (head_dim 64) and 2.8e4 (128) reach it; their scores shrink, and the best key still takes all.
    """
    wide = q.to(tl.float32)
    factor = 448.0 / tl.maximum(tl.max(tl.abs(wide), 1), 1e-30)
    wide = wide * factor[:, None]
    high = wide.to(tl.float8e4nv)
    low = (wide - high.to(tl.float32)).to(tl.float8e4nv)
    return high, low, tl.minimum(scale_log2 / factor, 8.0)


@triton.jit
def softmax_step(q, q_low, k, v, top, total, acc, columns, stop, scale_log2, MASK: tl.constexpr):
    """Take a tile of keys into the running softmax (base 2); with MASK, columns from `stop` on do not count.

    With `q_low`, queries and keys are in fp8 (`queries_in_fp8`), and scale_log2 is [rows].
    """
    if q_low is not None:
        scores = tl.dot(q_low, tl.trans(k))
        scores = tl.dot(q, tl.trans(k), scores)
        by_row = scale_log2[:, None]
    else:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        by_row = scale_log2
    if MASK:
        scores = tl.where(columns[None, :] < stop, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * by_row - new_top[:, None])
    kept = tl.exp2(top - new_top)
    total = total * kept + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit
def page_of_keys(table_ptr, keys, stop, PAGE_SIZE: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """Page id of each of the keys keys .. keys + BLOCK_KEYS - 1, or their one page; 0 from `stop` on."""
    if PAGE_SIZE % BLOCK_KEYS == 0:
        page = tl.load(table_ptr + keys // PAGE_SIZE, mask=keys < stop, other=0)
    else:
        columns = keys + tl.arange(0, BLOCK_KEYS)
        page = tl.load(table_ptr + columns // PAGE_SIZE, mask=columns < stop, other=0)
    return page


@triton.jit
def _attend_to_page_tile(
    q, q_low, top, total, acc, page, keys, stop,
    pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, scale_log2,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr, BULK: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Keys keys .. keys + BLOCK_KEYS - 1 out of the pages; LAST means that some lie past `stop`.

    With BULK, `pages` is a descriptor of the pool as rows of stride_slot elements, and strides count such rows.
    """
    columns = keys + tl.arange(0, BLOCK_KEYS)
    dims = tl.arange(0, HEAD_DIM)
    if BULK:
        row = page * stride_page + kv_head * stride_head + keys % PAGE_SIZE
        k = pages.load([row, kv_head * stride_dim])
        v = pages.load([row + stride_kv, kv_head * stride_dim])
        if q_low is not None:  # one instruction converts two numbers; to bfloat16 it takes five
            v = v.to(tl.float16)
        if LAST:
            v = tl.where((columns < stop)[:, None], v, 0.0)
    else:
        at = page.to(tl.int64) * stride_page + (columns % PAGE_SIZE).to(tl.int64) * stride_slot
        k_ptrs = pages + kv_head * stride_head + at[:, None] + dims[None, :] * stride_dim
        if LAST:
            valid = columns < stop
            k = tl.load(k_ptrs, mask=valid[:, None], other=0.0)
            v = tl.load(k_ptrs + stride_kv, mask=valid[:, None], other=0.0)
        else:
            k = tl.load(k_ptrs)
            v = tl.load(k_ptrs + stride_kv)
        if q_low is not None:
            v = v.to(tl.float16)
    return softmax_step(q, q_low, k, v, top, total, acc, columns, stop, scale_log2, LAST)


@triton.jit
def attend_to_pages(
    q, q_low, top, total, acc, first_key, stop,
    table_ptr, pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, scale_log2,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """Keys first_key .. stop - 1 out of the pages, whole tiles without masks and one masked tile for the rest.

    Page ids are looked up a tile ahead: so a tile's loads wait for no other load, and as many tiles are on their way
    as the pipeline has stages.
    """
    whole = first_key + tl.maximum(stop - first_key, 0) // BLOCK_KEYS * BLOCK_KEYS
    page = page_of_keys(table_ptr, first_key, stop, PAGE_SIZE, BLOCK_KEYS)
    for keys in range(first_key, whole, BLOCK_KEYS):
        next_page = page_of_keys(table_ptr, keys + BLOCK_KEYS, stop, PAGE_SIZE, BLOCK_KEYS)
        top, total, acc = _attend_to_page_tile(
            q, q_low, top, total, acc, page, keys, stop,
            pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, scale_log2,
            PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, BULK, False,
        )  # fmt: skip
        page = next_page
    if whole < stop:
        top, total, acc = _attend_to_page_tile(
            q, q_low, top, total, acc, page, whole, stop,
            pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, scale_log2,
            PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, BULK, True,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def _attend_to_fresh_tile(
    q, top, total, acc, keys, stop, row, fresh_k, fresh_v, column, scale_log2,
    BLOCK_KEYS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Keys keys .. keys + BLOCK_KEYS - 1 out of the fresh tensors, whose row `row` holds key `keys`."""
    columns = keys + tl.arange(0, BLOCK_KEYS)
    k = fresh_k.load([row, column])
    v = fresh_v.load([row, column])
    if LAST:  # what follows may be another request's, or not a number
        v = tl.where((columns < stop)[:, None], v, 0.0)
    return softmax_step(q, None, k, v, top, total, acc, columns, stop, scale_log2, LAST)


@triton.jit(do_not_specialize=["num_requests", "num_tokens", "band_offset"])
def _attention_kernel(
    q_ptr, pages, fresh_k, fresh_v, out_ptr, lse_ptr,
    tables_ptr, slots_ptr, starts_ptr, lengths_ptr,
    first_keys_ptr, num_parts_ptr, begin_ptr, begin_lse_ptr,
    num_requests, num_tokens, num_heads, slot_stride, band_offset, scale_log2,
    q_stride_token, q_stride_head,
    stride_page, stride_kv, stride_slot, stride_head, stride_dim,
    GROUP: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_REQUESTS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, BEGIN: tl.constexpr,
    FRESH: tl.constexpr, BULK: tl.constexpr, HEADS_FIRST: tl.constexpr, PAGES_IN_FP8: tl.constexpr,
):  # fmt: skip
    """Output [splits, tokens, heads, HEAD_DIM] and log-sum-exp [splits, tokens, heads], both contiguous.

    With BEGIN, request r's keys begin at first_keys[r], and the state of split 0 with the first num_parts[r] of the
    parts [parts, tokens, heads, HEAD_DIM] that the keys before gave.
    """
    if HEADS_FIRST:
        kv_head = tl.program_id(0)
        program = tl.program_id(1)
    else:
        program = tl.program_id(0)
        kv_head = tl.program_id(1)
    split = tl.program_id(2)

    if BLOCK_REQUESTS == 1:  # nothing to look for: the loads below then wait for no other
        request = 0
    else:
        numbers = tl.arange(0, BLOCK_REQUESTS)
        starts = tl.load(starts_ptr + numbers, mask=numbers < num_requests, other=0)
        first_tiles = (starts * GROUP) // BLOCK_ROWS + numbers
        before = (numbers < num_requests) & (first_tiles <= program)
        request = tl.sum(before.to(tl.int32), 0) - 1
    start = tl.load(starts_ptr + request)
    queries = tl.load(starts_ptr + request + 1) - start
    key_length = tl.load(lengths_ptr + request)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    tile = program - (start * GROUP) // BLOCK_ROWS - request
    if tile * BLOCK_ROWS >= queries * GROUP:
        return

    rows = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = rows < queries * GROUP
    tokens = (start + rows // GROUP).to(tl.int64)
    heads = kv_head * GROUP + rows % GROUP
    places = tokens * num_heads + heads
    dims = tl.arange(0, HEAD_DIM)
    first_key = 0
    parts = 0
    if BEGIN:
        first_key = tl.load(first_keys_ptr + request)
        parts = tl.load(num_parts_ptr + request)
    stop = key_length
    to = places
    if NUM_SPLITS > 1:
        own_keys = tl.maximum(key_length - first_key, 0)
        split_keys = tl.cdiv(tl.cdiv(own_keys, NUM_SPLITS), BLOCK_KEYS) * BLOCK_KEYS
        parts = tl.where(split == 0, parts, 0)
        first_key += split * split_keys
        stop = tl.minimum(key_length, first_key + split_keys)
        to += split.to(tl.int64) * num_tokens * num_heads
        if (first_key >= stop) & (parts == 0):
            tl.store(lse_ptr + to, tl.full([BLOCK_ROWS], -float("inf"), tl.float32), mask=in_rows)
            return

    q_offsets = tokens * q_stride_token + heads * q_stride_head
    q = tl.load(q_ptr + q_offsets[:, None] + dims[None, :], mask=in_rows[:, None], other=0.0)
    top = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    if BEGIN:
        at = places
        for _ in range(parts):
            lse = tl.load(begin_lse_ptr + at, mask=in_rows, other=0.0) * 1.4426950408889634
            part = tl.load(begin_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=in_rows[:, None], other=0.0)
            new_top = tl.maximum(top, lse)
            kept = tl.exp2(top - new_top)
            weight = tl.exp2(lse - new_top)
            acc = acc * kept[:, None] + part * weight[:, None]
            total = total * kept + weight
            top = new_top
            at += tl.cast(num_tokens, tl.int64) * num_heads

    table_ptr = tables_ptr + slot * slot_stride + band_offset
    page_stop = stop
    if FRESH:
        fresh_first = tl.maximum(key_length - queries, 0)
        page_stop = tl.minimum(stop, fresh_first)
    if not BULK:
        kv_head = kv_head.to(tl.int64)
    if PAGES_IN_FP8:
        page_q, q_low, page_scale = queries_in_fp8(q, scale_log2)
    else:
        page_q, q_low, page_scale = q, None, scale_log2
    top, total, acc = attend_to_pages(
        page_q, q_low, top, total, acc, first_key, page_stop,
        table_ptr, pages, kv_head, stride_page, stride_kv, stride_slot, stride_head, stride_dim, page_scale,
        PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, BULK,
    )  # fmt: skip
    if FRESH:
        begin = tl.maximum(first_key, fresh_first)
        column = (kv_head * HEAD_DIM).to(tl.int32)
        row = start - fresh_first
        whole = begin + tl.maximum(stop - begin, 0) // BLOCK_KEYS * BLOCK_KEYS
        for keys in range(begin, whole, BLOCK_KEYS):
            top, total, acc = _attend_to_fresh_tile(
                q, top, total, acc, keys, stop, row + keys, fresh_k, fresh_v, column, scale_log2, BLOCK_KEYS, False
            )
        if whole < stop:
            top, total, acc = _attend_to_fresh_tile(
                q, top, total, acc, whole, stop, row + whole, fresh_k, fresh_v, column, scale_log2, BLOCK_KEYS, True
            )

    has_keys = total > 0.0
    safe = tl.where(has_keys, total, 1.0)
    lse = tl.where(has_keys, (top + tl.log2(safe)) * 0.6931471805599453, -float("inf"))
    out = acc / safe[:, None]
    tl.store(out_ptr + to[:, None] * HEAD_DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), in_rows[:, None])
    tl.store(lse_ptr + to, lse, mask=in_rows)


def attention_triton(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, *, num_splits: int = 1,
    fresh_kv: tuple[Tensor, Tensor] | None = None, out: Tensor | None = None, tiling: AttentionTiling | None = None,
    begin: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention`; reads nothing of the batch on the host.

    Args:
        q: [tokens, heads, head_dim]; its last dimension contiguous, the others with any strides.
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim] of q's dtype or fp8 (e4m3), with any strides.
        band, batch: the pages are those of batch.page_tables[batch.slots, band].
        num_splits: parts that each request's keys are cut into, whole tiles but for the last; what it takes to fill
            the device depends on the batch.
        fresh_kv: k and v [tokens, kv_heads, head_dim], heads next to one another (views of a projection's output will
            do), when the queries' own positions are the last keys of their requests: these are read there.
        out: contiguous [tokens, heads, head_dim] to write to.
        tiling: `choose_tiling` by default.
        begin: what attention to each request's first keys gave: how many keys (int32 [requests], whole pages), into
            how many parts they were cut (int32 [requests]), the parts (fp32 [parts, tokens, heads, head_dim]) and
            their log-sum-exps (fp32 [parts, tokens, heads]); the kernel goes on from there.

    Returns out (q's dtype) and the log-sum-exp (fp32 [tokens, heads], natural logarithm). A request without keys gets
    zeros and -inf. heads must be a multiple of kv_heads; head_dim and page_size are powers of two, head_dim >= 16.
    """
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = layer_pages.shape[2:4]
    requests = batch.num_requests
    check_attention(q, layer_pages, band, batch)
    if tiling is None:
        tiling = choose_tiling(
            tokens, requests, heads // kv_heads, page_size, head_dim, q.dtype == torch.float32, fresh_kv is not None,
            shared_memory(q.device),
        )  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse
    group = heads // kv_heads
    tiles = tokens * group // tiling.block_rows + requests
    parts, parts_lse = out, lse
    if num_splits > 1:
        parts = torch.empty((num_splits, *q.shape), dtype=torch.float32, device=q.device)
        parts_lse = torch.empty((num_splits, tokens, heads), dtype=torch.float32, device=q.device)
    bulk = tiling.bulk and page_size % tiling.block_keys == 0
    fresh_k, fresh_v = (None, None) if fresh_kv is None else (_fresh_rows(x, tiling.block_keys) for x in fresh_kv)
    pages, strides = page_rows(layer_pages, tiling.block_keys) if bulk else (layer_pages, layer_pages.stride())
    _attention_kernel[(kv_heads, tiles, num_splits) if tiling.heads_first else (tiles, kv_heads, num_splits)](
        q, pages, fresh_k, fresh_v, parts, parts_lse,
        batch.page_tables, batch.slots, batch.query_starts, batch.key_lengths,
        *((None,) * 4 if begin is None else begin),
        requests, tokens, heads, batch.page_tables.stride(0), band * batch.page_tables.stride(1),
        LOG2_E / math.sqrt(head_dim), q.stride(0), q.stride(1), *strides,
        GROUP=group, PAGE_SIZE=page_size, HEAD_DIM=head_dim,
        BLOCK_ROWS=tiling.block_rows, BLOCK_KEYS=tiling.block_keys,
        BLOCK_REQUESTS=request_lanes(requests),
        NUM_SPLITS=num_splits, BEGIN=begin is not None,
        FRESH=fresh_kv is not None, BULK=bulk, HEADS_FIRST=tiling.heads_first,
        PAGES_IN_FP8=layer_pages.dtype == torch.float8_e4m3fn,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        maxnreg=tiling.most_registers,
    )  # fmt: skip
    if num_splits > 1:
        merge_states_triton(parts, parts_lse, out, lse)
    return out, lse


def slot_rows(layer_pages: Tensor) -> tuple[int, int, int, tuple[int, int, int, int]]:
    """The layer's pages as a matrix whose rows are slots of one or of all heads, for bulk copies.

    Returns its rows, columns and elements from row to row, and (rows from page to page, rows from keys to values, rows
    from head to head, columns from head to head). ValueError if the strides do not allow it.
    """
    pages, _, page_size, kv_heads, head_dim = layer_pages.shape
    stride_page, stride_kv, stride_slot, stride_head, stride_dim = layer_pages.stride()
    head_rows, head_columns = divmod(stride_head, stride_slot)
    if stride_dim != 1 or stride_page % stride_slot or stride_kv % stride_slot or (head_rows and head_columns):
        raise ValueError(f"pages with strides {layer_pages.stride()} are not rows of slots")
    last = ((pages - 1) * stride_page + stride_kv) // stride_slot + head_rows * (kv_heads - 1)
    strides = (stride_page // stride_slot, stride_kv // stride_slot, head_rows, head_columns)
    return last + page_size, head_dim if head_rows else stride_slot, stride_slot, strides


def page_rows(layer_pages: Tensor, block_keys: int) -> tuple[TensorDescriptor, tuple[int, int, int, int, int]]:
    """A descriptor of `slot_rows` for copies of block_keys slots of a head, and what stands for strides with it."""
    rows, width, stride, (rows_page, rows_kv, rows_head, columns_head) = slot_rows(layer_pages)
    descriptor = TensorDescriptor(layer_pages, [rows, width], [stride, 1], [block_keys, layer_pages.shape[4]])
    return descriptor, (rows_page, rows_kv, 1, rows_head, columns_head)


def _fresh_rows(x: Tensor, block_keys: int) -> TensorDescriptor:
    """k or v [tokens, kv_heads, head_dim] as a matrix, for bulk copies of block_keys tokens of one head."""
    tokens, kv_heads, head_dim = x.shape
    if x.stride(2) != 1 or x.stride(1) != head_dim:
        raise ValueError(f"fresh keys and values with strides {x.stride()}: heads must be next to one another")
    return TensorDescriptor(x, [tokens, kv_heads * head_dim], [x.stride(0), 1], [block_keys, head_dim])


def check_attention(q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch) -> None:
    """ValueError for arguments that do not fit one another."""
    heads, head_dim = q.shape[1:]
    page_size, kv_heads, page_head_dim = layer_pages.shape[2:]
    if layer_pages.dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(f"q is {q.dtype}, the pages are {layer_pages.dtype}")
    if head_dim != page_head_dim or heads % kv_heads:
        raise ValueError(f"q {tuple(q.shape)} does not fit pages {tuple(layer_pages.shape)}")
    if head_dim < 16 or head_dim & (head_dim - 1) or page_size & (page_size - 1):
        raise ValueError(f"head_dim {head_dim} and page_size {page_size} must be powers of two, head_dim >= 16")
    if q.stride(2) != 1:
        raise ValueError("the last dimension of q must be contiguous")
    if not 0 <= band < batch.page_tables.shape[1]:
        raise ValueError(f"band {band} of {batch.page_tables.shape[1]}")
