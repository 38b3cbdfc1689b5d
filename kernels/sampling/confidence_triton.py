"""What the sampler needs to know of logits, in Triton: one read of them, no fp32 copy.

A program takes one row and one split of the vocabulary, in tiles of LANES x 8 logits: a thread holds whole groups of 8,
so that what is kept a lane costs few registers and nothing crosses threads before the end. A lane keeps its largest
and second largest logit with the token of the first, and sums exp(x - m) and exp(x - m) (x - m) under its running
maximum m, from which probability = 1 / l, margin = (1 - exp(second - m)) / l and entropy = log l - s / l follow. With
draws it also keeps the largest x + temperature * Gumbel noise. A second kernel merges the splits of a row. `SHAPED`
applies a request's rules to its logits first, leaves out what lies below its cut-off, and ranks by what is drawn from.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.tiling import num_sms
from .canvas_state import CanvasState
from .confidence import Confidence
from .cutoffs import Cutoffs
from .cutoffs_triton import FIELDS, RANKS_SAMPLED, TEMPERATURE, ruled
from .masked_rows import MaskedRows
from .philox_triton import gumbel

_LANES = 256
_NUM_WARPS = 8
_MERGE_ROWS = 4
_NOBODY = tl.constexpr(2147483647)


@triton.jit
def _scan_kernel(
    logits_ptr, tokens_ptr, stats_ptr, total_ptr, slots_ptr, positions_ptr, temperatures_ptr, seeds_ptr, nfe_ptr,
    shaping_ptr, counts_ptr, biases_ptr, least_ptr, largest_ptr,
    row_stride, n_cols, split_cols, impossible,
    LANES: tl.constexpr, DRAW: tl.constexpr, SHAPED: tl.constexpr,
):  # fmt: skip
    """tokens int32 [2, rows, splits]: best, drawn; stats fp32 [6, rows, splits]: largest, second largest, sum of exp,
    weighted sum, largest with noise and its logit.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if total_ptr is not None:  # noqa: SIM102 - known when compiling; the number of rows is not
        if row >= tl.load(total_ptr):
            return
    temperature = 0.0
    if DRAW:
        slot = tl.load(slots_ptr + row)
        temperature = tl.load(temperatures_ptr + slot)
        seed = tl.load(seeds_ptr + slot)
        step = tl.load(nfe_ptr + slot)
        position = tl.load(positions_ptr + row)
    if SHAPED:
        wide = tl.load(slots_ptr + row).to(tl.int64)
        place = tl.load(positions_ptr + row)
        ranks_sampled = tl.load(shaping_ptr + wide * FIELDS + RANKS_SAMPLED) != 0
        sampled_at = tl.load(shaping_ptr + wide * FIELDS + TEMPERATURE)
        least = tl.load(least_ptr + row)
        top_logit = tl.load(largest_ptr + row)
    first = split * split_cols
    stop = tl.minimum(n_cols, first + split_cols)
    lanes = tl.arange(0, LANES)
    items = tl.arange(0, 8)
    best = tl.full([LANES], -float("inf"), tl.float32)
    second = tl.full([LANES], -float("inf"), tl.float32)
    token = first + lanes * 8
    base = tl.zeros([LANES], tl.float32)
    mass = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)
    noisy_best = tl.full([LANES], -float("inf"), tl.float32)
    noisy_token = first + lanes * 8
    noisy_logit = tl.full([LANES], -float("inf"), tl.float32)
    for start in range(first, stop, LANES * 8):
        columns = start + lanes[:, None] * 8 + items[None, :]
        possible = (columns < stop) & (columns != impossible)
        x = tl.load(logits_ptr + row * row_stride + columns, mask=columns < stop, other=-float("inf")).to(tl.float32)
        x = tl.where(possible, x, -float("inf"))
        left = x
        if SHAPED:
            x = ruled(x, columns, possible, wide, place, shaping_ptr, counts_ptr, biases_ptr, n_cols)
            left = tl.where((x >= least) | (x != x), x, -float("inf"))
            x = tl.where(ranks_sampled, (left - top_logit) / sampled_at, x)
        largest = tl.max(x, 1)
        column = tl.min(tl.where(x == largest[:, None], columns, _NOBODY), 1)
        next_largest = tl.max(tl.where(columns == column[:, None], -float("inf"), x), 1)
        second = tl.maximum(tl.maximum(second, next_largest), tl.minimum(best, largest))
        token = tl.where(largest > best, column, token)
        best = tl.maximum(best, largest)
        new_base = tl.where(best > -float("inf"), best, 0.0)
        shift = tl.where(mass > 0.0, base - new_base, 0.0)
        kept = tl.exp(shift)
        distance = x - new_base[:, None]
        e = tl.exp(distance)
        terms = tl.where(x > -float("inf"), e * distance, 0.0)
        weighted = kept * (weighted + mass * shift) + tl.sum(terms, 1)
        mass = mass * kept + tl.sum(e, 1)
        base = new_base
        if DRAW:  # noqa: SIM102
            if temperature > 0:
                noisy = left + temperature * gumbel(seed, start, position, step, LANES)
                noisy_largest = tl.max(noisy, 1)
                drawn = tl.min(tl.where(noisy == noisy_largest[:, None], columns, _NOBODY), 1)
                logit = tl.max(tl.where(columns == drawn[:, None], x, -float("inf")), 1)
                better = noisy_largest > noisy_best
                noisy_token = tl.where(better, drawn, noisy_token)
                noisy_logit = tl.where(better, logit, noisy_logit)
                noisy_best = tl.where(better, noisy_largest, noisy_best)
    top = tl.max(best, 0)
    winner = tl.min(tl.where(best == top, token, _NOBODY), 0)
    runner_up = tl.max(tl.where(token == winner, second, best), 0)
    shift = tl.where(best > -float("inf"), best - top, 0.0)
    scale = tl.where(best > -float("inf"), tl.exp(shift), 0.0)
    splits = tl.num_programs(1)
    at = row * splits + split
    plane = tl.num_programs(0).to(tl.int64) * splits
    tl.store(tokens_ptr + at, winner)
    tl.store(stats_ptr + at, top)
    tl.store(stats_ptr + plane + at, runner_up)
    tl.store(stats_ptr + 2 * plane + at, tl.sum(mass * scale, 0))
    tl.store(stats_ptr + 3 * plane + at, tl.sum((weighted + mass * shift) * scale, 0))
    if DRAW:
        noisy_top = tl.max(noisy_best, 0)
        drawn = tl.min(tl.where(noisy_best == noisy_top, noisy_token, _NOBODY), 0)
        tl.store(tokens_ptr + plane + at, drawn)
        tl.store(stats_ptr + 4 * plane + at, noisy_top)
        tl.store(stats_ptr + 5 * plane + at, tl.max(tl.where(noisy_token == drawn, noisy_logit, -float("inf")), 0))


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def _finish_kernel(
    tokens_ptr, stats_ptr, token_ptr, probability_ptr, margin_ptr, entropy_ptr,
    total_ptr, slots_ptr, temperatures_ptr,
    num_rows, num_splits,
    BLOCK_ROWS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, DRAW: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    splits = tl.arange(0, BLOCK_SPLITS)[None, :]
    in_rows = rows < num_rows
    if total_ptr is not None:
        in_rows = rows < tl.minimum(tl.load(total_ptr), num_rows)
    mask = in_rows[:, None] & (splits < num_splits)
    at = rows[:, None] * num_splits + splits
    plane = tl.cast(num_rows, tl.int64) * num_splits
    tokens = tl.load(tokens_ptr + at, mask=mask, other=_NOBODY)
    best = tl.load(stats_ptr + at, mask=mask, other=-float("inf"))
    second = tl.load(stats_ptr + plane + at, mask=mask, other=-float("inf"))
    mass = tl.load(stats_ptr + 2 * plane + at, mask=mask, other=0.0)
    weighted = tl.load(stats_ptr + 3 * plane + at, mask=mask, other=0.0)
    top = tl.max(best, 1)
    token = tl.min(tl.where(best == top[:, None], tokens, _NOBODY), 1)
    runner_up = tl.max(tl.where(tokens == token[:, None], second, best), 1)
    shift = tl.where(best > -float("inf"), best - top[:, None], 0.0)
    scale = tl.where(best > -float("inf"), tl.exp(shift), 0.0)
    total = tl.sum(mass * scale, 1)
    mean = tl.sum((weighted + mass * shift) * scale, 1) / total
    probability = 1.0 / total
    if DRAW:
        slots = tl.load(slots_ptr + rows, mask=in_rows, other=0)
        temperatures = tl.load(temperatures_ptr + slots, mask=in_rows, other=0.0)
        drawn_tokens = tl.load(tokens_ptr + plane + at, mask=mask, other=_NOBODY)
        noisy = tl.load(stats_ptr + 4 * plane + at, mask=mask, other=-float("inf"))
        logits = tl.load(stats_ptr + 5 * plane + at, mask=mask, other=-float("inf"))
        noisy_top = tl.max(noisy, 1)
        drawn = tl.min(tl.where(noisy == noisy_top[:, None], drawn_tokens, _NOBODY), 1)
        logit = tl.max(tl.where(drawn_tokens == drawn[:, None], logits, -float("inf")), 1)
        token = tl.where(temperatures > 0, drawn, token)
        probability = tl.where(temperatures > 0, tl.exp(logit - top) / total, probability)
    tl.store(token_ptr + rows, token.to(tl.int64), mask=in_rows)
    tl.store(probability_ptr + rows, probability, mask=in_rows)
    tl.store(margin_ptr + rows, (1.0 - tl.exp(runner_up - top)) / total, mask=in_rows)
    tl.store(entropy_ptr + rows, tl.log(total) - mean, mask=in_rows)


def confidence_triton(logits: Tensor, splits: int | None = None) -> Confidence:
    """`confidence`, with ties of the best token going to the lower id.

    Args:
        logits: [rows, vocab] of any float dtype, any row stride; -inf means impossible. A row needs a possible
            token.
        splits: the most parts that the vocabulary is cut into; by default enough for eight programs per SM.
    """
    return _confidence(logits, None, None, None, False, None, splits)


def block_confidence_triton(
    logits: Tensor, state: CanvasState, masked: MaskedRows, *, impossible_token: int | None = None, draw: bool = True,
    cut: Cutoffs | None = None, splits: int | None = None, lanes: int = _LANES, num_warps: int = _NUM_WARPS,
) -> Confidence:  # fmt: skip
    """`block_confidence`; reads nothing on the host. A tile is 8 * lanes logits."""
    if logits.shape[0] != masked.rows.shape[0]:
        raise ValueError(f"{logits.shape[0]} rows of logits for {masked.rows.shape[0]} masked rows")
    return _confidence(logits, state, masked, impossible_token, draw, cut, splits, lanes, num_warps)


def _confidence(
    logits: Tensor, state: CanvasState | None, masked: MaskedRows | None, impossible_token: int | None, draw: bool,
    cut: Cutoffs | None, splits: int | None, lanes: int = _LANES, num_warps: int = _NUM_WARPS,
) -> Confidence:  # fmt: skip
    rows, columns = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the last dimension of logits must be contiguous")
    wanted = triton.cdiv(8 * num_sms(logits.device), max(1, rows)) if splits is None else splits
    tiles = triton.cdiv(columns, 8 * lanes)
    split_columns = triton.cdiv(tiles, min(wanted, tiles)) * 8 * lanes
    splits = triton.cdiv(columns, split_columns)
    device = logits.device
    token = torch.empty(rows, dtype=torch.int64, device=device)
    whole = -(-rows // 4) * 4  # every column begins at 16 bytes: kernels are compiled for that, and need not be again
    probability, margin, entropy = torch.empty((3, whole), dtype=torch.float32, device=device)[:, :rows].unbind(0)
    if rows:
        tokens = torch.empty((2, rows, splits), dtype=torch.int32, device=device)
        stats = torch.empty((6, rows, splits), dtype=torch.float32, device=device)
        total = slots = positions = temperatures = seeds = nfe = None
        if masked is not None:
            total, slots, positions = masked.total, masked.slots, masked.positions
        if state is not None:
            temperatures, seeds, nfe = state.temperatures, state.seeds, state.nfe
        shaping = counts = biases = least = largest = None
        if state is not None and cut is not None:
            shaping, counts, biases, (least, largest) = state.shaping, state.counts, state.biases, cut
        _scan_kernel[(rows, splits)](
            logits, tokens, stats, total, slots, positions, temperatures, seeds, nfe,
            shaping, counts, biases, least, largest,
            logits.stride(0), columns, split_columns, -1 if impossible_token is None else impossible_token,
            LANES=lanes, DRAW=draw, SHAPED=cut is not None, num_warps=num_warps,
        )  # fmt: skip
        _finish_kernel[(triton.cdiv(rows, _MERGE_ROWS),)](
            tokens, stats, token, probability, margin, entropy, total, slots, temperatures, rows, splits,
            BLOCK_ROWS=_MERGE_ROWS, BLOCK_SPLITS=triton.next_power_of_2(splits), DRAW=draw, num_warps=4,
        )  # fmt: skip
    return Confidence(token, probability, margin, entropy)
