"""What the sampler needs to know of logits, in Triton: one read of them, no fp32 copy.

A program takes one row and one split of the vocabulary. It keeps, lane by lane, the largest and second largest logit
with the token of the first, and sums exp(x - m) and exp(x - m) (x - m) under a running maximum m, from which
probability = 1 / l, margin = (1 - exp(second - m)) / l and entropy = log l - s / l follow. A second kernel merges the
splits of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .confidence import Confidence

_BLOCK_SIZE = 4096
_MERGE_ROWS = 16


@triton.jit
def _scan_kernel(
    logits_ptr, tokens_ptr, stats_ptr,
    row_stride, n_cols, split_cols,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """tokens int32 [rows, splits]; stats fp32 [4, rows, splits]: largest, second largest, sum of exp, weighted sum."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    first = split * split_cols
    stop = tl.minimum(n_cols, first + split_cols)
    lanes = tl.arange(0, BLOCK_SIZE)
    best = tl.full([BLOCK_SIZE], -float("inf"), tl.float32)
    second = tl.full([BLOCK_SIZE], -float("inf"), tl.float32)
    token = first + lanes
    mass = tl.zeros([BLOCK_SIZE], tl.float32)
    weighted = tl.zeros([BLOCK_SIZE], tl.float32)
    top = -float("inf")
    base = 0.0
    for start in range(first, stop, BLOCK_SIZE):
        columns = start + lanes
        x = tl.load(logits_ptr + row * row_stride + columns, mask=columns < stop, other=-float("inf")).to(tl.float32)
        second = tl.maximum(second, tl.minimum(best, x))
        token = tl.where(x > best, columns, token)
        best = tl.maximum(best, x)
        new_top = tl.maximum(top, tl.max(best, 0))
        new_base = tl.where(new_top > -float("inf"), new_top, 0.0)
        shift = tl.where(top > -float("inf"), base - new_base, 0.0)
        kept = tl.exp(shift)
        distance = tl.where(x > -float("inf"), x - new_base, 0.0)
        e = tl.where(x > -float("inf"), tl.exp(distance), 0.0)
        weighted = kept * (weighted + mass * shift) + e * distance
        mass = mass * kept + e
        top = new_top
        base = new_base
    winner = tl.min(tl.where(best == top, token, n_cols), 0)
    runner_up = tl.max(tl.where(token == winner, second, best), 0)
    splits = tl.num_programs(1)
    at = row * splits + split
    plane = tl.num_programs(0).to(tl.int64) * splits
    tl.store(tokens_ptr + at, winner)
    tl.store(stats_ptr + at, top)
    tl.store(stats_ptr + plane + at, runner_up)
    tl.store(stats_ptr + 2 * plane + at, tl.sum(mass, 0))
    tl.store(stats_ptr + 3 * plane + at, tl.sum(weighted, 0))


@triton.jit
def _finish_kernel(
    tokens_ptr, stats_ptr, token_ptr, probability_ptr, margin_ptr, entropy_ptr,
    num_rows, num_splits,
    BLOCK_ROWS: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    splits = tl.arange(0, BLOCK_SPLITS)[None, :]
    in_rows = rows < num_rows
    mask = in_rows[:, None] & (splits < num_splits)
    at = rows[:, None] * num_splits + splits
    plane = tl.cast(num_rows, tl.int64) * num_splits
    tokens = tl.load(tokens_ptr + at, mask=mask, other=2147483647)
    best = tl.load(stats_ptr + at, mask=mask, other=-float("inf"))
    second = tl.load(stats_ptr + plane + at, mask=mask, other=-float("inf"))
    mass = tl.load(stats_ptr + 2 * plane + at, mask=mask, other=0.0)
    weighted = tl.load(stats_ptr + 3 * plane + at, mask=mask, other=0.0)
    top = tl.max(best, 1)
    token = tl.min(tl.where(best == top[:, None], tokens, 2147483647), 1)
    runner_up = tl.max(tl.where(tokens == token[:, None], second, best), 1)
    shift = tl.where(best > -float("inf"), best - top[:, None], 0.0)
    scale = tl.where(best > -float("inf"), tl.exp(shift), 0.0)
    total = tl.sum(mass * scale, 1)
    mean = tl.sum((weighted + mass * shift) * scale, 1) / total
    tl.store(token_ptr + rows, token.to(tl.int64), mask=in_rows)
    tl.store(probability_ptr + rows, 1.0 / total, mask=in_rows)
    tl.store(margin_ptr + rows, (1.0 - tl.exp(runner_up - top)) / total, mask=in_rows)
    tl.store(entropy_ptr + rows, tl.log(total) - mean, mask=in_rows)


def confidence_triton(logits: Tensor, splits: int | None = None) -> Confidence:
    """`confidence_reference`, with ties of the best token going to the lower id.

    Args:
        logits: [rows, vocab] of any float dtype, rows strided at will; -inf means impossible. A row needs a possible
            token.
        splits: into how many parts at most the vocabulary is cut; by default as many as give a few programs to each
            of 132 processors.
    """
    rows, columns = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the last dimension of logits must be contiguous")
    wanted = triton.cdiv(4 * 132, max(1, rows)) if splits is None else splits
    tiles = triton.cdiv(columns, _BLOCK_SIZE)
    split_columns = triton.cdiv(tiles, min(wanted, tiles)) * _BLOCK_SIZE
    splits = triton.cdiv(columns, split_columns)
    device = logits.device
    token = torch.empty(rows, dtype=torch.int64, device=device)
    probability, margin, entropy = torch.empty((3, rows), dtype=torch.float32, device=device).unbind(0)
    if rows:
        tokens = torch.empty((rows, splits), dtype=torch.int32, device=device)
        stats = torch.empty((4, rows, splits), dtype=torch.float32, device=device)
        _scan_kernel[(rows, splits)](
            logits, tokens, stats, logits.stride(0), columns, split_columns, BLOCK_SIZE=_BLOCK_SIZE, num_warps=8
        )
        _finish_kernel[(triton.cdiv(rows, _MERGE_ROWS),)](
            tokens, stats, token, probability, margin, entropy, rows, splits,
            BLOCK_ROWS=_MERGE_ROWS, BLOCK_SPLITS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
    return Confidence(token, probability, margin, entropy)
