"""How skinny linear kernels cut a product of a few rows, and when a BLAS is the better choice. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_ROWS = 128
"""More rows than this are no longer skinny: the weight's bytes stop being what a product waits for."""

_PROCESSORS = 132
"""Streaming multiprocessors of an H200."""


@dataclass(frozen=True, slots=True)
class SkinnyTiling:
    """How a launch is cut up.

    block_columns, block_inner: rows of the weight (columns of the output) and inner positions of a tile; powers of
        two, at least 16. A gated product holds such a tile of the gate and one of the up projection.
    programs: how many programs share the (output tile, inner tile) pairs, each a run of neighbouring ones, equal to
        within one; 0 means `splits` programs an output tile instead.
    splits: with programs = 0, parts of an output tile's inner dimension, equal to within one tile.
    num_warps, num_stages: of the program, and of the pipeline of loads.
    bulk: load through the tensor memory accelerator (TMA), else by asynchronous copies of 16 bytes.
    early_tiles: -1 launches as any kernel does. Else as a programmatic dependent launch: programs start as soon as
        those of the launch before them leave room, ask for so many of their first weight tiles to be brought to L2,
        and wait for the launch before them to be finished and visible only then.
    """

    block_columns: int
    block_inner: int
    num_warps: int = 4
    num_stages: int = 4
    programs: int = 0
    splits: int = 1
    bulk: bool = True
    early_tiles: int = -1


@dataclass(frozen=True, slots=True)
class SkinnyPlan:
    """What follows from a tiling and a shape.

    block_rows: rows of x in a tile. row_tiles, column_tiles, inner_tiles: tiles along M, N and K.
    programs: along the grid's first axis; its second is row_tiles.
    max_parts: the most programs that one output tile is summed from. whole: whether some tile has one alone.
    part_numbers: fp32 numbers of workspace; counters: int32 counters of workspace.
    """

    block_rows: int
    row_tiles: int
    column_tiles: int
    inner_tiles: int
    programs: int
    max_parts: int
    whole: bool
    part_numbers: int
    counters: int


def plan_skinny(rows: int, columns: int, inner: int, wide: bool, gated: bool, tiling: SkinnyTiling) -> SkinnyPlan:
    """The plan for x [rows, inner] and `columns` columns of output; `wide` means fp32, whose tiles of x are small."""
    block_rows = min(32 if wide else 128, max(16, 1 << (rows - 1).bit_length()))
    row_tiles = -(-rows // block_rows)
    column_tiles, inner_tiles = -(-columns // tiling.block_columns), -(-inner // tiling.block_inner)
    units = column_tiles * inner_tiles
    if tiling.programs:
        programs = min(tiling.programs, units)
        starts = range(0, units, inner_tiles)
        parts = [1 + _owner(i + inner_tiles - 1, programs, units) - _owner(i, programs, units) for i in starts]
        max_parts, whole = max(parts), min(parts) == 1
        slots = 2 * programs
    else:
        max_parts = min(tiling.splits, inner_tiles)
        whole = max_parts == 1
        slots = programs = column_tiles * max_parts
    tile = tiling.block_columns * block_rows * (2 if gated else 1)
    numbers = slots * row_tiles * tile if max_parts > 1 else 0
    counters = column_tiles * row_tiles if max_parts > 1 else 0
    return SkinnyPlan(block_rows, row_tiles, column_tiles, inner_tiles, programs, max_parts, whole, numbers, counters)


def _owner(unit: int, programs: int, units: int) -> int:
    """The program p for which p * units // programs <= unit < (p + 1) * units // programs."""
    return ((unit + 1) * programs - 1) // units


def choose_skinny(rows: int, columns: int, inner: int, dtype: torch.dtype, gated: bool = False) -> SkinnyTiling | None:
    """The tiling for x [rows, inner] times a weight [columns, inner] (gated: [2 * columns, inner]).

    None where a BLAS product should be used: more than MAX_ROWS rows, an inner dimension that is not a multiple of 16,
    a dtype other than bf16 and fp32.
    """
    if not 0 < rows <= MAX_ROWS or inner % 16 or dtype not in (torch.bfloat16, torch.float32):
        return None
    if dtype == torch.float32:
        return SkinnyTiling(32, 16, 4, 2, programs=2 * _PROCESSORS)
    return SkinnyTiling(64 if gated else 128, 64, 4, 5, programs=2 * _PROCESSORS)
