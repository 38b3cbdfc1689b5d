"""What a request makes of logits before it draws: penalties, biases and bans, then cuts (torch reference).

Penalties: repetition, arXiv 1909.05858, over prompt and canvas; presence and frequency, OpenAI's API, over the canvas.
Cuts: top_k, top_p and min_p each name the least logit that stays, so the largest of these decides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..dispatch import kernel

if TYPE_CHECKING:
    from .canvas_state import CanvasState
    from .masked_rows import MaskedRows

IN_PROMPT, ENDS_TEXT = 1 << 30, 1 << 29
"""Flags in `CanvasState.counts`: the prompt holds the token; it ends this request's text."""
LEAST_TEMPERATURE = 1e-30
"""Below, logits over the temperature overflow; there the best token has all the probability anyway."""


class Shaping(NamedTuple):
    """A row of `CanvasState.shaping`; the defaults change nothing.

    temperature: what cuts divide logits by.
    top_k: so many largest logits stay, ties of the last included; 0: all.
    top_p: tokens stay whose more probable ones together have at most this probability; 1: all.
    log_min_p: tokens stay that are at least exp(this) times as probable as the best; -inf: all.
    ranks_sampled: 1: confidence is of the logits over the temperature and cut; 0: of the logits as rules leave them.
    has_rules: 1: the fields below, `CanvasState.counts` and `biases` apply.
    repetition: logits of tokens in prompt or canvas are divided by it if positive, else multiplied.
    presence, frequency: subtracted from logits of tokens in the canvas, once or for each time.
    no_end_before: tokens that end the text are impossible at positions of the sequence below this.
    """

    temperature: float = 1.0
    top_k: float = 0.0
    top_p: float = 1.0
    log_min_p: float = -math.inf
    ranks_sampled: float = 0.0
    has_rules: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    no_end_before: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether any token is left out."""
        return self.top_k > 0 or self.top_p < 1 or self.log_min_p > -math.inf


class Cutoffs(NamedTuple):
    """Of each row, fp32 [rows]: the least logit that stays, -inf if all do; and the largest logit."""

    least: Tensor
    largest: Tensor


def shaping_of(state: CanvasState, slot: int) -> Shaping:
    """A slot's row."""
    return Shaping(*state.shaping[slot].tolist())


def ruled_reference(logits: Tensor, state: CanvasState, slot: int, position: int) -> Tensor:
    """Logits fp32 [vocab] of a position of a slot by its rules."""
    shaping = shaping_of(state, slot)
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


@kernel("shaping_triton.cutoffs_triton")
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
        x = logits[row].float()
        if impossible_token is not None:
            x = x.clone()
            x[impossible_token] = -torch.inf
        x = ruled_reference(x, state, slot, int(masked.positions[row]))
        largest[row] = x.max()
        least[row] = _cutoff(x, shaping_of(state, slot))
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
