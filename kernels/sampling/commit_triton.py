"""Commits of a block step in Triton: one program a request, which ranks its masks by comparing all pairs.

Blocks of more than 128 positions compare them in tiles.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..attention.batch import AttentionBatch
from .canvas_state import NOT_FINITE, STOPPED, CanvasState
from .confidence import Confidence
from .cutoffs_triton import FIELDS, HAS_RULES
from .masked_rows import MaskedRows
from .philox import MASK_STREAM, RANDOM_STREAM
from .philox_triton import mask_gumbel, uniform
from .shaping import LEAST_TEMPERATURE

_TILED_FROM = 256
_TILE = 16


@triton.jit
def _ranked(
    place, is_open, positions, slot, nfe, strategies_ptr, seeds_ptr, mask_temperatures_ptr, last_ids_ptr,
    token_ptr, probability_ptr, margin_ptr, entropy_ptr, num_ids, log_vocabulary, RANDOM_STREAM: tl.constexpr,
):  # fmt: skip
    """What masks are ranked by, before any draw among them."""
    strategy = tl.load(strategies_ptr + slot)
    seed = tl.load(seeds_ptr + slot)
    temperature = tl.load(mask_temperatures_ptr + slot)
    if strategy == 0:
        score = tl.load(probability_ptr + place, mask=is_open, other=0.0)
    elif strategy == 1:
        score = tl.load(margin_ptr + place, mask=is_open, other=0.0)
    elif strategy == 2:
        entropy = tl.load(entropy_ptr + place, mask=is_open, other=0.0)
        score = tl.where(temperature > 0, -entropy, 1 - entropy / log_vocabulary)
    else:
        score = uniform(seed, positions, nfe, RANDOM_STREAM)
    if tl.load(last_ids_ptr + slot * num_ids) >= 0:
        token = tl.load(token_ptr + place, mask=is_open, other=-1)
        for index in range(num_ids):
            score = tl.where(token == tl.load(last_ids_ptr + slot * num_ids + index), -float("inf"), score)
    return score


@triton.jit
def _sortable(score):
    """As torch sorts: what is not a number comes first."""
    return tl.where(score == score, score, float("inf"))


@triton.jit
def _commit_kernel(
    tokens_ptr, masked_ptr, confidences_ptr, passes_ptr, block_starts_ptr, block_stops_ptr, block_step_ptr,
    nfe_ptr, quotas_ptr, origin_steps_ptr, origin_ends_ptr, bounds_ptr, takes_last_ptr, strategies_ptr,
    mask_temperatures_ptr, last_ids_ptr, seeds_ptr, stop_ids_ptr, stopped_ptr, shaping_ptr, counts_ptr,
    slots_ptr, key_lengths_ptr, places_ptr, token_ptr, probability_ptr, margin_ptr, entropy_ptr, keys_ptr,
    length, vocabulary, num_ids, log_vocabulary,
    PLACES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    RANDOM_STREAM: tl.constexpr, MASK_STREAM: tl.constexpr, LEAST_TEMPERATURE: tl.constexpr,
    STOPPED: tl.constexpr, NOT_FINITE: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    place = tl.load(places_ptr + request * PLACES + lanes, mask=lanes < PLACES, other=-1)
    is_open = place >= 0
    num_open = tl.sum(is_open.to(tl.int32), 0)
    if (num_open == 0) | (tl.load(key_lengths_ptr + request) == 0):
        return
    slot = tl.load(slots_ptr + request).to(tl.int64)
    start = tl.load(block_starts_ptr + slot)
    stop = tl.load(block_stops_ptr + slot)
    step = tl.load(block_step_ptr + slot)
    nfe = tl.load(nfe_ptr + slot)
    positions = start + lanes
    inside = positions < stop

    probability = tl.load(probability_ptr + place, mask=is_open, other=0.0)
    finite = tl.min((probability < float("inf")).to(tl.int32), 0) != 0  # NaN is not less either
    ranked = _ranked(
        place, is_open, positions, slot, nfe, strategies_ptr, seeds_ptr, mask_temperatures_ptr, last_ids_ptr,
        token_ptr, probability_ptr, margin_ptr, entropy_ptr, num_ids, log_vocabulary, RANDOM_STREAM,
    )  # fmt: skip
    score = ranked
    temperature = tl.load(mask_temperatures_ptr + slot)
    if temperature > 0:
        noise = mask_gumbel(tl.load(seeds_ptr + slot), positions, nfe, MASK_STREAM)
        score = ranked / tl.maximum(temperature, LEAST_TEMPERATURE) + noise
    key = _sortable(score)
    if TILE == BLOCK:
        ahead = (key[None, :] > key[:, None]) | ((key[None, :] == key[:, None]) & (lanes[None, :] < lanes[:, None]))
        rank = tl.sum((ahead & is_open[None, :]).to(tl.int32), 1)
    else:
        # Computed once and read back: twice computed, a mask's score might differ from itself in the last bit.
        tl.store(keys_ptr + request * BLOCK + lanes, key)
        tl.debug_barrier()
        rank = tl.zeros([BLOCK], tl.int32)
        for first in range(0, BLOCK, TILE):
            others = first + tl.arange(0, TILE)
            other_open = tl.load(places_ptr + request * PLACES + others, mask=others < PLACES, other=-1) >= 0
            other_key = tl.load(keys_ptr + request * BLOCK + others)
            equal = (other_key[None, :] == key[:, None]) & (others[None, :] < lanes[:, None])
            ahead = (other_key[None, :] > key[:, None]) | equal
            rank += tl.sum((ahead & other_open[None, :]).to(tl.int32), 1)

    if tl.load(quotas_ptr + slot * WIDTH) > 0:
        chosen = tl.load(quotas_ptr + slot * WIDTH + step, mask=step < WIDTH, other=1)
    else:
        bound = tl.load(bounds_ptr + slot * WIDTH + rank, mask=is_open, other=0.0)
        chosen = tl.min(tl.where(is_open & (score < bound), rank, BLOCK), 0)
        chosen = tl.maximum(tl.minimum(chosen, tl.min(tl.where(is_open & (score != score), rank, BLOCK), 0)), 1)
        chosen += ((tl.load(takes_last_ptr + slot) != 0) & (chosen == num_open - 1)).to(tl.int32)
    is_chosen = rank < tl.maximum(chosen, 1)
    steps = tl.load(origin_steps_ptr + slot)
    if steps > 0:
        now = tl.minimum(step, steps - 1)
        passed = (1 - tl.load(origin_ends_ptr + slot)) / steps
        share = 1 - (1 - (now + 1) * passed) / (1 - now * passed)
        share = tl.where(now == steps - 1, 1.0, share)
        is_chosen = uniform(tl.load(seeds_ptr + slot), positions, nfe, RANDOM_STREAM) < share
    taken = is_open & is_chosen & finite

    at = slot * length + positions
    new = tl.load(token_ptr + place, mask=taken, other=-1)
    old = tl.load(tokens_ptr + at, mask=inside, other=-1)
    was_masked = tl.load(masked_ptr + at, mask=inside, other=1) != 0
    token = tl.where(taken, new, old)
    first_open = tl.min(tl.where(was_masked & (~taken), lanes, BLOCK), 0)
    is_stop = lanes < 0
    for index in range(num_ids):
        is_stop = is_stop | (token == tl.load(stop_ids_ptr + slot * num_ids + index))
    stops = tl.max((is_stop & inside & (lanes < first_open)).to(tl.int32), 0)

    tl.debug_barrier()  # every thread has read what is now changed
    tl.store(tokens_ptr + at, new, mask=taken)
    tl.store(masked_ptr + at, tl.zeros([BLOCK], tl.uint8), mask=taken)
    tl.store(confidences_ptr + at, ranked, mask=taken)
    tl.store(passes_ptr + at, lanes * 0 + nfe + 1, mask=taken)
    if tl.load(shaping_ptr + slot * FIELDS + HAS_RULES) != 0:
        tl.atomic_add(counts_ptr + slot * vocabulary + new, 1, mask=taken & (new < vocabulary))
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
    places_of = masked.places
    places = places_of.shape[1]
    block = triton.next_power_of_2(places)
    tiled = block >= _TILED_FROM
    keys = torch.empty((batch.num_requests, block), dtype=torch.float32, device=places_of.device) if tiled else None
    _commit_kernel[(batch.num_requests,)](
        state.tokens, state.masked, state.confidences, state.passes, state.block_starts, state.block_stops,
        state.block_step, state.nfe, state.quotas, state.origin_steps, state.origin_ends, state.bounds,
        state.takes_last, state.strategies, state.mask_temperatures, state.last_ids, state.seeds, state.stop_ids,
        state.stopped, state.shaping, state.counts,
        batch.slots, batch.key_lengths, places_of, *confidence, keys,
        state.tokens.shape[1], state.counts.shape[1], state.stop_ids.shape[1], math.log(vocabulary),
        PLACES=places, WIDTH=state.width, BLOCK=block, TILE=_TILE if tiled else block,
        RANDOM_STREAM=RANDOM_STREAM, MASK_STREAM=MASK_STREAM, LEAST_TEMPERATURE=LEAST_TEMPERATURE,
        STOPPED=STOPPED, NOT_FINITE=NOT_FINITE, num_warps=16 if tiled else 4,
    )  # fmt: skip
