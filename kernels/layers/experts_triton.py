"""Experts in Triton: route, sort tokens by expert, two grouped products, and a weighted sum. Shapes are fixed, and the
host reads nothing, so a CUDA graph can hold all of it.

Pairs (`routing_triton.py`), sorted by expert, are cut into tiles of rows of one expert: nothing is padded to the
largest. There are at most (experts touched + pairs / tile) tiles, so the grid has that many, and a program finds its
tile from the starts of the experts; those without one return.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiling import shared_memory
from .routing_triton import route, sort_pairs

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
def _tile_of(
    starts_ptr, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(expert, rows, end of the expert's rows, columns) of a program; expert >= experts: it has no tile.

    GROUP tiles of rows go through all tiles of columns together.
    """
    program = tl.program_id(0)
    of_group = GROUP * column_tiles
    inside = program % of_group
    tile, column_tile = program // of_group * GROUP + inside % GROUP, inside // GROUP
    lanes = tl.arange(0, LANES)
    start = tl.load(starts_ptr + lanes, mask=lanes < experts, other=0)
    end = tl.load(starts_ptr + lanes + 1, mask=lanes < experts, other=0)
    tiles = (end - start + ROWS - 1) // ROWS
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    own = lanes == expert
    first = tl.sum(tl.where(own, start + (tile - ends + tiles) * ROWS, 0), 0)
    rows, columns = first + tl.arange(0, ROWS), column_tile * COLUMNS + tl.arange(0, COLUMNS)
    return expert, rows, tl.sum(tl.where(own, end, 0), 0), columns


@triton.jit(do_not_specialize=["column_tiles"])
def _gate_up_kernel(
    x_ptr, weight_ptr, out_ptr, tokens_ptr, starts_ptr, row_stride, inputs, width, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    expert, rows, end, columns = _tile_of(starts_ptr, experts, column_tiles, ROWS, COLUMNS, LANES, GROUP)
    if expert >= experts:
        return
    token = tl.load(tokens_ptr + rows, mask=rows < end, other=0)
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
    x_ptr, weight_ptr, out_ptr, starts_ptr, inputs, width, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    expert, rows, end, columns = _tile_of(starts_ptr, experts, column_tiles, ROWS, COLUMNS, LANES, GROUP)
    if expert >= experts:
        return
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
    out_at = out_ptr + rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def _combine_kernel(residual_ptr, y_ptr, places_ptr, weights_ptr, width, TOP_K: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros([COLUMNS], tl.float32)
    for n in tl.static_range(TOP_K):
        pair = token * TOP_K + n
        row = tl.load(places_ptr + pair).to(tl.int64)
        y = tl.load(y_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        total += y * tl.load(weights_ptr + pair)
    at = residual_ptr + token * width + columns
    dtype = residual_ptr.dtype.element_ty
    old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (old + total.to(dtype).to(tl.float32)).to(dtype), mask=inside)


def choose_tiles(pairs: int, experts: int, itemsize: int, have: int) -> Tiles:
    """Tiles for `pairs` pairs. Their columns are those of gate alone, and half of those of the down product.

    The fastest of those measured on an H200 (`benchmarks/results/experts.csv`). `have` bytes of shared memory must hold
    the stages.
    """
    average = pairs // experts
    if average <= 16:
        rows, columns, inputs, warps, stages = (16 if average <= 8 else 32), 64, 128, 4, 4
    elif average <= 64:
        rows, columns, inputs, warps, stages = 64, 128, 64, 8, 3
    else:
        rows, columns, inputs, warps, stages = 128, 128, 64, 8, 4
    if itemsize > 2:
        columns, inputs = 64, inputs // 2
    stage = (rows + 2 * columns) * inputs * itemsize  # with 64 and more rows all stages hold a tile, else one does not
    most = (have - 2048) // stage + (rows < 64)
    return Tiles(rows, columns, inputs, warps, max(1, min(stages, most)))


def expert_mlp_triton(
    residual: Tensor, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:  # fmt: skip
    """`expert_mlp`; reads nothing on the host."""
    (tokens, hidden), (experts, width) = x.shape, (down.shape[0], down.shape[2])
    if not (gate_up.is_contiguous() and down.is_contiguous() and residual.is_contiguous() and x.stride(1) == 1):
        raise ValueError("residual and experts' weights must be contiguous, and rows of x")
    if router.dtype != torch.float32 or not router.is_contiguous() or router.shape != (experts, hidden):
        raise ValueError(f"router is {router.dtype} {tuple(router.shape)}; it must be fp32 [{experts}, {hidden}]")
    if gate_up.shape != (experts, 2 * width, hidden):
        raise ValueError(f"gate_up {tuple(gate_up.shape)} does not fit down {tuple(down.shape)}")
    if not tokens:
        return residual
    pairs = tokens * top_k
    ids, weights = route(x, router, top_k)
    own, places, starts = sort_pairs(ids, experts, top_k)
    tiles = tiles or choose_tiles(pairs, experts, x.element_size(), shared_memory(x.device))
    y = _products(x, gate_up, down, own, starts, tiles)
    grid = (tokens, triton.cdiv(hidden, _COMBINED))
    _combine_kernel[grid](residual, y, places, weights, hidden, TOP_K=top_k, COLUMNS=_COMBINED, num_warps=4)
    return residual


def _products(x: Tensor, gate_up: Tensor, down: Tensor, own: Tensor, starts: Tensor, tiles: Tiles) -> Tensor:
    """down(swiglu(gate_up x)) of the sorted pairs, [pairs, hidden]."""
    (experts, hidden, width), pairs = down.shape, own.shape[0]
    row_tiles = triton.cdiv(min(experts, pairs) + pairs // tiles.rows, _GROUP) * _GROUP
    shape = {"ROWS": tiles.rows, "INPUTS": tiles.inputs, "LANES": triton.next_power_of_2(experts), "GROUP": _GROUP,
             "PRECISION": "ieee", "num_warps": tiles.warps, "num_stages": tiles.stages}  # fmt: skip
    middle = torch.empty((pairs, width), dtype=x.dtype, device=x.device)
    columns = triton.cdiv(width, tiles.columns)
    _gate_up_kernel[(row_tiles * columns,)](
        x, gate_up, middle, own, starts, x.stride(0), hidden, width, experts, columns, COLUMNS=tiles.columns, **shape
    )
    y = torch.empty((pairs, hidden), dtype=x.dtype, device=x.device)
    columns = triton.cdiv(hidden, 2 * tiles.columns)
    _down_kernel[(row_tiles * columns,)](
        middle, down, y, starts, width, hidden, experts, columns, COLUMNS=2 * tiles.columns, **shape
    )
    return y
