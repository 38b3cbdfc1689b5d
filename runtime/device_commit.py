"""Which masks of many blocks are committed, in tensor operations that a CUDA graph can replay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels.confidence import Confidence
from .block_arrays import BlockArrays
from .canvas_slots import CanvasSlots


def block_places(canvases: CanvasSlots, slots: Tensor, blocks: BlockArrays, width: int) -> Tensor:
    """int64 [requests, width]: each block position's place in the flat canvases; past a block's end, of padding."""
    offsets = torch.arange(width, dtype=torch.int64, device=slots.device)[None]
    real = slots[:, None].to(torch.int64) * canvases.max_tokens + blocks.first[:, None] + offsets
    padding = canvases.padding * canvases.max_tokens + offsets
    return torch.where(offsets < blocks.size[:, None], real, padding)


def masked_rows(masked: Tensor, starts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Rows of the masked block positions, one after another.

    Args:
        masked: bool [requests, width].
        starts: int32 [requests + 1], the row of each request's first block position.
        capacity: at least as many as are masked.

    Returns int64 [capacity] twice: rows, and places in the flattened `masked`; 0 and -1 where there are no more.
    """
    requests, width = masked.shape
    flat = masked.view(-1)
    at = torch.where(flat, torch.cumsum(flat, 0) - 1, capacity)
    rows = starts[:-1, None].to(torch.int64) + torch.arange(width, device=starts.device)[None]
    row = torch.zeros(capacity + 1, dtype=torch.int64, device=flat.device).scatter_(0, at, rows.view(-1))
    places = torch.arange(requests * width, device=flat.device)
    place = torch.full((capacity + 1,), -1, dtype=torch.int64, device=flat.device).scatter_(0, at, places)
    return row[:capacity], place[:capacity]


def commit(
    best: Confidence, place: Tensor, masked: Tensor, canvases: CanvasSlots, at: Tensor, blocks: BlockArrays, vocab: int
) -> None:
    """Commit in every block what `choose_commits` would choose; counts `blocks.step` up where masks were open.

    Args:
        best: of the rows that `masked_rows` named; place: where they are in masked, bool [requests, width].
        at: of `block_places`.
        vocab: number of tokens, for the entropy's scale.
    """
    requests, width = masked.shape
    to = torch.where(place >= 0, place, requests * width)
    strategy = blocks.strategy.index_select(0, torch.clamp(to // width, max=requests - 1))
    certain = 1 - best.entropy / math.log(vocab)
    value = torch.where(strategy == 0, best.probability, torch.where(strategy == 1, best.margin, certain))
    confidence = value.new_full((requests * width + 1,), -torch.inf).scatter_(0, to, value)[:-1].view(requests, width)
    token = best.token.new_zeros(requests * width + 1).scatter_(0, to, best.token)[:-1].view(requests, width)
    confidence = torch.where(masked, confidence, -torch.inf)
    ranked, order = torch.sort(confidence, dim=1, descending=True, stable=True)
    number = torch.arange(1, width + 1, device=masked.device)[None]
    rank = torch.empty_like(order).scatter_(1, order, (number - 1).expand(requests, width).contiguous())
    open_masks = masked.sum(1)
    steps = blocks.steps.clamp(min=1)
    share = blocks.masks // steps
    quota = share + (blocks.step < blocks.masks - share * steps)
    above = (confidence >= blocks.threshold[:, None]).sum(1)
    passes = (ranked >= 1 - blocks.factor[:, None] / (number + 1)) & (number <= open_masks[:, None])
    by_factor = passes.long().cumprod(1).sum(1)
    count = torch.where(blocks.steps > 0, quota, torch.where(blocks.factor > 0, by_factor, above)).clamp(min=1)
    chosen = ((rank < count[:, None]) & masked).view(-1)
    flat, tokens, flags = at.view(-1), canvases.tokens.view(-1), canvases.masked.view(-1)
    tokens.index_copy_(0, flat, torch.where(chosen, token.view(-1), tokens.index_select(0, flat)))
    flags.index_copy_(0, flat, torch.where(chosen, 0, flags.index_select(0, flat)))
    blocks.step.add_(open_masks > 0)
