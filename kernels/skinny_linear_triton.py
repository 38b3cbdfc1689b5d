"""Skinny linear layers in Triton: y = x W^T (+ bias) (+ residual) for at most some dozens of rows, and the gated unit.

What: the weight is read once and decides the time, so programs share its bytes evenly. The pairs (output tile, inner
tile) are numbered along the weight's rows; each program takes a run of neighbouring ones ("stream-K", Osama et al.
2023, arXiv 2301.03598) through one software-pipelined loop, past the ends of output tiles. Where several programs meet
in an output tile each leaves its partial sum in fp32; the one that arrives last adds them in the order of the inner
dimension, then bias and residual, and sets the tile's counter back. So the result does not depend on timing.
The weight tile is the left operand, for the matrix units want 64 rows there; x^T, padded to a power of two of
columns, is the right one. Tiles of both come by TMA, which fills what lies outside with zeros.

Cautions: launches that share a workspace must not overlap. fp32 products are exact (no TF32), and slow.

Differences from the reference: the order in which products are summed.
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
from .skinny_tiling import SkinnyPlan, SkinnyTiling, choose_skinny, plan_skinny
from .skinny_workspace import SkinnyWorkspace, device_workspace

plan = lru_cache(maxsize=1024)(plan_skinny)


@triton.jit
def _owner(unit, PROGRAMS: tl.constexpr, UNITS: tl.constexpr):
    """The program p for which p * UNITS // PROGRAMS <= unit < (p + 1) * UNITS // PROGRAMS."""
    return ((unit + 1) * PROGRAMS - 1) // UNITS


@triton.jit
def _tile_offsets(BLOCK_COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Places of a tile's numbers in the workspace."""
    return tl.arange(0, BLOCK_COLUMNS)[:, None] * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :]


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
def _store_part(
    acc, up_acc, slot, parts_ptr, GATED: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """Leave a tile's partial sums in a slot of the workspace."""
    SIZE: tl.constexpr = BLOCK_COLUMNS * BLOCK_ROWS
    place = _tile_offsets(BLOCK_COLUMNS, BLOCK_ROWS)
    if GATED:
        tl.store(parts_ptr + slot * 2 * SIZE + place, acc)
        tl.store(parts_ptr + slot * 2 * SIZE + SIZE + place, up_acc)
    else:
        tl.store(parts_ptr + slot * SIZE + place, acc)


@triton.jit
def _store_output(
    acc, up_acc, tile, row_tile, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile's output from its whole sums [BLOCK_COLUMNS, BLOCK_ROWS]."""
    dtype = out_ptr.dtype.element_ty
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    y = tl.trans(acc)
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        at = residual_ptr + row.to(tl.int64)[:, None] * residual_row_stride + column[None, :]
        y += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gate = y.to(dtype).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
        y = gate * tl.trans(up_acc).to(dtype).to(tl.float32)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * out_row_stride + column[None, :], y.to(dtype), mask=mask)


@triton.jit
def _join(
    tile, row_tile, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr, rows, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, INNER_TILES: tl.constexpr, UNITS: tl.constexpr, PROGRAMS: tl.constexpr,
    ROW_TILES: tl.constexpr, MAX_PARTS: tl.constexpr, STREAM: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Report that this program's part of a tile is in memory; the last of the tile's programs adds the parts up.

    With STREAM a program has two slots, the second for a tile that it begins and does not end; else one.
    """
    SIZE: tl.constexpr = BLOCK_COLUMNS * BLOCK_ROWS
    if STREAM:
        first_program = _owner(tile * INNER_TILES, PROGRAMS, UNITS)
        parts = _owner(tile * INNER_TILES + INNER_TILES - 1, PROGRAMS, UNITS) - first_program + 1
    else:
        first_program = tile * MAX_PARTS
        parts = MAX_PARTS
    if parts > 1:
        arrival = arrivals_ptr + tile * ROW_TILES + row_tile
        if tl.atomic_add(arrival, 1, sem="acq_rel") == parts - 1:
            tl.debug_barrier()
            place = _tile_offsets(BLOCK_COLUMNS, BLOCK_ROWS)
            acc = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
            up_acc = acc
            for part in tl.static_range(MAX_PARTS):
                slot = first_program + part
                if STREAM:
                    slot = 2 * slot + (1 if part == 0 else 0)
                from_ptr = parts_ptr + (slot * ROW_TILES + row_tile) * (2 * SIZE if GATED else SIZE) + place
                here = (place >= 0) & (part < parts)
                acc += tl.load(from_ptr, mask=here, other=0.0, cache_modifier=".cg")
                if GATED:
                    up_acc += tl.load(from_ptr + SIZE, mask=here, other=0.0, cache_modifier=".cg")
            _store_output(
                acc, up_acc, tile, row_tile, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride,
                out_row_stride, COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
            )  # fmt: skip
            tl.store(arrival, 0)


@triton.jit
def _fetch_early(weight_ptr, row_stride, first_row, first, INNER: tl.constexpr, COLUMNS: tl.constexpr,
                 BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Ask for TILES tiles along a run of weight rows to be brought to L2, a line of 128 bytes at a time."""
    LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
    row = tl.minimum(first_row + tl.arange(0, BLOCK), COLUMNS - 1).to(tl.int64)
    for line in tl.static_range(TILES * BLOCK_INNER // LINE):
        column = tl.minimum(first + line * LINE, INNER - 1)
        address = (weight_ptr + row * row_stride + column).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, weight, weight_ptr, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr,
    rows, x_row_stride, weight_row_stride, residual_row_stride, out_row_stride,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, PROGRAMS: tl.constexpr, ROW_TILES: tl.constexpr,
    MAX_PARTS: tl.constexpr, STREAM: tl.constexpr, WHOLE: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BULK: tl.constexpr, EARLY_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """Grid (PROGRAMS, ROW_TILES). With BULK, x and weight are descriptors, else pointers as weight_ptr is.

    With GATED the weight's rows are COLUMNS of the gate, then COLUMNS of the up projection. With WHOLE a program's run
    can hold all of a tile. No barrier may stand in the first loop: it would not be pipelined.
    """
    INNER_TILES: tl.constexpr = (INNER + BLOCK_INNER - 1) // BLOCK_INNER
    COLUMN_TILES: tl.constexpr = (COLUMNS + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    UNITS: tl.constexpr = COLUMN_TILES * INNER_TILES
    WEIGHT_ROWS: tl.constexpr = COLUMNS * (2 if GATED else 1)
    program, row_tile = tl.program_id(0), tl.program_id(1)
    if STREAM:
        begin, end = program * UNITS // PROGRAMS, (program + 1) * UNITS // PROGRAMS
    else:
        first_tile, part = program // MAX_PARTS, program % MAX_PARTS
        begin = first_tile * INNER_TILES + part * INNER_TILES // MAX_PARTS
        end = first_tile * INNER_TILES + (part + 1) * INNER_TILES // MAX_PARTS
    if EARLY_TILES >= 0:
        gdc_launch_dependents()
        first_row, first = begin // INNER_TILES * BLOCK_COLUMNS, begin % INNER_TILES * BLOCK_INNER
        for half in tl.static_range(2 if GATED else 1):
            _fetch_early(weight_ptr, weight_row_stride, first_row + half * COLUMNS, first, INNER, WEIGHT_ROWS,
                         BLOCK_COLUMNS, BLOCK_INNER, EARLY_TILES)  # fmt: skip
        gdc_wait()

    head_slot = program * ROW_TILES + row_tile
    if STREAM:
        head_slot = 2 * program * ROW_TILES + row_tile
    acc = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
    up_acc = acc
    for unit in tl.range(begin, end):
        tile, inner_tile = unit // INNER_TILES, unit % INNER_TILES
        first = inner_tile * BLOCK_INNER
        w = _load(weight, tile * BLOCK_COLUMNS, first, WEIGHT_ROWS, weight_row_stride, INNER,
                  BLOCK_COLUMNS, BLOCK_INNER, BULK)  # fmt: skip
        if GATED:
            up = _load(weight, COLUMNS + tile * BLOCK_COLUMNS, first, WEIGHT_ROWS, weight_row_stride, INNER,
                       BLOCK_COLUMNS, BLOCK_INNER, BULK)  # fmt: skip
        x_tile = _load(x, row_tile * BLOCK_ROWS, first, rows, x_row_stride, INNER, BLOCK_ROWS, BLOCK_INNER, BULK)
        acc = tl.dot(w, tl.trans(x_tile), acc, input_precision="ieee")
        if GATED:
            up_acc = tl.dot(up, tl.trans(x_tile), up_acc, input_precision="ieee")
        if STREAM:  # noqa: SIM102  known when compiled, unlike the next
            if inner_tile == INNER_TILES - 1:
                if tile * INNER_TILES < begin:
                    _store_part(acc, up_acc, head_slot, parts_ptr, GATED, BLOCK_COLUMNS, BLOCK_ROWS)
                elif WHOLE:
                    _store_output(
                        acc, up_acc, tile, row_tile, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride,
                        out_row_stride, COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
                    )  # fmt: skip
                acc = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
                up_acc = acc

    first_tile, last_tile = begin // INNER_TILES, (end - 1) // INNER_TILES
    if STREAM:
        if end % INNER_TILES != 0:
            tail_slot = head_slot + tl.where(last_tile * INNER_TILES < begin, 0, ROW_TILES)
            _store_part(acc, up_acc, tail_slot, parts_ptr, GATED, BLOCK_COLUMNS, BLOCK_ROWS)
    elif MAX_PARTS > 1:
        _store_part(acc, up_acc, head_slot, parts_ptr, GATED, BLOCK_COLUMNS, BLOCK_ROWS)
    else:
        _store_output(
            acc, up_acc, first_tile, row_tile, bias_ptr, residual_ptr, out_ptr, rows, residual_row_stride,
            out_row_stride, COLUMNS, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
    if MAX_PARTS > 1:
        tl.debug_barrier()
        for tile in tl.range(first_tile, last_tile + 1, num_stages=1):
            _join(
                tile, row_tile, bias_ptr, residual_ptr, out_ptr, parts_ptr, arrivals_ptr,
                rows, residual_row_stride, out_row_stride, COLUMNS, INNER_TILES, UNITS, PROGRAMS, ROW_TILES, MAX_PARTS,
                STREAM, GATED, HAS_BIAS, HAS_RESIDUAL, BLOCK_ROWS, BLOCK_COLUMNS,
            )  # fmt: skip


def skinny_linear_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, out: Tensor | None = None,
    *, tiling: SkinnyTiling | None = None, workspace: SkinnyWorkspace | None = None,
) -> Tensor:  # fmt: skip
    """Contract: `skinny_linear_reference`; rows of x and weight must begin at multiples of 16 bytes.

    `tiling`: `choose_skinny`'s, or a plain one where that would take a BLAS. `workspace`: the device's own.
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
    tiling = tiling or choose_skinny(min(rows, 128), columns, inner, x.dtype, gated)
    assert tiling is not None, "rows, inner and dtype were checked"
    cut: SkinnyPlan = plan(rows, columns, inner, wide, gated, tiling)
    workspace = workspace or device_workspace(x.device)
    workspace.reserve(cut.part_numbers, cut.counters)
    x_tiles, weight_tiles = x, weight
    if tiling.bulk:
        x_tiles = TensorDescriptor(x, x.shape, x.stride(), [cut.block_rows, tiling.block_inner])
        weight_tiles = TensorDescriptor(
            weight, weight.shape, weight.stride(), [tiling.block_columns, tiling.block_inner]
        )
    extra = {"launch_pdl": True} if tiling.early_tiles >= 0 else {}
    _skinny_kernel[(cut.programs, cut.row_tiles)](
        x_tiles, weight_tiles, weight, bias, residual, out, workspace.parts, workspace.arrivals,
        rows, x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        COLUMNS=columns, INNER=inner, PROGRAMS=cut.programs, ROW_TILES=cut.row_tiles, MAX_PARTS=cut.max_parts,
        STREAM=tiling.programs > 0, WHOLE=cut.whole, GATED=gated,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, BULK=tiling.bulk, EARLY_TILES=tiling.early_tiles,
        BLOCK_ROWS=cut.block_rows, BLOCK_COLUMNS=tiling.block_columns, BLOCK_INNER=tiling.block_inner,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages, **extra,
    )  # fmt: skip
    return out


def _check_alignment(x: Tensor, weight: Tensor) -> None:
    """ValueError unless each row begins at a multiple of 16 bytes."""
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.data_ptr() % 16 or tensor.stride(0) * tensor.element_size() % 16:
            raise ValueError(f"rows of {name} (stride {tensor.stride(0)}) must begin at multiples of 16 bytes")
