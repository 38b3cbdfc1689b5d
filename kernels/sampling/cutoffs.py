"""Rules on logits, and where the cuts of what they leave end (torch reference).

top_k, top_p and min_p each name the least logit that stays, so the largest of these decides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import kernel
from .canvas_state import CanvasState
from .masked_rows import MaskedRows
from .shaping import ENDS_TEXT, IN_PROMPT, Shaping


class Cutoffs(NamedTuple):
    """The least logit of each row that stays, -inf if all do, and the row's largest logit; both fp32 [rows].

    The largest is 0 in rows of requests that neither cut nor rank by the sampled distribution: nothing reads it there.
    """

    least: Tensor
    largest: Tensor


def ruled_reference(logits: Tensor, state: CanvasState, slot: int, position: int) -> Tensor:
    """Logits fp32 [vocab] of a position of a slot by its rules."""
    shaping = state.shaping_of(slot)
    if not shaping.has_rules:
        return logits
    flags, bias = state.counts[slot], state.biases[slot]
    count = flags & (ENDS_TEXT - 1)
    seen = (count > 0) | (flags & IN_PROMPT > 0)
    penalised = torch.where(logits > 0, logits / shaping.repetition, logits * shaping.repetition)
    logits = torch.where(seen, penalised, logits)
    logits = logits - (shaping.frequency * count + shaping.presence * (count > 0)) + bias
    early = position < shaping.no_end_before
    return logits.masked_fill((flags & ENDS_TEXT > 0) & early, -torch.inf)


@kernel("cutoffs_triton.cutoffs_triton")
def cutoffs(logits: Tensor, state: CanvasState, masked: MaskedRows, *, impossible_token: int | None = None) -> Cutoffs:
    """Where the cuts of each masked row's request end, after its rules.

    Args:
        logits: [capacity, vocab] of any float dtype, a row for each of masked.rows.
        impossible_token: counts as -inf, whatever its logit.

    What stands from masked.total on is undefined.
    """
    least = torch.full((logits.shape[0],), -torch.inf, device=logits.device)
    largest = least.clone()
    for row in range(min(int(masked.total), len(masked.rows))):
        slot = int(masked.slots[row])
        shaping = state.shaping_of(slot)
        if not (shaping.cuts or shaping.ranks_sampled):
            largest[row] = 0
            continue
        x = logits[row].float()
        if impossible_token is not None:
            x = x.clone()
            x[impossible_token] = -torch.inf
        x = ruled_reference(x, state, slot, int(masked.positions[row]))
        largest[row] = x.max()
        least[row] = _cutoff(x, shaping)
    return Cutoffs(least, largest)


def _cutoff(logits: Tensor, shaping: Shaping) -> float:
    if not shaping.cuts or logits.isnan().any():
        return -math.inf
    ordered = logits.sort(descending=True).values
    least = float(ordered[0]) + shaping.temperature * shaping.log_min_p
    if 0 < shaping.top_k < len(ordered):
        least = max(least, float(ordered[int(shaping.top_k) - 1]))
    if shaping.top_p < 1:
        p = ((ordered - ordered[0]) / shaping.temperature).softmax(-1)
        past = p.cumsum(-1) > shaping.top_p
        if past.any():  # the token that passes top_p is the last one to stay, with its equals
            least = max(least, float(ordered[int(past.int().argmax())]))
    return least
