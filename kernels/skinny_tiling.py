"""How skinny linear kernels cut a product of a few rows, and when a BLAS is the better choice. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

MAX_ROWS = 32
"""More rows than this are not skinny: x's own traffic from L2 is no longer small beside the weight's."""

_LARGEST = 4096 * 4096
"""Numbers of a weight up to which the kernel was faster."""

_PROCESSORS = 132
_SHARED_MEMORY = 220 * 1024
"""Of an H200: streaming multiprocessors, and the bytes of shared memory that one program's stages may take."""

_WIDTHS = ((32, 0), (32, 16), (64, 0), (64, 16), (64, 32), (128, 0), (128, 16), (128, 32), (128, 64))


@dataclass(frozen=True, slots=True)
class SkinnyTiling:
    """How a launch is cut up.

    block_columns, more_columns: an output tile is as wide as their sum; powers of two from 16 on, more_columns may be
        0. A gated product holds such a tile of the gate and one of the up projection.
    splits: programs that share a tile's inner dimension, equally to within one step.
    block_inner: inner positions of a step, a power of two, from 32 on in bf16 and from 16 on in fp32.
    num_warps, num_stages: of the program, and of the pipeline of loads.
    bulk: load through the tensor memory accelerator (TMA), else by asynchronous copies of 16 bytes.
    early_tiles: -1 launches as any kernel does. Else as a programmatic dependent launch: programs start as soon as
        those of the launch before them leave room, ask for so many of their first weight tiles to be brought to L2,
        and wait for the launch before them to be finished and visible only then.
    stagger: programs begin at different places of the inner dimension.
    """

    block_columns: int
    more_columns: int = 0
    splits: int = 1
    block_inner: int = 64
    num_warps: int = 4
    num_stages: int = 4
    bulk: bool = True
    early_tiles: int = -1
    stagger: bool = True


@dataclass(frozen=True, slots=True)
class SkinnyPlan:
    """What follows from a tiling and a shape.

    block_rows: rows of x in a tile. row_tiles, column_tiles: tiles along M and N. splits: no more than there are steps.
    part_numbers: fp32 numbers of workspace; counters: int32 counters of workspace.
    """

    block_rows: int
    row_tiles: int
    column_tiles: int
    splits: int
    part_numbers: int
    counters: int


def plan_skinny(rows: int, columns: int, inner: int, wide: bool, gated: bool, tiling: SkinnyTiling) -> SkinnyPlan:
    """The plan for x [rows, inner] and `columns` columns of output; `wide` means fp32, whose tiles of x are small."""
    low, high = (16, 32) if wide else (64, 128)
    block_rows = min(high, max(low, 1 << (rows - 1).bit_length()))
    row_tiles = -(-rows // block_rows)
    width = tiling.block_columns + tiling.more_columns
    column_tiles = -(-columns // width)
    splits = min(tiling.splits, -(-inner // tiling.block_inner))
    tiles = column_tiles * row_tiles if splits > 1 else 0
    numbers = tiles * splits * width * block_rows * (2 if gated else 1)
    return SkinnyPlan(block_rows, row_tiles, column_tiles, splits, numbers, tiles)


def stages_that_fit(rows: int, width: int, block_inner: int, gated: bool) -> int:
    """Stages of bf16 tiles, at most 9, that one program's shared memory holds."""
    return min(9, _SHARED_MEMORY // (2 * block_inner * (max(64, rows) + width * (2 if gated else 1))))


@lru_cache(maxsize=1024)
def default_tiling(rows: int, columns: int, inner: int, dtype: torch.dtype, gated: bool = False) -> SkinnyTiling:
    """The tiling for x [rows, inner] times a weight [columns, inner] (gated: [2 * columns, inner]).

    Of one wave of programs, the one whose programs have the least to load, with a charge for splits.
    """
    if dtype == torch.float32:
        return SkinnyTiling(32, splits=max(1, min(8, inner // 256)), block_inner=16, num_stages=2)
    block_rows = 64 if rows <= 64 else 128
    best, least = SkinnyTiling(128), float("inf")
    for first, more in _WIDTHS:
        width = first + more
        tiles = -(-columns // width)
        stages = stages_that_fit(block_rows, width, 64, gated)
        if stages < 3 or block_rows * width * (2 if gated else 1) > 64 * 288:
            continue
        for splits in range(1, 1 + max(1, min(10, _PROCESSORS // tiles))):
            waves = -(-tiles * splits // _PROCESSORS)
            steps = -(-inner // 64 // splits)
            cost = waves * steps * (width * (2 if gated else 1) + rows) + (splits > 1) * 1000 + splits * 100
            if cost < least:
                best, least = SkinnyTiling(first, more, splits, num_stages=stages), cost
    return best


def choose_skinny(rows: int, columns: int, inner: int, dtype: torch.dtype, gated: bool = False) -> SkinnyTiling | None:
    """`default_tiling` where it was measured to be faster than cuBLAS on an H200, else None: use a BLAS product.

    So far that is one kind of shape: bf16, at most MAX_ROWS rows, small square weights, for which cuBLAS splits the
    inner dimension and launches a second kernel to add up. inner must be a multiple of 16.
    """
    if not 0 < rows <= MAX_ROWS or inner % 16 or dtype != torch.bfloat16 or gated or columns * inner > _LARGEST:
        return None
    return default_tiling(rows, columns, inner, dtype, gated)
