"""Which positions of a row are masked, and how much each counts in the loss.

Half the rows of plain text are masked anywhere, half in a suffix alone: what serving does to a canvas. A canvas is
masked wholly, at a rate, or as block decoding sees it: done, in part, not yet begun.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
_LEAST_RATE = 0.02


def rate_weight(rate: float) -> float:
    """Weight of a masked token at a rate. The bound on the NLL weighs by 1 / rate, which is noisy: half way there."""
    return float(np.clip((0.5 / max(rate, _LEAST_RATE)) ** 0.5, 0.7, 2.0))


def canvas_mask(random: np.random.Generator, length: int) -> tuple[np.ndarray, float]:
    """Mask [length] of a canvas, and its weight: all of it half of the time, else at a rate or by blocks."""
    kind = random.random()
    if kind < 0.5 or length < 2:
        return np.ones(length, bool), 1.0
    rate = max(_LEAST_RATE, random.random())
    if kind < 0.75:
        mask = random.random(length) < rate
        mask[random.integers(length)] = True
        return mask, rate_weight(rate)
    return _blocks(random, np.zeros(length, bool), int(random.integers(length)), rate), 1.0


def text_mask(random: np.random.Generator, length: int, rate: float) -> tuple[np.ndarray, float]:
    """Mask [length] of a row of plain text, and its weight. `rate` in (0, 1], stratified over a batch by the caller.

    The first token is never masked: no hidden state speaks of it.
    """
    rate = max(_LEAST_RATE, rate)
    mask = np.zeros(length, bool)
    weight = rate_weight(rate)
    if random.random() < 0.5:
        mask = random.random(length) < rate
    else:
        kind = random.random()
        if kind < 0.4:
            start = int((0.1 + 0.87 * random.random()) * length)
            mask[start:] = random.random(length - start) < rate
        else:
            size = int(16 * 16 ** random.random() * length / 1024)
            start = length - max(1, size)
            if kind < 0.7:
                mask[start:] = True
            else:
                _blocks(random, mask, int(random.integers(start, length)), rate)
            weight = 1.0
    mask[0] = False
    return mask, weight


def _blocks(random: np.random.Generator, mask: np.ndarray, start: int, rate: float) -> np.ndarray:
    """Everything behind the block that begins at `start`, and that block at a rate."""
    mask[start + BLOCK :] = True
    block = mask[start : start + BLOCK]
    block[:] = random.random(len(block)) < rate
    block[random.integers(len(block))] = True
    return mask
