"""Attention of long queries for Hopper GPUs (sm_90), written in Gluon, Triton's language of explicit layouts and warps.

What: the meaning, the tiles and the numbering of programs are those of `attention_triton`, with 128 rows. What Triton's
compiler does not do on this architecture is done by hand, after FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608):
one warp group fetches keys and values by bulk copies and holds few registers; two others take 64 rows each and never
wait for one another; in each the product of the weights with the values of a tile runs beside the softmax of the next.

Keys come from pages of any size from 8 up, a bulk copy a page, or in a refresh from the contiguous output of the
projection. Parts of the keys (pages, fresh) end in a tile of their own, whose rest is masked: in the scores, and in the
values, where what stands behind may be anything, by zeros written over it.

Cautions: no fp32, no splits. Gluon is young: `hopper_fits` says whether it is there; `attention_triton` does the same
elsewhere.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .batch import AttentionBatch
from .tiling import capability_of
from .triton import LOG2_E, check_attention, slot_rows

BLOCK_ROWS = 128
_REGISTERS = 168
"""A thread's when the kernel starts: 3 warp groups; then 240 for those that compute and 24 for the one that fetches."""

_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit
def _produce(
    k_smem, v_smem, k_full, v_full, k_empty, v_empty, pages, fresh_k, fresh_v, table_ptr,
    kv_head, start, in_pages, page_tiles, tiles, rows_page, rows_kv, rows_head, columns_head,
    PAGE_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_KEYS: gl.constexpr, STAGES: gl.constexpr,
    FRESH: gl.constexpr,
):  # fmt: skip
    """Fetch the tiles of keys and values in turn, as their places become empty."""
    BYTES: gl.constexpr = BLOCK_KEYS * HEAD_DIM * 2
    BOX: gl.constexpr = min(PAGE_SIZE, BLOCK_KEYS)
    for tile in range(tiles):
        stage = tile % STAGES
        phase = (tile // STAGES + 1) & 1
        if tile < page_tiles:
            column = kv_head * columns_head
            rows = ()
            for box in gl.static_range(BLOCK_KEYS // BOX):
                keys = gl.minimum(tile * BLOCK_KEYS + box * BOX, in_pages - 1)  # past the keys: any page that exists
                page = gl.load(table_ptr + keys // PAGE_SIZE)
                rows += (page * rows_page + kv_head * rows_head + keys % PAGE_SIZE // BOX * BOX,)  # type: ignore[assignment]
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), BYTES)
            for box in gl.static_range(BLOCK_KEYS // BOX):
                k_to = k_smem.index(stage).slice(box * BOX, BOX)
                tma.async_copy_global_to_shared(pages, [rows[box], column], k_full.index(stage), k_to)
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), BYTES)
            for box in gl.static_range(BLOCK_KEYS // BOX):
                v_to = v_smem.index(stage).slice(box * BOX, BOX)
                tma.async_copy_global_to_shared(pages, [rows[box] + rows_kv, column], v_full.index(stage), v_to)
        elif FRESH:
            row = start + (tile - page_tiles) * BLOCK_KEYS
            column = kv_head * HEAD_DIM
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), BYTES)
            tma.async_copy_global_to_shared(fresh_k, [row, column], k_full.index(stage), k_smem.index(stage))
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), BYTES)
            tma.async_copy_global_to_shared(fresh_v, [row, column], v_full.index(stage), v_smem.index(stage))


@gluon.jit
def _keys_left(tile, key_length, in_pages, page_tiles, BLOCK_KEYS: gl.constexpr):
    """Keys of the part (pages or fresh) from the tile's first on."""
    left = in_pages - tile * BLOCK_KEYS
    if tile >= page_tiles:
        left = key_length - in_pages - (tile - page_tiles) * BLOCK_KEYS
    return left


@gluon.jit
def _mask(scores, left, BLOCK_KEYS: gl.constexpr, layout: gl.constexpr):
    if left < BLOCK_KEYS:
        columns = gl.arange(0, BLOCK_KEYS, layout=gl.SliceLayout(0, layout))
        scores = gl.where((columns < left)[None, :], scores, -float("inf"))
    return scores


@gluon.jit
def _clear_rest(v, left, HEAD_DIM: gl.constexpr, BLOCK_KEYS: gl.constexpr):
    """Zeros over the values from row `left` on; both warp groups write the same."""
    if left < BLOCK_KEYS:
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
        for first in gl.static_range(0, BLOCK_KEYS, 16):
            if left < first + 16:
                part = v.slice(first, 16)
                rows = first + gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
                values = part.load(layout)
                part.store(gl.where((rows < left)[:, None], values, gl.zeros_like(values)))
        fence_async_shared()
        _barrier()


@gluon.jit
def _consume(
    HALF: gl.constexpr, q_smem, k_smem, v_smem, k_full, v_full, k_empty, v_empty, out_ptr, lse_ptr,
    kv_head, start, queries, tile_rows, key_length, in_pages, page_tiles, tiles, num_heads, scale_log2,
    GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warp group: 64 of the tile's rows over all keys."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, o_layout)
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    q = q_smem.index(HALF)
    empty = gl.zeros([64, BLOCK_KEYS], gl.float32, s_layout)
    acc = gl.zeros([64, HEAD_DIM], gl.float32, o_layout)

    mbarrier.wait(k_full.index(0), 0)
    scores = warpgroup_mma(q, k_smem.index(0).permute((1, 0)), empty, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    _barrier()
    mbarrier.arrive(k_empty.index(0), count=1)
    left = _keys_left(0, key_length, in_pages, page_tiles, BLOCK_KEYS)
    scores = _mask(scores, left, BLOCK_KEYS, s_layout)
    top = gl.max(scores, 1) * scale_log2
    weights = gl.exp2(scores * scale_log2 - top[:, None])
    total = gl.sum(weights, 1)
    p = gl.convert_layout(weights.to(dtype), p_layout)
    for tile in range(1, tiles):
        stage = tile % STAGES
        last = (tile - 1) % STAGES
        mbarrier.wait(k_full.index(stage), (tile // STAGES) & 1)
        s_token = warpgroup_mma(q, k_smem.index(stage).permute((1, 0)), empty, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(last), ((tile - 1) // STAGES) & 1)
        _clear_rest(v_smem.index(last), left, HEAD_DIM, BLOCK_KEYS)
        o_token = warpgroup_mma(p, v_smem.index(last), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[s_token])
        _barrier()
        mbarrier.arrive(k_empty.index(stage), count=1)
        left = _keys_left(tile, key_length, in_pages, page_tiles, BLOCK_KEYS)
        scores = _mask(scores, left, BLOCK_KEYS, s_layout)
        new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
        weights = gl.exp2(scores * scale_log2 - new_top[:, None])
        kept = gl.exp2(top - new_top)
        total = total * kept + gl.sum(weights, 1)
        top = new_top
        acc = warpgroup_mma_wait(0, deps=[o_token, p])[0]
        _barrier()
        mbarrier.arrive(v_empty.index(last), count=1)
        p = gl.convert_layout(weights.to(dtype), p_layout)
        acc = acc * gl.convert_layout(kept, row_layout)[:, None]
    last = (tiles - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((tiles - 1) // STAGES) & 1)
    _clear_rest(v_smem.index(last), left, HEAD_DIM, BLOCK_KEYS)
    acc = warpgroup_mma(p, v_smem.index(last), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])

    top = gl.convert_layout(top, row_layout)
    total = gl.convert_layout(total, row_layout)
    rows = tile_rows + HALF * 64 + gl.arange(0, 64, layout=row_layout)
    in_rows = rows < queries * GROUP
    places = (start + rows // GROUP).to(gl.int64) * num_heads + kv_head * GROUP + rows % GROUP
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, o_layout))
    out = acc / total[:, None]
    gl.store(out_ptr + places[:, None] * HEAD_DIM + dims[None, :], out.to(dtype), mask=in_rows[:, None])
    gl.store(lse_ptr + places, (top + gl.log2(total)) * 0.6931471805599453, mask=in_rows)


@gluon.jit(do_not_specialize=["num_requests", "band_offset"])
def _hopper_kernel(
    q_ptr, pages, fresh_k, fresh_v, out_ptr, lse_ptr, tables_ptr, slots_ptr, starts_ptr, lengths_ptr,
    num_requests, num_heads, slot_stride, band_offset, scale_log2, q_stride_token, q_stride_head,
    rows_page, rows_kv, rows_head, columns_head,
    GROUP: gl.constexpr, PAGE_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_KEYS: gl.constexpr,
    STAGES: gl.constexpr, BLOCK_REQUESTS: gl.constexpr, FRESH: gl.constexpr, FRESH_ONLY: gl.constexpr,
    BLOCK_ROWS: gl.constexpr,
):  # fmt: skip
    program = gl.program_id(0)
    kv_head = gl.program_id(1)
    numbers = gl.arange(0, BLOCK_REQUESTS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    firsts = gl.load(starts_ptr + numbers, mask=numbers < num_requests, other=0)
    first_tiles = (firsts * GROUP) // BLOCK_ROWS + numbers
    before = (numbers < num_requests) & (first_tiles <= program)
    request = gl.sum(before.to(gl.int32), 0) - 1
    start = gl.load(starts_ptr + request)
    queries = gl.load(starts_ptr + request + 1) - start
    tile_rows = (program - (start * GROUP) // BLOCK_ROWS - request) * BLOCK_ROWS
    if tile_rows >= queries * GROUP:
        return
    key_length = gl.load(lengths_ptr + request)
    slot = gl.load(slots_ptr + request).to(gl.int64)
    dtype: gl.constexpr = out_ptr.dtype.element_ty

    block: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    smem_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, block))
    q_smem = gl.allocate_shared_memory(dtype, [2, 64, HEAD_DIM], smem_layout)
    for half in gl.static_range(2):
        rows = tile_rows + half * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, block))
        in_rows = rows < queries * GROUP
        tokens = (start + rows // GROUP).to(gl.int64)
        heads = kv_head * GROUP + rows % GROUP
        if key_length == 0:
            places = tokens * num_heads + heads
            nothing = gl.full([64, HEAD_DIM], 0.0, dtype, block)
            gl.store(out_ptr + places[:, None] * HEAD_DIM + dims[None, :], nothing, mask=in_rows[:, None])
            minus = gl.full([64], -float("inf"), gl.float32, gl.SliceLayout(1, block))
            gl.store(lse_ptr + places, minus, mask=in_rows)
        else:
            at = tokens * q_stride_token + heads * q_stride_head
            q = gl.load(q_ptr + at[:, None] + dims[None, :], mask=in_rows[:, None], other=0.0)
            q_smem.index(half).store(q)
    if key_length == 0:
        return

    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_KEYS, HEAD_DIM], smem_layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_KEYS, HEAD_DIM], smem_layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()
    in_pages = key_length
    if FRESH_ONLY:
        in_pages = 0
    elif FRESH:
        in_pages = gl.maximum(key_length - queries, 0)
    page_tiles = (in_pages + BLOCK_KEYS - 1) // BLOCK_KEYS
    tiles = page_tiles + (key_length - in_pages + BLOCK_KEYS - 1) // BLOCK_KEYS
    table_ptr = tables_ptr + slot * slot_stride + band_offset
    gl.warp_specialize(
        [
            (_consume, (0, q_smem, k_smem, v_smem, k_full, v_full, k_empty, v_empty, out_ptr, lse_ptr,
                        kv_head, start, queries, tile_rows, key_length, in_pages, page_tiles, tiles, num_heads,
                        scale_log2, GROUP, HEAD_DIM, BLOCK_KEYS, STAGES)),
            (_consume, (1, q_smem, k_smem, v_smem, k_full, v_full, k_empty, v_empty, out_ptr, lse_ptr,
                        kv_head, start, queries, tile_rows, key_length, in_pages, page_tiles, tiles, num_heads,
                        scale_log2, GROUP, HEAD_DIM, BLOCK_KEYS, STAGES)),
            (_produce, (k_smem, v_smem, k_full, v_full, k_empty, v_empty, pages, fresh_k, fresh_v, table_ptr,
                        kv_head, start, in_pages, page_tiles, tiles, rows_page, rows_kv, rows_head, columns_head,
                        PAGE_SIZE, HEAD_DIM, BLOCK_KEYS, STAGES, FRESH)),
        ],
        [4, 4],
        [240, 24],
    )  # fmt: skip


def attention_hopper(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, *,
    fresh_kv: tuple[Tensor, Tensor] | None = None, fresh_only: bool = False, out: Tensor | None = None,
    block_keys: int = 128, stages: int = 2,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention` where `hopper_fits` is true; reads nothing of the batch on the host.

    Args and result: as `attention_triton`. `block_keys` and `stages`: keys of a tile and tiles on their way.
    """
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = layer_pages.shape[2:4]
    check_attention(q, layer_pages, band, batch)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse
    group, requests = heads // kv_heads, batch.num_requests
    layout = gl.NVMMASharedLayout(128, 16, 2)
    strides: tuple[int, int, int, int] = (0, 0, 0, 0)
    if fresh_kv is not None:
        fresh_k, fresh_v = (
            TensorDescriptor(x, [x.shape[0], kv_heads * head_dim], [x.stride(0), 1], [block_keys, head_dim], layout)
            for x in fresh_kv
        )
    if fresh_kv is not None and fresh_only:  # the pages are not read, whatever their dtype is
        pages, page_size = fresh_k, block_keys
    else:
        rows, width, stride, strides = slot_rows(layer_pages)
        box = [min(page_size, block_keys), head_dim]
        pages = TensorDescriptor(layer_pages, [rows, width], [stride, 1], box, layout)
    if fresh_kv is None:
        fresh_k = fresh_v = pages
    _hopper_kernel[(tokens * group // BLOCK_ROWS + requests, kv_heads)](
        q, pages, fresh_k, fresh_v, out, lse, batch.page_tables, batch.slots, batch.query_starts, batch.key_lengths,
        requests, heads, batch.page_tables.stride(0), band * batch.page_tables.stride(1),
        LOG2_E / math.sqrt(head_dim), q.stride(0), q.stride(1), *strides,
        GROUP=group, PAGE_SIZE=page_size, HEAD_DIM=head_dim, BLOCK_KEYS=block_keys, STAGES=stages,
        BLOCK_REQUESTS=max(64, triton.next_power_of_2(requests)), FRESH=fresh_kv is not None,
        FRESH_ONLY=fresh_kv is not None and fresh_only, BLOCK_ROWS=BLOCK_ROWS,
        num_warps=4, maxnreg=_REGISTERS,
    )  # fmt: skip
    return out, lse


def hopper_fits(
    q: Tensor, layer_pages: Tensor, fresh_kv: tuple[Tensor, Tensor] | None, fresh_only: bool = False
) -> bool:
    """Whether `attention_hopper` can do it: an sm_90 GPU, 16-bit floats, head_dim 64 or 128, pages of 8 tokens or more.

    Pages that it reads must be of q's dtype and rows of slots (`slot_rows`), fresh keys and values have their heads
    next to one another.
    """
    if capability_of(q.device) != (9, 0):
        return False
    fresh_only = fresh_only and fresh_kv is not None
    if q.dtype != layer_pages.dtype and not fresh_only:
        return False
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[2] not in (64, 128) or layer_pages.shape[2] < 8:
        return False
    if not fresh_only:
        try:
            slot_rows(layer_pages)
        except ValueError:
            return False
    return fresh_kv is None or all(x.stride(2) == 1 and x.stride(1) == x.shape[2] for x in fresh_kv)
