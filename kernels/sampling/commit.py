"""Which masks of each block become tokens after a block step (torch reference).

The rules: with a quota, as many of the most confident masks as it says for the step, at least one; else the most
confident masks as long as the n-th reaches its bound, at least one; with `takes_last` also the only mask that would be
left. Ties go to the earlier position. The strategy `origin` commits each mask by chance, perhaps none.
"""

from __future__ import annotations

import math

import torch

from ..attention.batch import AttentionBatch
from ..dispatch import kernel
from .canvas_state import NOT_FINITE, STOPPED, CanvasState
from .confidence import Confidence
from .masked_rows import MaskedRows
from .philox import RANDOM_STREAM, mask_gumbel_reference, uniform_reference
from .shaping import LEAST_TEMPERATURE


@kernel("commit_triton.commit_triton")
def commit(
    state: CanvasState, batch: AttentionBatch, masked: MaskedRows, confidence: Confidence, vocabulary: int
) -> None:
    """Commit masks of every request of the batch that has any, and count the step for it; changes `state`.

    A request that is padding, has stopped or has no masks in its block is left as it is. One with a mask whose
    probability is not finite commits nothing, then or later: stopped becomes NOT_FINITE and nfe ~(its steps), this one
    included, so that who reads nfe sees it.

    Args:
        masked: where the masks of the blocks stand in `confidence`; a mask that is not there stays one.
        confidence: of at least the rows that `masked` counts.
        vocabulary: tokens there are, for the strategy `entropy`.
    """
    for number, slot in enumerate(batch.slots.tolist()):
        open_ = torch.nonzero(masked.places[number] >= 0)[:, 0]
        if not len(open_) or int(batch.key_lengths[number]) == 0:
            continue
        at = masked.places[number, open_].long()
        if not confidence.probability[at].isfinite().all():
            state.block_step[slot] += 1
            state.nfe[slot] = ~(state.nfe[slot] + 1)
            state.stopped[slot] = NOT_FINITE
            continue
        positions = int(state.block_starts[slot]) + open_
        ranked = _ranked(state, slot, positions, Confidence(*(column[at] for column in confidence)), vocabulary)
        taken = _taken(state, slot, positions, _drawn(state, slot, positions, ranked))
        state.tokens[slot, positions[taken]] = confidence.token[at[taken]]
        state.masked[slot, positions[taken]] = 0
        state.confidences[slot, positions[taken]] = ranked[taken]
        state.passes[slot, positions[taken]] = state.nfe[slot] + 1
        if state.shaping_of(slot).has_rules:
            new = confidence.token[at[taken]]
            new = new[new < state.counts.shape[1]]
            state.counts[slot].index_add_(0, new, torch.ones_like(new, dtype=torch.int32))
        state.block_step[slot] += 1
        state.nfe[slot] += 1
        block = slice(int(state.block_starts[slot]), int(state.block_stops[slot]))
        contiguous = state.masked[slot, block].eq(0).long().cumprod(0).bool()
        stops = torch.isin(state.tokens[slot, block][contiguous], state.stop_ids[slot].long())
        state.stopped[slot] |= STOPPED * int(stops.any())


def origin_share(step: int, steps: int, end: float) -> float:
    """Probability 1 - s / t with which step `step` of `steps` commits a mask; times go evenly from 1 to `end`."""
    step = min(step, steps - 1)
    if step == steps - 1:
        return 1.0
    passed = (1 - end) / steps
    return 1 - (1 - (step + 1) * passed) / (1 - step * passed)


def _taken(state: CanvasState, slot: int, positions: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Which of the masks at `positions` are committed, as indices."""
    step, steps = int(state.block_step[slot]), int(state.origin_steps[slot])
    if steps:
        share = origin_share(step, steps, float(state.origin_ends[slot]))
        chance = uniform_reference(int(state.seeds[slot]), positions, int(state.nfe[slot]), RANDOM_STREAM)
        return torch.nonzero(chance < share)[:, 0]
    order = torch.sort(scores, descending=True, stable=True).indices
    if int(state.quotas[slot, 0]):
        chosen = max(1, int(state.quotas[slot, step]) if step < state.width else 0)
    else:
        passes = scores[order] >= state.bounds[slot, : len(order)]
        chosen = max(1, int(passes.long().cumprod(0).sum()))
        if int(state.takes_last[slot]) and chosen == len(order) - 1:
            chosen += 1
    return order[:chosen]


def _ranked(
    state: CanvasState, slot: int, positions: torch.Tensor, confidence: Confidence, vocabulary: int
) -> torch.Tensor:
    """What masks are ranked by, before any draw among them."""
    strategy, temperature = int(state.strategies[slot]), float(state.mask_temperatures[slot])
    seed, step = int(state.seeds[slot]), int(state.nfe[slot])
    if strategy == 0:
        scores = confidence.probability
    elif strategy == 1:
        scores = confidence.margin
    elif strategy == 2:
        scores = -confidence.entropy if temperature else 1 - confidence.entropy / math.log(vocabulary)
    else:
        scores = uniform_reference(seed, positions, step, RANDOM_STREAM)
    return scores.masked_fill(torch.isin(confidence.token, state.last_ids[slot].long()), -torch.inf)


def _drawn(state: CanvasState, slot: int, positions: torch.Tensor, ranked: torch.Tensor) -> torch.Tensor:
    """The same with the noise that draws among masks."""
    temperature = float(state.mask_temperatures[slot])
    if not temperature:
        return ranked
    noise = mask_gumbel_reference(int(state.seeds[slot]), positions, int(state.nfe[slot]))
    return ranked / max(temperature, LEAST_TEMPERATURE) + noise
