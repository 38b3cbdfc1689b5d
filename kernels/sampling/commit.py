"""Which masks of each block become tokens after a block step (torch reference).

The rules: with a quota, masks are spread evenly over the steps of a block, early steps first, at least one a step;
else the most confident masks as long as the n-th reaches its bound, at least one; with `takes_last` also the only mask
that would be left. Ties go to the earlier position.
"""

from __future__ import annotations

import math

import torch

from ..attention.batch import AttentionBatch
from ..dispatch import kernel
from .canvas_state import NOT_FINITE, STOPPED, CanvasState
from .confidence import Confidence
from .masked_rows import MaskedRows
from .philox import RANDOM_STREAM, uniform_reference


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
        scores = _scores(state, slot, positions, Confidence(*(column[at] for column in confidence)), vocabulary)
        order = torch.sort(scores, descending=True, stable=True).indices
        steps, step = int(state.steps_per_block[slot]), int(state.block_step[slot])
        if steps:
            base, extra = divmod(int(state.block_masks[slot]), steps)
            chosen = max(1, base + (step < extra))
        else:
            passes = scores[order] >= state.bounds[slot, : len(order)]
            chosen = max(1, int(passes.long().cumprod(0).sum()))
            if int(state.takes_last[slot]) and chosen == len(order) - 1:
                chosen += 1
        taken = order[:chosen]
        state.tokens[slot, positions[taken]] = confidence.token[at[taken]]
        state.masked[slot, positions[taken]] = 0
        state.block_step[slot] += 1
        state.nfe[slot] += 1
        block = slice(int(state.block_starts[slot]), int(state.block_stops[slot]))
        contiguous = state.masked[slot, block].eq(0).long().cumprod(0).bool()
        stops = torch.isin(state.tokens[slot, block][contiguous], state.stop_ids[slot].long())
        state.stopped[slot] |= STOPPED * int(stops.any())


def _scores(
    state: CanvasState, slot: int, positions: torch.Tensor, confidence: Confidence, vocabulary: int
) -> torch.Tensor:
    strategy = int(state.strategies[slot])
    if strategy == 0:
        return confidence.probability
    if strategy == 1:
        return confidence.margin
    if strategy == 2:
        return 1 - confidence.entropy / math.log(vocabulary)
    return uniform_reference(int(state.seeds[slot]), positions, int(state.nfe[slot]), RANDOM_STREAM)
