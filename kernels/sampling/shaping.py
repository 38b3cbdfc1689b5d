"""What a request makes of logits before it draws: penalties, biases and bans, then cuts. The fields' meaning.

Penalties: repetition, arXiv 1909.05858, over prompt and canvas; presence and frequency, OpenAI's API, over the canvas.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
