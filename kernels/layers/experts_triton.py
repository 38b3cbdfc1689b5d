"""Experts in Triton: route, sort tokens by expert, two grouped products, and a weighted sum. Shapes are fixed, and the
host reads nothing, so a CUDA graph can hold all of it.

Pairs (`routing_triton.py`), sorted by expert, are cut into tiles of rows of one expert: nothing is padded to the
largest. There are at most (experts touched + pairs / tile) tiles, so the grid has that many or fewer programs, and a
program finds its tiles from the starts of the experts.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..attention.tiling import SM_90_SHARED_MEMORY, num_sms, shared_memory
from .routing_triton import Routed, route

_GROUP = 16
"""Tiles of rows that share the loads of a weight's columns from L2."""
_COMBINED = 1024


class Tiles(NamedTuple):
    """How a product is cut.

    rows, columns, inputs: of a tile; columns of the first product are those of gate, and as many of up.
    warps, stages: of a program.
    swap: the weights are the left operand of the matrix unit, which takes 64 rows of that and any 16 of the other.
    bulk: the weights come by bulk copies (tensor memory accelerator).
    programs: for each SM, which take one tile after the other; 0: a program a tile.
    """

    rows: int
    columns: int
    inputs: int
    warps: int
    stages: int
    swap: bool = False
    bulk: bool = False
    programs: int = 0

    def shared_memory(self, weights: int, itemsize: int) -> int:
        """Bytes of the tiles in flight, of x and of so many weights."""
        return self.stages * (self.rows + weights * self.columns) * self.inputs * itemsize


@triton.jit
def _tiles(starts_ptr, experts, ROWS: tl.constexpr, LANES: tl.constexpr):
    """By expert: where its rows start and end, and the numbers of its first tile and of the next expert's."""
    lanes = tl.arange(0, LANES)
    start = tl.load(starts_ptr + lanes, mask=lanes < experts, other=0)
    end = tl.load(starts_ptr + lanes + 1, mask=lanes < experts, other=0)
    tiles = (end - start + ROWS - 1) // ROWS
    after = tl.cumsum(tiles, 0)
    return start, end, after - tiles, after


@triton.jit
def _tile_of(
    program, start, end, before, after, tiles, column_tiles,
    ROWS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(expert, rows, end of the expert's rows, tile of columns) of a piece of work.

    GROUP tiles of rows go through all tiles of columns together.
    """
    of_group = GROUP * column_tiles
    first = program // of_group * GROUP
    size = tl.minimum(tiles - first, GROUP)
    inside = program % of_group
    tile, column_tile = first + inside % size, inside // size
    expert = tl.sum((after <= tile).to(tl.int32), 0)
    own = tl.arange(0, LANES) == expert
    row = tl.sum(tl.where(own, start + (tile - before) * ROWS, 0), 0)
    return expert, row + tl.arange(0, ROWS), tl.sum(tl.where(own, end, 0), 0), column_tile


@triton.jit
def _weights(weight, row, rows, start, at, inputs, in_rows, BULK: tl.constexpr):
    """[COLUMNS, INPUTS] of a matrix of experts' weights, one output a row: rows from `row` on, inputs from `start`."""
    if BULK:
        w = weight.load([row, start])
    else:
        of_row = weight + (row.to(tl.int64) + rows)[:, None] * inputs
        mask = in_rows[:, None] & (start + at < inputs)[None, :]
        w = tl.load(of_row + (start + at)[None, :], mask=mask, other=0.0)
    return w


@triton.jit
def _dot(x, w, total, SWAP: tl.constexpr, PRECISION: tl.constexpr):
    """total + x w^T, or its transpose."""
    if SWAP:
        total = tl.dot(w, tl.trans(x), total, input_precision=PRECISION)
    else:
        total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["column_tiles"])
def _gate_up_kernel(
    x_ptr, weight, out_ptr, tokens_ptr, starts_ptr, row_stride, inputs, width, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BULK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    start_of, end_of, before, after = _tiles(starts_ptr, experts, ROWS, LANES)
    tiles = tl.max(after, 0)
    at = tl.arange(0, INPUTS)
    dtype = out_ptr.dtype.element_ty
    for program in tl.range(tl.program_id(0), tiles * column_tiles, tl.num_programs(0), flatten=FLAT):
        expert, rows, end, column_tile = _tile_of(
            program, start_of, end_of, before, after, tiles, column_tiles, ROWS, LANES, GROUP
        )
        columns = tl.arange(0, COLUMNS)
        in_columns = column_tile * COLUMNS + columns < width
        gate_row = expert * 2 * width + column_tile * COLUMNS
        token = tl.load(tokens_ptr + rows, mask=rows < end, other=0)
        x_at = x_ptr + token.to(tl.int64)[:, None] * row_stride + at[None, :]
        if SWAP:
            gate = tl.zeros([COLUMNS, ROWS], tl.float32)
            up = tl.zeros([COLUMNS, ROWS], tl.float32)
        else:
            gate = tl.zeros([ROWS, COLUMNS], tl.float32)
            up = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, inputs, INPUTS):
            w = _weights(weight, gate_row, columns, start, at, inputs, in_columns, BULK)
            v = _weights(weight, gate_row + width, columns, start, at, inputs, in_columns, BULK)
            x = tl.load(x_at + start, mask=(rows < end)[:, None] & (start + at < inputs)[None, :], other=0.0)
            gate = _dot(x, w, gate, SWAP, PRECISION)
            up = _dot(x, v, up, SWAP, PRECISION)
        gate = gate.to(dtype).to(tl.float32)
        silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        result = (silu * up.to(dtype).to(tl.float32)).to(dtype)
        if SWAP:
            result = tl.trans(result)
        out_at = out_ptr + rows.to(tl.int64)[:, None] * width + (column_tile * COLUMNS + columns)[None, :]
        tl.store(out_at, result, mask=(rows < end)[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["column_tiles"])
def _down_kernel(
    x_ptr, weight, out_ptr, starts_ptr, inputs, width, experts, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BULK: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    start_of, end_of, before, after = _tiles(starts_ptr, experts, ROWS, LANES)
    tiles = tl.max(after, 0)
    at = tl.arange(0, INPUTS)
    dtype = out_ptr.dtype.element_ty
    for program in tl.range(tl.program_id(0), tiles * column_tiles, tl.num_programs(0), flatten=FLAT):
        expert, rows, end, column_tile = _tile_of(
            program, start_of, end_of, before, after, tiles, column_tiles, ROWS, LANES, GROUP
        )
        columns = tl.arange(0, COLUMNS)
        in_columns = column_tile * COLUMNS + columns < width
        row = expert * width + column_tile * COLUMNS
        x_at = x_ptr + rows.to(tl.int64)[:, None] * inputs + at[None, :]
        if SWAP:
            y = tl.zeros([COLUMNS, ROWS], tl.float32)
        else:
            y = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, inputs, INPUTS):
            w = _weights(weight, row, columns, start, at, inputs, in_columns, BULK)
            x = tl.load(x_at + start, mask=(rows < end)[:, None] & (start + at < inputs)[None, :], other=0.0)
            y = _dot(x, w, y, SWAP, PRECISION)
        result = y.to(dtype)
        if SWAP:
            result = tl.trans(result)
        out_at = out_ptr + rows.to(tl.int64)[:, None] * width + (column_tile * COLUMNS + columns)[None, :]
        tl.store(out_at, result, mask=(rows < end)[:, None] & in_columns[None, :])


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


def choose_tiles(pairs: int, experts: int, itemsize: int, have: int) -> tuple[Tiles, Tiles]:
    """Tiles of both products for so many pairs.

    The fastest of those measured on an H200, alone (`benchmarks/results/experts.csv`) and, for few and for many rows,
    in whole steps (`benchmarks/expert_variants.py`). `have` bytes of shared memory must hold the stages; GPUs with less
    than sm_90's copy nothing in bulk.
    """
    average, swap, bulk = pairs // experts, False, have >= SM_90_SHARED_MEMORY and itemsize == 2
    if average <= 8 and bulk:
        rows, columns, inputs, warps, stages, swap = 16, 64, 64, 4, 5, True
    elif average <= 16:
        rows, columns, inputs, warps, stages, bulk = (16 if average <= 8 else 32), 64, 128, 4, 4, False
    elif average <= 64:
        rows, columns, inputs, warps, stages, bulk = 64, 128, 64, 8, 3, False
    else:
        rows, columns, inputs, warps, stages = 128, 128, 64, 8, 4
    if itemsize > 2:
        columns, inputs = 64, inputs // 2
    first = Tiles(rows, columns, inputs, warps, stages, swap, bulk)
    second = first._replace(columns=2 * columns)
    return _fitting(first, 2, itemsize, have), _fitting(second, 1, itemsize, have)


def _fitting(tiles: Tiles, weights: int, itemsize: int, have: int) -> Tiles:
    """With as many stages as fit: those of few rows hold a tile less."""
    most = (have - 2048) // tiles._replace(stages=1).shared_memory(weights, itemsize) + (tiles.rows < 64)
    return tiles._replace(stages=max(1, min(tiles.stages, most)))


def expert_mlp_triton(
    residual: Tensor, x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int,
    tiles: tuple[Tiles, Tiles] | None = None,
) -> Tensor:  # fmt: skip
    """`expert_mlp`; reads nothing on the host. `tiles`: of both products."""
    (tokens, hidden), (experts, width) = x.shape, (down.shape[0], down.shape[2])
    if not (gate_up.is_contiguous() and down.is_contiguous() and residual.is_contiguous() and x.stride(1) == 1):
        raise ValueError("residual and experts' weights must be contiguous, and rows of x")
    if router.dtype != torch.float32 or not router.is_contiguous() or router.shape != (experts, hidden):
        raise ValueError(f"router is {router.dtype} {tuple(router.shape)}; it must be fp32 [{experts}, {hidden}]")
    if gate_up.shape != (experts, 2 * width, hidden):
        raise ValueError(f"gate_up {tuple(gate_up.shape)} does not fit down {tuple(down.shape)}")
    if not tokens:
        return residual
    routed = route(x, router, top_k)
    tiles = tiles or choose_tiles(tokens * top_k, experts, x.element_size(), shared_memory(x.device))
    y = _products(x, gate_up, down, routed, tiles)
    grid = (tokens, triton.cdiv(hidden, _COMBINED))
    _combine_kernel[grid](
        residual, y, routed.places, routed.weights, hidden,
        TOP_K=top_k, COLUMNS=_COMBINED, num_warps=max(1, _COMBINED // 256),
    )  # fmt: skip
    return residual


def _products(x: Tensor, gate_up: Tensor, down: Tensor, routed: Routed, tiles: tuple[Tiles, Tiles]) -> Tensor:
    """down(swiglu(gate_up x)) of the sorted pairs, [pairs, hidden]."""
    (experts, hidden, width), pairs = down.shape, routed.tokens.shape[0]
    own, starts = routed.tokens, routed.starts

    def launch(kernel: Any, tiles: Tiles, weight: Tensor, outputs: int, *arguments: Any) -> None:
        if weight.shape[2] * weight.itemsize % 16:  # rows that no bulk copy takes
            tiles = tiles._replace(bulk=False)
        columns = triton.cdiv(outputs, tiles.columns)
        programs = (min(experts, pairs) + pairs // tiles.rows) * columns
        if tiles.programs:
            programs = min(programs, tiles.programs * num_sms(x.device))
        kernel[(programs,)](
            arguments[0], _rows_of(weight, tiles), *arguments[1:], experts, columns,
            ROWS=tiles.rows, COLUMNS=tiles.columns, INPUTS=tiles.inputs, LANES=triton.next_power_of_2(experts),
            GROUP=_GROUP, PRECISION="ieee", SWAP=tiles.swap, BULK=tiles.bulk, FLAT=tiles.programs > 0,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    middle = torch.empty((pairs, width), dtype=x.dtype, device=x.device)
    launch(_gate_up_kernel, tiles[0], gate_up, width, x, middle, own, starts, x.stride(0), hidden, width)
    y = torch.empty((pairs, hidden), dtype=x.dtype, device=x.device)
    launch(_down_kernel, tiles[1], down, hidden, middle, y, starts, width, hidden)
    return y


def _rows_of(weight: Tensor, tiles: Tiles) -> Tensor | TensorDescriptor:
    """All experts' weights as one matrix, an output a row."""
    matrix = weight.view(-1, weight.shape[2])
    return TensorDescriptor.from_tensor(matrix, [tiles.columns, tiles.inputs]) if tiles.bulk else matrix
