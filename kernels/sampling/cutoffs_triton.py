"""Rules on logits and cut-offs in Triton.

A cut-off is found by its bits: logits are mapped to integers of the same order, and from the highest bit on each is set
if still so many tokens, or so much probability, lie above. So a row is read 16 times (bf16; 32 times in fp32), from L2,
and nothing is sorted or kept.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .canvas_state import CanvasState
from .cutoffs import Cutoffs
from .masked_rows import MaskedRows
from .shaping import ENDS_TEXT, IN_PROMPT, Shaping

FIELDS = tl.constexpr(len(Shaping._fields))
TEMPERATURE, TOP_K, TOP_P, LOG_MIN_P, RANKS_SAMPLED, HAS_RULES, REPETITION, PRESENCE, FREQUENCY, NO_END_BEFORE = (
    tl.constexpr(number) for number in range(len(Shaping._fields))
)
_IN_PROMPT, _ENDS_TEXT = tl.constexpr(IN_PROMPT), tl.constexpr(ENDS_TEXT)
_KEY_OF_MINUS_INF = tl.constexpr(-2139095041)
_TILE = 4096
_NUM_WARPS = 8


@triton.jit
def ruled(x, columns, inside, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols):
    """`ruled_reference` of some columns of a row; slot is int64."""
    own = shaping_ptr + slot * FIELDS
    if tl.load(own + HAS_RULES) != 0:
        flags = tl.load(counts_ptr + slot * n_cols + columns, mask=inside, other=0)
        bias = tl.load(biases_ptr + slot * n_cols + columns, mask=inside, other=0.0)
        count = (flags & (_ENDS_TEXT - 1)).to(tl.float32)
        repetition = tl.load(own + REPETITION)
        seen = (count > 0) | ((flags & _IN_PROMPT) != 0)
        x = tl.where(seen, tl.where(x > 0, x / repetition, x * repetition), x)
        presence = tl.where(count > 0, tl.load(own + PRESENCE), 0.0)
        x = x - (tl.load(own + FREQUENCY) * count + presence) + bias
        if position < tl.load(own + NO_END_BEFORE):
            x = tl.where((flags & _ENDS_TEXT) != 0, -float("inf"), x)
    return x


@triton.jit
def _tile(row_ptr, columns, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols, impossible):
    """(`ruled` logits of some columns of a row, which of the columns are possible tokens)."""
    inside = (columns < n_cols) & (columns != impossible)
    x = tl.load(row_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
    return ruled(x, columns, inside, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols), inside


@triton.jit
def _key(x):
    """int32 in the order of fp32 x."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logit(key):
    """The fp32 number whose `_key` this is; -inf for keys up to that of -inf."""
    x = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(key <= _KEY_OF_MINUS_INF, -float("inf"), x)


@triton.jit
def _cutoff_kernel(
    logits_ptr, least_ptr, largest_ptr, total_ptr, slots_ptr, positions_ptr, shaping_ptr, counts_ptr, biases_ptr,
    row_stride, n_cols, impossible,
    NARROW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(total_ptr):
        return
    slot = tl.load(slots_ptr + row).to(tl.int64)
    position = tl.load(positions_ptr + row)
    own = shaping_ptr + slot * FIELDS
    temperature = tl.load(own + TEMPERATURE)
    top_k = tl.load(own + TOP_K)
    top_p = tl.load(own + TOP_P)
    log_min_p = tl.load(own + LOG_MIN_P)
    cuts = (top_k > 0) | (top_p < 1) | (log_min_p > -float("inf"))
    if (cuts == 0) & (tl.load(own + RANKS_SAMPLED) == 0):
        tl.store(least_ptr + row, -float("inf"))
        tl.store(largest_ptr + row, 0.0)
        return
    lanes = tl.arange(0, TILE)
    own_logits = logits_ptr + row * row_stride

    best = tl.full([TILE], -float("inf"), tl.float32)
    for start in range(0, n_cols, TILE):
        x, _ = _tile(own_logits, start + lanes, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols, impossible)
        best = tl.maximum(best, x)
    largest = tl.max(best, 0)
    least = largest + temperature * log_min_p

    if (top_k > 0) | (top_p < 1):
        everything = tl.zeros([TILE], tl.float32)
        for start in range(0, n_cols, TILE):
            x, _ = _tile(
                own_logits, start + lanes, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols, impossible
            )
            everything += tl.exp((x - largest) / temperature)
        enough = top_p * tl.sum(everything, 0)
        bits = 32
        if NARROW:  # the low half of bf16 is empty until rules make other numbers of it
            bits = tl.where(tl.load(own + HAS_RULES) != 0, 32, 16)
        by_count = tl.full([], -2147483648, tl.int32)
        by_mass = tl.full([], -2147483648, tl.int32)
        for number in range(bits):
            bit = tl.full([], 1, tl.int32) << (31 - number)
            try_count = by_count ^ bit
            try_mass = by_mass ^ bit
            above = tl.zeros([TILE], tl.int32)
            mass = tl.zeros([TILE], tl.float32)
            for start in range(0, n_cols, TILE):
                x, inside = _tile(
                    own_logits, start + lanes, slot, position, shaping_ptr, counts_ptr, biases_ptr, n_cols, impossible
                )
                key = _key(x)
                above += (inside & (key >= try_count)).to(tl.int32)
                mass += tl.where(key >= try_mass, tl.exp((x - largest) / temperature), 0.0)
            by_count = tl.where(tl.sum(above, 0).to(tl.float32) >= top_k, try_count, by_count)
            by_mass = tl.where(tl.sum(mass, 0) > enough, try_mass, by_mass)
        if top_k > 0:
            least = tl.maximum(least, _logit(by_count))
        if top_p < 1:
            least = tl.maximum(least, _logit(by_mass))
    tl.store(least_ptr + row, least)
    tl.store(largest_ptr + row, largest)


def cutoffs_triton(
    logits: Tensor, state: CanvasState, masked: MaskedRows, *, impossible_token: int | None = None, tile: int = _TILE
) -> Cutoffs:
    """`cutoffs`; reads nothing on the host. A program reads a row in tiles of `tile` logits."""
    rows, columns = logits.shape
    if rows != masked.rows.shape[0]:
        raise ValueError(f"{rows} rows of logits for {masked.rows.shape[0]} masked rows")
    if logits.stride(1) != 1:
        raise ValueError("the last dimension of logits must be contiguous")
    if state.counts.shape[1] != columns:
        raise ValueError(f"logits have {columns} columns; counts and biases {state.counts.shape[1]}")
    whole = -(-rows // 4) * 4
    least, largest = torch.empty((2, whole), dtype=torch.float32, device=logits.device)[:, :rows].unbind(0)
    _cutoff_kernel[(rows,)](
        logits, least, largest, masked.total, masked.slots, masked.positions, state.shaping, state.counts,
        state.biases, logits.stride(0), columns, -1 if impossible_token is None else impossible_token,
        NARROW=logits.dtype == torch.bfloat16, TILE=tile, num_warps=_NUM_WARPS,
    )  # fmt: skip
    return Cutoffs(least, largest)
