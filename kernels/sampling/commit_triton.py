"""Commits of a block step in Triton: one program a request, which ranks its masks by comparing all pairs."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math

import triton
import triton.language as tl

from ..attention.batch import AttentionBatch
from .canvas_state import NOT_FINITE, STOPPED, CanvasState
from .confidence import Confidence
from .masked_rows import MaskedRows
from .philox import RANDOM_STREAM
from .philox_triton import uniform


@triton.jit
def _commit_kernel(
    tokens_ptr, masked_ptr, block_starts_ptr, block_stops_ptr, block_masks_ptr, block_step_ptr, nfe_ptr,
    steps_per_block_ptr, bounds_ptr, takes_last_ptr, strategies_ptr, seeds_ptr, stop_ids_ptr, stopped_ptr,
    slots_ptr, key_lengths_ptr, places_ptr, token_ptr, probability_ptr, margin_ptr, entropy_ptr,
    length, num_stop_ids, log_vocabulary,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, RANDOM_STREAM: tl.constexpr,
    STOPPED: tl.constexpr, NOT_FINITE: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    place = tl.load(places_ptr + request * WIDTH + lanes, mask=lanes < WIDTH, other=-1)
    is_open = place >= 0
    num_open = tl.sum(is_open.to(tl.int32), 0)
    if (num_open == 0) | (tl.load(key_lengths_ptr + request) == 0):
        return
    slot = tl.load(slots_ptr + request).to(tl.int64)
    start = tl.load(block_starts_ptr + slot)
    stop = tl.load(block_stops_ptr + slot)
    step = tl.load(block_step_ptr + slot)
    nfe = tl.load(nfe_ptr + slot)
    strategy = tl.load(strategies_ptr + slot)
    positions = start + lanes
    inside = positions < stop

    probability = tl.load(probability_ptr + place, mask=is_open, other=0.0)
    finite = tl.min((probability < float("inf")).to(tl.int32), 0) != 0  # NaN is not less either
    if strategy == 0:
        score = probability
    elif strategy == 1:
        score = tl.load(margin_ptr + place, mask=is_open, other=0.0)
    elif strategy == 2:
        score = 1 - tl.load(entropy_ptr + place, mask=is_open, other=0.0) / log_vocabulary
    else:
        score = uniform(tl.load(seeds_ptr + slot), positions, nfe, RANDOM_STREAM)
    key = tl.where(score == score, score, float("inf"))  # as torch sorts: what is not a number comes first
    ahead = (key[None, :] > key[:, None]) | ((key[None, :] == key[:, None]) & (lanes[None, :] < lanes[:, None]))
    rank = tl.sum((ahead & is_open[None, :]).to(tl.int32), 1)

    steps = tl.load(steps_per_block_ptr + slot)
    if steps > 0:
        masks = tl.load(block_masks_ptr + slot)
        chosen = masks // steps + (step < masks % steps).to(tl.int32)
    else:
        bound = tl.load(bounds_ptr + slot * WIDTH + rank, mask=is_open, other=0.0)
        chosen = tl.min(tl.where(is_open & (score < bound), rank, BLOCK), 0)
        chosen = tl.maximum(tl.minimum(chosen, tl.min(tl.where(is_open & (score != score), rank, BLOCK), 0)), 1)
        chosen += ((tl.load(takes_last_ptr + slot) != 0) & (chosen == num_open - 1)).to(tl.int32)
    taken = is_open & (rank < tl.maximum(chosen, 1)) & finite

    at = slot * length + positions
    new = tl.load(token_ptr + place, mask=taken, other=-1)
    old = tl.load(tokens_ptr + at, mask=inside, other=-1)
    was_masked = tl.load(masked_ptr + at, mask=inside, other=1) != 0
    token = tl.where(taken, new, old)
    first_open = tl.min(tl.where(was_masked & (~taken), lanes, BLOCK), 0)
    is_stop = lanes < 0
    for index in range(num_stop_ids):
        is_stop = is_stop | (token == tl.load(stop_ids_ptr + slot * num_stop_ids + index))
    stops = tl.max((is_stop & inside & (lanes < first_open)).to(tl.int32), 0)

    tl.debug_barrier()  # every thread has read what is now changed
    tl.store(tokens_ptr + at, new, mask=taken)
    tl.store(masked_ptr + at, tl.zeros([BLOCK], tl.uint8), mask=taken)
    tl.store(block_step_ptr + slot, step + 1)
    tl.store(nfe_ptr + slot, tl.where(finite, nfe + 1, ~(nfe + 1)))
    if (stops > 0) | (finite == 0):
        tl.store(stopped_ptr + slot, tl.where(finite, STOPPED, NOT_FINITE))


def commit_triton(
    state: CanvasState, batch: AttentionBatch, masked: MaskedRows, confidence: Confidence, vocabulary: int
) -> None:
    """`commit`; reads nothing on the host. Only padding may repeat a slot of the batch."""
    for column in confidence:
        if not column.is_contiguous() or column.shape[0] < masked.rows.shape[0]:
            raise ValueError(f"confidence {tuple(column.shape)} must be contiguous, of {masked.rows.shape[0]} rows")
    _commit_kernel[(batch.num_requests,)](
        state.tokens, state.masked, state.block_starts, state.block_stops, state.block_masks, state.block_step,
        state.nfe, state.steps_per_block, state.bounds, state.takes_last, state.strategies, state.seeds, state.stop_ids,
        state.stopped,
        batch.slots, batch.key_lengths, masked.places, *confidence,
        state.tokens.shape[1], state.stop_ids.shape[1], math.log(vocabulary),
        WIDTH=state.width, BLOCK=triton.next_power_of_2(state.width), RANDOM_STREAM=RANDOM_STREAM,
        STOPPED=STOPPED, NOT_FINITE=NOT_FINITE, num_warps=4,
    )  # fmt: skip
