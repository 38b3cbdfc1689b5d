"""Canvases, masks and decoding parameters of running requests, on the device."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .shaping import Shaping

STOPPED, NOT_FINITE = 1, 2
"""Values of `CanvasState.stopped`."""


@dataclass(frozen=True, slots=True)
class CanvasState:
    """State of every slot; the block-step kernels read and change it in place. All tensors contiguous.

    Attributes:
        tokens: int64 [slots, length], prompt and canvas.
        masked: uint8 [slots, length], 1 where a canvas position is still a mask.
        confidences: fp32 [slots, length], of a committed mask: what it was ranked by, before any draw among masks.
        passes: int32 [slots, length], of a committed mask: the commit that it was part of, counted as nfe is, from 1.
        block_starts, block_stops: int32 [slots], current block [start, stop) in positions of the whole sequence.
        block_step: int32 [slots], commits made in the block so far.
        nfe: int32 [slots], commits made in all; ~nfe once logits were not finite.
        quotas: int32 [slots, width], masks that each forward of the current block commits, one behind them; all 0
            without a quota. width is the longest block.
        origin_steps, origin_ends: int32 and fp32 [slots], for the strategy `origin` forwards of the current block (0
            for all others) and the last time of its schedule: see `origin_share`.
        bounds: fp32 [slots, width], without a quota: the n most confident masks are committed as long as the n-th has
            confidence >= bounds[n - 1]; see `acceptance_bounds`.
        takes_last: int32 [slots], 1 with `factor`: where all masks of the block but one are committed, that one is too.
        strategies: int32 [slots], what confidence is, as index into STRATEGIES.
        mask_temperatures: fp32 [slots], above 0: with a quota, masks are drawn without replacement from
            softmax(confidence / temperature), of the strategy `entropy` its negative in nats.
        last_ids: int32 [slots, ids], tokens whose masks are committed last; unused entries -1.
        temperatures: fp32 [slots], 0 takes the most probable token.
        seeds: int64 [slots], of the draws.
        stop_ids: int32 [slots, ids], tokens that end the text; unused entries -1.
        stopped: uint8 [slots], STOPPED once such a token stands before the first mask of the block; NOT_FINITE once a
            mask's probability was no number (its logits hold NaN or +inf, or -inf alone): nothing is committed then.
        shaping: fp32 [slots, len(SHAPING)], what changes the distribution that a request draws from: see `shaping.py`.
        counts: int32 [slots, vocabulary], of a slot whose shaping has rules: how often its canvas holds each token,
            plus IN_PROMPT and ENDS_TEXT.
        biases: fp32 [slots, vocabulary], of such a slot: added to its logits.
    """

    tokens: Tensor
    masked: Tensor
    confidences: Tensor
    passes: Tensor
    block_starts: Tensor
    block_stops: Tensor
    block_step: Tensor
    nfe: Tensor
    quotas: Tensor
    origin_steps: Tensor
    origin_ends: Tensor
    bounds: Tensor
    takes_last: Tensor
    strategies: Tensor
    mask_temperatures: Tensor
    last_ids: Tensor
    temperatures: Tensor
    seeds: Tensor
    stop_ids: Tensor
    stopped: Tensor
    shaping: Tensor
    counts: Tensor
    biases: Tensor

    @staticmethod
    def empty(
        slots: int, length: int, width: int, ids: int, device: torch.device | str, vocabulary: int = 1
    ) -> CanvasState:
        """No masks, no blocks, plain distributions; `vocabulary` is that of the logits of slots that have rules."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return CanvasState(
            tokens=zeros(slots, length, dtype=torch.int64),
            masked=zeros(slots, length, dtype=torch.uint8),
            confidences=zeros(slots, length, dtype=torch.float32),
            passes=zeros(slots, length),
            block_starts=zeros(slots),
            block_stops=zeros(slots),
            block_step=zeros(slots),
            nfe=zeros(slots),
            quotas=zeros(slots, width),
            origin_steps=zeros(slots),
            origin_ends=zeros(slots, dtype=torch.float32),
            bounds=zeros(slots, width, dtype=torch.float32),
            takes_last=zeros(slots),
            strategies=zeros(slots),
            mask_temperatures=zeros(slots, dtype=torch.float32),
            last_ids=zeros(slots, ids) - 1,
            temperatures=zeros(slots, dtype=torch.float32),
            seeds=zeros(slots, dtype=torch.int64),
            stop_ids=zeros(slots, ids) - 1,
            stopped=zeros(slots, dtype=torch.uint8),
            shaping=torch.tensor(Shaping(), dtype=torch.float32, device=device).repeat(slots, 1),
            counts=zeros(slots, vocabulary),
            biases=zeros(slots, vocabulary, dtype=torch.float32),
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tokens.device

    @property
    def width(self) -> int:
        """Longest block that fits."""
        return self.bounds.shape[1]

    def shaping_of(self, slot: int) -> Shaping:
        """A slot's row of `shaping`."""
        return Shaping(*self.shaping[slot].tolist())

    def clone(self) -> CanvasState:
        """A copy of every tensor."""
        return CanvasState(**{field.name: getattr(self, field.name).clone() for field in fields(self)})


def acceptance_bounds(threshold: float | None, factor: float | None, width: int) -> Tensor:
    """fp32 [width]: what confidence the n-th most confident mask needs, n from 1 on.

    With `factor` 1 - factor / (n + 1), else the threshold for all; one of them is given.
    """
    if factor is not None and threshold is None:
        return 1 - factor / (torch.arange(1, width + 1) + 1)
    if threshold is not None and factor is None:
        return torch.full((width,), threshold, dtype=torch.float32)
    raise ValueError(f"threshold {threshold}, factor {factor}: one of them must be given")
