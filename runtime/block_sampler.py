"""Logits of masked positions, and which of them are committed, without a look at the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels import dispatch as kernels
from .block_arrays import BlockArrays
from .canvas_slots import CanvasSlots
from .device_commit import block_places, commit, masked_rows
from .fused_layers import FusedLayers
from .host_canvas import HostCanvas
from .sampler import choose_commits, choose_tokens, quota


class BlockSampler:
    """Samples blocks whose last hidden states are there.

    Args:
        layers: for the head.
        slots: tokens and masks, read and written.
    """

    def __init__(self, layers: FusedLayers, slots: CanvasSlots):
        self._layers = layers
        self._slots = slots

    def sample(self, hidden: Tensor, starts: Tensor, slots: Tensor, blocks: BlockArrays, rows: int, width: int) -> None:
        """Commit masks of every request's block, by quota, threshold or factor.

        Args:
            hidden: [rows, hidden]; row starts[r] + j says what stands in position first[r] + j of request r.
            starts: int32 [requests + 1]; slots: int32 [requests].
            rows: no more masks than these are open in all blocks together.
            width: no block has more positions.
        """
        at = block_places(self._slots, slots, blocks, width)
        masked = self._slots.masked.view(-1).index_select(0, at.view(-1)).view(-1, width) > 0
        masked &= torch.arange(width, device=at.device)[None] < blocks.size[:, None]
        row, place = masked_rows(masked, starts, rows)
        logits = self._layers.logits(hidden.index_select(0, row))
        commit(kernels.confidence(logits), place, masked, self._slots, at, blocks, logits.shape[1])

    def sample_on_host(self, hidden: Tensor, canvases: Sequence[HostCanvas], starts: Sequence[int]) -> None:
        """Commit for requests that need draws: their logits one after the other, as on a CPU.

        hidden: row starts[i] + j says what stands in position j of the block of canvases[i].
        """
        for canvas, start in zip(canvases, starts, strict=True):
            positions = canvas.open_positions(*canvas.block)
            if not len(positions):
                continue
            rows = torch.from_numpy(positions - canvas.block[0] + start).to(hidden.device)
            token, confidence = choose_tokens(
                self._layers.logits(hidden.index_select(0, rows)), canvas.sampling, canvas.generator
            )
            count = None
            if canvas.steps_per_block is not None:
                count = quota(canvas.block_masks, canvas.steps_per_block, canvas.block_step)
            chosen = choose_commits(confidence, canvas.sampling, count)
            at = torch.from_numpy(positions).to(hidden.device)[chosen]
            self._slots.tokens[canvas.slot, at] = token[chosen]
            self._slots.masked[canvas.slot, at] = 0

    def scores(self, hidden: Tensor, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> list[float]:
        """Natural log-probabilities of tokens [n] by the logits of `rows` [n] of hidden."""
        at, token = (torch.from_numpy(x.copy()).to(hidden.device) for x in (rows, tokens))
        logits = self._layers.logits(hidden.index_select(0, at)).float()
        return logits.log_softmax(-1).gather(1, token[:, None])[:, 0].tolist()

    def read(self, slots: Tensor, first: Tensor, width: int) -> Tensor:
        """Tokens [requests, width] from position first[r] on as they are now, -1 for masks."""
        at = first[:, None] + torch.arange(width, device=first.device, dtype=torch.int32)[None]
        flat = (
            slots[:, None].to(torch.int64) * self._slots.max_tokens + at.clamp(max=self._slots.max_tokens - 1)
        ).view(-1)
        tokens = self._slots.tokens.view(-1).index_select(0, flat)
        masked = self._slots.masked.view(-1).index_select(0, flat)
        return torch.where(masked.bool(), -1, tokens).view(-1, width)


def padded(values: Sequence[int], length: int, fill: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """int32 [length]: values, then `fill`."""
    out = np.full(length, fill, np.int32)
    out[: len(values)] = values
    return out
