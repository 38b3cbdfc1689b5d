"""Experts in Triton: route, sort tokens by expert, two grouped products, and a weighted sum. Shapes are fixed, and the
host reads nothing, so a CUDA graph can hold all of it.

A pair is a token and one of its experts; pairs number token * top_k + n, in the order of the token's experts. Sorted by
expert they are cut into tiles of rows of one expert: nothing is padded to the largest expert. There are at most
(experts touched + pairs / tile) tiles, so the grid has that many, and a program finds its tile from the starts of the
experts; those without one return.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiling import shared_memory

_CHUNK = 1024
_GROUP = 16
"""Tiles of rows that share the loads of a weight's columns from L2."""
_COMBINED = 1024


class Tiles(NamedTuple):
    """Rows, columns and inputs of a product's tile; warps and stages."""

    rows: int
    columns: int
    inputs: int
    warps: int
    stages: int


@triton.jit
def _route_kernel(logits_ptr, ids_ptr, weights_ptr, experts, TOP_K: tl.constexpr, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    x = tl.load(logits_ptr + token * experts + lanes, mask=lanes < experts, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    probability = e / tl.sum(e, 0)
    key = tl.where(probability == probability, probability, 2.0)  # whatever is no number: some expert is chosen
    key = tl.where(lanes < experts, key, -1.0)
    chosen = lanes < 0
    for _ in tl.static_range(TOP_K):
        left = tl.where(chosen, -2.0, key)
        best = tl.min(tl.where(left == tl.max(left, 0), lanes, LANES), 0)
        chosen = chosen | (lanes == best)
    at = token * TOP_K + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(ids_ptr + at, lanes, mask=chosen)
    tl.store(weights_ptr + at, probability, mask=chosen)


@triton.jit(do_not_specialize=["pairs"])
def _sort_kernel(ids_ptr, order_ptr, starts_ptr, pairs, CHUNK: tl.constexpr):
    """A program an expert: where its pairs start, and which they are, in their order."""
    expert = tl.program_id(0)
    lanes = tl.arange(0, CHUNK)
    fewer = tl.zeros([CHUNK], tl.int32)
    for first in range(0, pairs, CHUNK):
        ids = tl.load(ids_ptr + first + lanes, mask=first + lanes < pairs, other=2147483647)
        fewer += (ids < expert).to(tl.int32)
    start = tl.sum(fewer, 0)
    tl.store(starts_ptr + expert, start)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, pairs)
    for first in range(0, pairs, CHUNK):
        own = tl.load(ids_ptr + first + lanes, mask=first + lanes < pairs, other=-1) == expert
        place = start + tl.cumsum(own.to(tl.int32), 0) - 1
        tl.store(order_ptr + place, first + lanes, mask=own)
        start += tl.sum(own.to(tl.int32), 0)


@triton.jit
def _tile_of(starts_ptr, tile, experts, ROWS: tl.constexpr, LANES: tl.constexpr):
    """(expert, first row, end of the expert's rows) of a tile; expert >= experts: there is none."""
    lanes = tl.arange(0, LANES)
    start = tl.load(starts_ptr + lanes, mask=lanes < experts, other=0)
    end = tl.load(starts_ptr + lanes + 1, mask=lanes < experts, other=0)
    tiles = (end - start + ROWS - 1) // ROWS
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    own = lanes == expert
    first = tl.sum(tl.where(own, start + (tile - ends + tiles) * ROWS, 0), 0)
    return expert, first, tl.sum(tl.where(own, end, 0), 0)


@triton.jit
def _place(programs_of_columns, GROUP: tl.constexpr):
    """(tile of rows, tile of columns) of a program: GROUP tiles of rows go through all columns together."""
    program = tl.program_id(0)
    of_group = GROUP * programs_of_columns
    inside = program % of_group
    return program // of_group * GROUP + inside % GROUP, inside // GROUP


@triton.jit(do_not_specialize=["column_tiles"])
def _gate_up_kernel(
    x_ptr, weight_ptr, out_ptr, order_ptr, starts_ptr, row_stride, inputs, width, experts, column_tiles,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, column_tile = _place(column_tiles, GROUP)
    expert, first, end = _tile_of(starts_ptr, tile, experts, ROWS, LANES)
    if expert >= experts:
        return
    rows = first + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    token = tl.load(order_ptr + rows, mask=rows < end, other=0) // TOP_K
    at = tl.arange(0, INPUTS)
    x_at = x_ptr + token.to(tl.int64)[:, None] * row_stride + at[None, :]
    gate_at = weight_ptr + (expert.to(tl.int64) * 2 * width + columns)[None, :] * inputs + at[:, None]
    up_at = gate_at + tl.cast(width, tl.int64) * inputs
    in_columns = (columns < width)[None, :]
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inputs, INPUTS):
        inside = start + at < inputs
        x = tl.load(x_at, mask=inside[None, :], other=0.0)
        w = tl.load(gate_at, mask=inside[:, None] & in_columns, other=0.0)
        v = tl.load(up_at, mask=inside[:, None] & in_columns, other=0.0)
        gate = tl.dot(x, w, gate, input_precision=PRECISION)
        up = tl.dot(x, v, up, input_precision=PRECISION)
        x_at += INPUTS
        gate_at += INPUTS
        up_at += INPUTS
    dtype = out_ptr.dtype.element_ty
    gate = gate.to(dtype).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    result = (silu * up.to(dtype).to(tl.float32)).to(dtype)
    out_at = out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out_at, result, mask=(rows < end)[:, None] & in_columns)


@triton.jit(do_not_specialize=["column_tiles"])
def _down_kernel(
    x_ptr, weight_ptr, out_ptr, order_ptr, starts_ptr, inputs, width, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows come in the sorted order and leave in that of the pairs."""
    tile, column_tile = _place(column_tiles, GROUP)
    expert, first, end = _tile_of(starts_ptr, tile, experts, ROWS, LANES)
    if expert >= experts:
        return
    rows = first + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    pair = tl.load(order_ptr + rows, mask=rows < end, other=0)
    at = tl.arange(0, INPUTS)
    x_at = x_ptr + rows.to(tl.int64)[:, None] * inputs + at[None, :]
    weight_at = weight_ptr + (expert.to(tl.int64) * width + columns)[None, :] * inputs + at[:, None]
    in_rows, in_columns = (rows < end)[:, None], (columns < width)[None, :]
    y = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inputs, INPUTS):
        inside = start + at < inputs
        x = tl.load(x_at, mask=in_rows & inside[None, :], other=0.0)
        w = tl.load(weight_at, mask=inside[:, None] & in_columns, other=0.0)
        y = tl.dot(x, w, y, input_precision=PRECISION)
        x_at += INPUTS
        weight_at += INPUTS
    out_at = out_ptr + pair.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def _combine_kernel(residual_ptr, y_ptr, weights_ptr, width, TOP_K: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros([COLUMNS], tl.float32)
    for n in tl.static_range(TOP_K):
        pair = token * TOP_K + n
        y = tl.load(y_ptr + pair * width + columns, mask=inside, other=0.0).to(tl.float32)
        total += y * tl.load(weights_ptr + pair)
    at = residual_ptr + token * width + columns
    dtype = residual_ptr.dtype.element_ty
    old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (old + total.to(dtype).to(tl.float32)).to(dtype), mask=inside)


def choose_tiles(pairs: int, experts: int, itemsize: int, have: int) -> Tiles:
    """Tiles for so many pairs; columns are those of one weight. `have` bytes of shared memory must hold the stages."""
    average = pairs // experts
    rows = next((size for size in (16, 32, 64) if average <= size), 128)
    inputs, warps = (128, 4) if rows <= 32 else (64, 8 if rows == 128 else 4)
    inputs = inputs * 2 // itemsize
    stage = (rows + 128) * inputs * itemsize  # with 64 and more rows all stages hold a tile, else one does not
    most = (have - 2048) // stage + (rows < 64)
    return Tiles(rows, 64, inputs, warps, max(1, min(4 if rows == 16 else 3, most)))


def expert_mlp_triton(
    residual: Tensor, x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:  # fmt: skip
    """`expert_mlp`; reads nothing on the host."""
    (tokens, hidden), (experts, width) = x.shape, (down.shape[0], down.shape[2])
    if not (gate_up.is_contiguous() and down.is_contiguous() and residual.is_contiguous() and x.stride(1) == 1):
        raise ValueError("residual and experts' weights must be contiguous, and rows of x")
    if router_logits.dtype != torch.float32 or not router_logits.is_contiguous():
        raise ValueError(f"router_logits are {router_logits.dtype}; they must be contiguous fp32")
    if gate_up.shape != (experts, 2 * width, hidden) or router_logits.shape != (tokens, experts):
        raise ValueError(f"gate_up {tuple(gate_up.shape)} and router {tuple(router_logits.shape)} do not fit down")
    if not tokens:
        return residual
    pairs, device = tokens * top_k, x.device
    ids, order = (torch.empty(pairs, dtype=torch.int32, device=device) for _ in range(2))
    weights = torch.empty(pairs, dtype=torch.float32, device=device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=device)
    lanes = triton.next_power_of_2(experts)
    _route_kernel[(tokens,)](router_logits, ids, weights, experts, TOP_K=top_k, LANES=lanes, num_warps=1)
    _sort_kernel[(experts,)](ids, order, starts, pairs, CHUNK=_CHUNK, num_warps=4)
    tiles = tiles or choose_tiles(pairs, experts, x.element_size(), shared_memory(device))
    row_tiles = triton.cdiv(min(experts, pairs) + pairs // tiles.rows, _GROUP) * _GROUP
    middle = torch.empty((pairs, width), dtype=x.dtype, device=device)
    shape = {"ROWS": tiles.rows, "INPUTS": tiles.inputs, "LANES": lanes, "GROUP": _GROUP, "PRECISION": "ieee",
             "num_warps": tiles.warps, "num_stages": tiles.stages}  # fmt: skip
    columns = triton.cdiv(width, tiles.columns)
    _gate_up_kernel[(row_tiles * columns,)](
        x, gate_up, middle, order, starts, x.stride(0), hidden, width, experts, columns,
        TOP_K=top_k, COLUMNS=tiles.columns, **shape,
    )  # fmt: skip
    y = torch.empty((pairs, hidden), dtype=x.dtype, device=device)
    columns = triton.cdiv(hidden, 2 * tiles.columns)
    _down_kernel[(row_tiles * columns,)](
        middle, down, y, order, starts, width, hidden, experts, columns, COLUMNS=2 * tiles.columns, **shape
    )
    grid = (tokens, triton.cdiv(hidden, _COMBINED))
    _combine_kernel[grid](residual, y, weights, hidden, TOP_K=top_k, COLUMNS=_COMBINED, num_warps=4)
    return residual
