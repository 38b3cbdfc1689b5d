"""Skinny linear layers in Triton: y = x W^T (+ bias) (+ residual) for at most some dozens of rows, and the gated unit.

What: the weight is read once and decides the time, so its bytes are dealt evenly to as many programs as the GPU has
processors, one each, with as many loads in flight as its shared memory holds. For this an output tile may be as wide as
the sum of two powers of two (96 = 64 + 32 columns: 128 programs for 12,288), and the inner dimension may be split: then
each program leaves its partial sum in fp32, and the one that arrives last at the tile adds them in the order of the
inner dimension, then bias and residual, and sets the tile's counter back. So the result does not depend on timing.
Programs begin at different places of the inner dimension and wrap around: rows of a weight are often a power of two of
bytes apart, and programs that walk the same columns together would meet in the same memory channels.
Tiles come by TMA, which fills what lies outside with zeros.

Cautions: launches that share a workspace must not overlap. fp32 products are exact (no TF32), and slow.

Differences from the reference: the order in which products are summed. In bf16 with up to 64 rows it does not depend on
the number of rows.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from .skinny_linear import check_skinny
from .skinny_tiling import SkinnyPlan, SkinnyTiling, default_tiling, plan_skinny
from .skinny_workspace import SkinnyWorkspace, device_workspace

plan = lru_cache(maxsize=1024)(plan_skinny)


@triton.jit
def _load(tensor, first_row, first, rows, row_stride, INNER: tl.constexpr,
          BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr, BULK: tl.constexpr):  # fmt: skip
    """[BLOCK, BLOCK_INNER] from row first_row and column `first` on; zeros outside [rows, INNER]."""
    if BULK:
        return tensor.load([first_row, first])
    else:
        row, column = first_row + tl.arange(0, BLOCK), first + tl.arange(0, BLOCK_INNER)
        pointers = tensor + row.to(tl.int64)[:, None] * row_stride + column[None, :]
        mask = (row < rows)[:, None]
        if INNER % BLOCK_INNER:
            mask = mask & (column < INNER)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _store_output(
    y, up, first_column, first_row, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the output from its whole sums [BLOCK_ROWS, BLOCK]; `up` counts with GATED only."""
    dtype = out_ptr.dtype.element_ty
    column, row = first_column + tl.arange(0, BLOCK), first_row + tl.arange(0, BLOCK_ROWS)
    mask = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        at = residual_ptr + row.to(tl.int64)[:, None] * residual_row_stride + column[None, :]
        y += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gate = y.to(dtype).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        y = gate * up.to(dtype).to(tl.float32)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * out_row_stride + column[None, :], y.to(dtype), mask=mask)


@triton.jit
def _places(rows_left, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile's numbers stand in a slot of the workspace, and which of them are rows that exist."""
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    place = row * BLOCK + tl.arange(0, BLOCK)[None, :]
    return place, (row < rows_left) & (place >= 0)


@triton.jit
def _store_part(part_ptr, y, up, rows_left, GATED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Leave a partial sum, and with GATED that of the up projection behind it."""
    place, mask = _places(rows_left, BLOCK_ROWS, BLOCK)
    tl.store(part_ptr + place, y, mask=mask)
    if GATED:
        tl.store(part_ptr + BLOCK_ROWS * BLOCK + place, up, mask=mask)


@triton.jit
def _join_parts(
    part_ptr, slot_size, first_column, first_row,
    bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, SPLITS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the output from SPLITS partial sums, slot_size numbers apart."""
    place, mask = _places(rows - first_row, BLOCK_ROWS, BLOCK)
    y = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    up = y
    for part in tl.static_range(SPLITS):
        y += tl.load(part_ptr + part * slot_size + place, mask=mask, other=0.0, cache_modifier=".cg")
        if GATED:
            at = part_ptr + part * slot_size + BLOCK_ROWS * BLOCK + place
            up += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
    _store_output(
        y, up, first_column, first_row, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride,
        COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK,
    )  # fmt: skip


@triton.jit
def _fetch_early(weight_ptr, row_stride, first_row, first, INNER: tl.constexpr, WEIGHT_ROWS: tl.constexpr,
                 BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Ask for TILES tiles along a run of weight rows to be brought to L2, a line of 128 bytes at a time."""
    LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
    row = tl.minimum(first_row + tl.arange(0, BLOCK), WEIGHT_ROWS - 1).to(tl.int64)
    for line in tl.static_range(TILES * BLOCK_INNER // LINE):
        column = tl.minimum(first + line * LINE, INNER - 1)
        address = (weight_ptr + row * row_stride + column).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, weight, more_weight, weight_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr,
    rows, x_row_stride, weight_row_stride, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, SPLITS: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BULK: tl.constexpr, EARLY_TILES: tl.constexpr,
    STAGGER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, MORE_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Grid (column tiles * SPLITS, row tiles); a column tile is BLOCK_COLUMNS + MORE_COLUMNS columns.

    With BULK, x, weight and more_weight are descriptors, the last of tiles of MORE_COLUMNS rows; else pointers, as
    weight_ptr is. With GATED the weight's rows are COLUMNS of the gate, then COLUMNS of the up projection.
    No barrier may stand in the loop: it would not be pipelined.
    """
    INNER_TILES: tl.constexpr = (INNER + BLOCK_INNER - 1) // BLOCK_INNER
    WIDTH: tl.constexpr = BLOCK_COLUMNS + MORE_COLUMNS
    COLUMN_TILES: tl.constexpr = (COLUMNS + WIDTH - 1) // WIDTH
    WEIGHT_ROWS: tl.constexpr = COLUMNS * (2 if GATED else 1)
    tile, part = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    first_row, first_column = tl.program_id(1) * BLOCK_ROWS, tile * WIDTH
    begin, end = part * INNER_TILES // SPLITS, (part + 1) * INNER_TILES // SPLITS
    start = begin
    if STAGGER:
        start += tile * (end - begin) // COLUMN_TILES
    if EARLY_TILES >= 0:
        gdc_launch_dependents()
        for half in tl.static_range(2 if GATED else 1):
            _fetch_early(weight_ptr, weight_row_stride, first_column + half * COLUMNS, start * BLOCK_INNER, INNER,
                         WEIGHT_ROWS, BLOCK_COLUMNS, BLOCK_INNER, EARLY_TILES)  # fmt: skip
            if MORE_COLUMNS:
                _fetch_early(weight_ptr, weight_row_stride, first_column + BLOCK_COLUMNS + half * COLUMNS,
                             start * BLOCK_INNER, INNER, WEIGHT_ROWS, MORE_COLUMNS, BLOCK_INNER,
                             EARLY_TILES)  # fmt: skip
        gdc_wait()

    y = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    up, more_y, more_up = y, y, y
    if MORE_COLUMNS:
        more_y = tl.zeros((BLOCK_ROWS, MORE_COLUMNS), tl.float32)
        more_up = more_y
    for step in tl.range(0, end - begin):
        at = start + step
        first = tl.where(at < end, at, at - end + begin) * BLOCK_INNER
        x_tile = _load(x, first_row, first, rows, x_row_stride, INNER, BLOCK_ROWS, BLOCK_INNER, BULK)
        w = _load(weight, first_column, first, WEIGHT_ROWS, weight_row_stride, INNER, BLOCK_COLUMNS, BLOCK_INNER, BULK)
        y = tl.dot(x_tile, tl.trans(w), y, input_precision="ieee")
        if MORE_COLUMNS:
            w = _load(more_weight, first_column + BLOCK_COLUMNS, first, WEIGHT_ROWS, weight_row_stride, INNER,
                      MORE_COLUMNS, BLOCK_INNER, BULK)  # fmt: skip
            more_y = tl.dot(x_tile, tl.trans(w), more_y, input_precision="ieee")
        if GATED:
            w = _load(weight, COLUMNS + first_column, first, WEIGHT_ROWS, weight_row_stride, INNER, BLOCK_COLUMNS,
                      BLOCK_INNER, BULK)  # fmt: skip
            up = tl.dot(x_tile, tl.trans(w), up, input_precision="ieee")
            if MORE_COLUMNS:
                w = _load(more_weight, COLUMNS + first_column + BLOCK_COLUMNS, first, WEIGHT_ROWS, weight_row_stride,
                          INNER, MORE_COLUMNS, BLOCK_INNER, BULK)  # fmt: skip
                more_up = tl.dot(x_tile, tl.trans(w), more_up, input_precision="ieee")

    if SPLITS == 1:
        _store_output(
            y, up, first_column, first_row, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride,
            COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
        if MORE_COLUMNS:
            _store_output(
                more_y, more_up, first_column + BLOCK_COLUMNS, first_row, bias_ptr, residual_ptr, out_ptr, rows,
                residual_row_stride, out_row_stride, COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, MORE_COLUMNS,
            )  # fmt: skip
    else:
        # a tile's slots are the partial sums of its splits: block, its up projection, more, its up projection
        FACTOR: tl.constexpr = BLOCK_ROWS * (2 if GATED else 1)
        SLOT: tl.constexpr = FACTOR * WIDTH
        number = tl.program_id(1) * COLUMN_TILES + tile
        slots_ptr = parts_ptr + number * SPLITS * SLOT
        own_ptr, left = slots_ptr + part * SLOT, rows - first_row
        _store_part(own_ptr, y, up, left, GATED, BLOCK_ROWS, BLOCK_COLUMNS)
        if MORE_COLUMNS:
            _store_part(own_ptr + FACTOR * BLOCK_COLUMNS, more_y, more_up, left, GATED, BLOCK_ROWS, MORE_COLUMNS)
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + number, 1, sem="acq_rel") == SPLITS - 1:
            tl.debug_barrier()
            _join_parts(
                slots_ptr, SLOT, first_column, first_row, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride,
                out_row_stride, COLUMNS, SPLITS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
            )  # fmt: skip
            if MORE_COLUMNS:
                _join_parts(
                    slots_ptr + FACTOR * BLOCK_COLUMNS, SLOT, first_column + BLOCK_COLUMNS, first_row, bias_ptr,
                    residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride, COLUMNS, SPLITS, GATED,
                    HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, MORE_COLUMNS,
                )  # fmt: skip
            tl.store(arrivals_ptr + number, 0)


def skinny_linear_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, out: Tensor | None = None,
    *, tiling: SkinnyTiling | None = None, workspace: SkinnyWorkspace | None = None,
) -> Tensor:  # fmt: skip
    """Contract: `skinny_linear_reference`; rows of x and weight must begin at multiples of 16 bytes.

    `tiling`: by default `default_tiling`'s. `workspace`: by default the device's own.
    """
    columns = weight.shape[0]
    check_skinny(x, weight, bias, residual, out, columns)
    return _launch(x, weight, columns, bias, residual, out, tiling, workspace)


def skinny_swiglu_triton(
    x: Tensor, gate_up_weight: Tensor, out: Tensor | None = None,
    *, tiling: SkinnyTiling | None = None, workspace: SkinnyWorkspace | None = None,
) -> Tensor:  # fmt: skip
    """Contract: `skinny_swiglu_reference`; else as `skinny_linear_triton`."""
    if gate_up_weight.shape[0] % 2:
        raise ValueError(f"gate_up_weight {tuple(gate_up_weight.shape)} needs an even number of rows")
    columns = gate_up_weight.shape[0] // 2
    check_skinny(x, gate_up_weight, None, None, out, columns)
    return _launch(x, gate_up_weight, columns, None, None, out, tiling, workspace)


def _launch(
    x: Tensor, weight: Tensor, columns: int, bias: Tensor | None, residual: Tensor | None, out: Tensor | None,
    tiling: SkinnyTiling | None, workspace: SkinnyWorkspace | None,
) -> Tensor:  # fmt: skip
    rows, inner = x.shape
    gated, wide = weight.shape[0] != columns, x.dtype == torch.float32
    if out is None:
        out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if not rows or not columns:
        return out
    _check_alignment(x, weight)
    tiling = tiling or default_tiling(rows, columns, inner, x.dtype, gated)
    cut: SkinnyPlan = plan(rows, columns, inner, wide, gated, tiling)
    workspace = workspace or device_workspace(x.device)
    workspace.reserve(cut.part_numbers, cut.counters)
    tiles: list[Tensor | TensorDescriptor] = [x, weight, weight]
    if tiling.bulk:
        heights = cut.block_rows, tiling.block_columns, tiling.more_columns or tiling.block_columns
        tiles = [
            TensorDescriptor(each, each.shape, each.stride(), [height, tiling.block_inner])
            for each, height in zip((x, weight, weight), heights, strict=True)
        ]
    extra = {"launch_pdl": True} if tiling.early_tiles >= 0 else {}
    _skinny_kernel[(cut.column_tiles * cut.splits, cut.row_tiles)](
        *tiles, weight, bias, residual, out, workspace.parts, workspace.arrivals,
        rows, x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        COLUMNS=columns, INNER=inner, SPLITS=cut.splits, GATED=gated, HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None, BULK=tiling.bulk, EARLY_TILES=tiling.early_tiles, STAGGER=tiling.stagger,
        BLOCK_ROWS=cut.block_rows, BLOCK_COLUMNS=tiling.block_columns, MORE_COLUMNS=tiling.more_columns,
        BLOCK_INNER=tiling.block_inner, num_warps=tiling.num_warps, num_stages=tiling.num_stages, **extra,
    )  # fmt: skip
    return out


def _check_alignment(x: Tensor, weight: Tensor) -> None:
    """ValueError unless each row begins at a multiple of 16 bytes."""
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.data_ptr() % 16 or tensor.stride(0) * tensor.element_size() % 16:
            raise ValueError(f"rows of {name} (stride {tensor.stride(0)}) must begin at multiples of 16 bytes")
