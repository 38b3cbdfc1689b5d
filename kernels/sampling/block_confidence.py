"""Confidence of a block step's masked rows, with the draws of requests that have a temperature (torch reference)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import kernel
from .canvas_state import CanvasState
from .confidence import Confidence, confidence
from .cutoffs import Cutoffs, ruled_reference
from .masked_rows import MaskedRows
from .philox import gumbel_reference


@kernel("confidence_triton.block_confidence_triton")
def block_confidence(
    logits: Tensor, state: CanvasState, masked: MaskedRows, *, impossible_token: int | None = None, draw: bool = True,
    cut: Cutoffs | None = None,
) -> Confidence:  # fmt: skip
    """Token and confidence of every masked row.

    A request with a temperature T gets the argmax of logits + T * Gumbel noise, that is, a draw from
    softmax(logits / T); its probability, and margin and entropy, are what the undisturbed logits say. The noise depends
    on the request's seed, the position and how many commits the request has had (`gumbel_reference`): not on the rest
    of the batch.

    With `cut` each request's rules change its logits first, and only tokens at or above the cut-off are drawn. If it
    ranks by what is sampled, probability, margin and entropy are those of the logits over the temperature and cut.

    Args:
        logits: [capacity, vocab] of any float dtype, a row for each of masked.rows.
        impossible_token: never the token, whatever its logit.
        draw: whether temperatures are looked at; without, all tokens are the most probable ones.
        cut: of the same rows, by `cutoffs`; None: no request has anything in `CanvasState.shaping`.

    Returns [capacity] each; what stands from masked.total on is undefined.
    """
    logits = logits.float()
    if impossible_token is not None:
        logits = logits.clone()
        logits[:, impossible_token] = -torch.inf
    rows = min(int(masked.total), len(masked.rows))
    left = logits = logits.clone()
    if cut is not None:
        left = logits.clone()
        for row in range(rows):
            slot = int(masked.slots[row])
            x = ruled_reference(logits[row], state, slot, int(masked.positions[row]))
            left[row] = x.masked_fill(x < cut.least[row], -torch.inf)
            shaping = state.shaping_of(slot)
            logits[row] = (left[row] - cut.largest[row]) / shaping.temperature if shaping.ranks_sampled else x
    best = confidence.reference(logits)
    token, probability = best.token.clone(), best.probability.clone()
    for row in range(rows if draw else 0):
        slot = int(masked.slots[row])
        temperature = float(state.temperatures[slot])
        if temperature > 0:
            noise = gumbel_reference(
                int(state.seeds[slot]), logits.shape[1], int(masked.positions[row]), int(state.nfe[slot])
            )
            token[row] = (left[row] + temperature * noise.to(logits.device)).argmax()
            probability[row] = logits[row].log_softmax(-1)[token[row]].exp()
    return Confidence(token, probability, best.margin, best.entropy)
