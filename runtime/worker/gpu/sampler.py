"""Logits of masked positions, and which of them are committed, without a look at the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....kernels.attention.batch import AttentionBatch
from ....kernels.sampling.block_confidence import block_confidence
from ....kernels.sampling.commit import commit
from ....kernels.sampling.confidence import Confidence
from ....kernels.sampling.cutoffs import cutoffs
from ....kernels.sampling.masked_rows import MaskedRows, masked_rows
from .layers import FusedLayers
from .slots import CanvasSlots

MOST_HEAD_ROWS = 2048
"""Masks whose logits are in memory at a time."""
_USUAL_WIDTH = 128
"""Positions of the blocks that one kernel serves, however short they are."""


class BlockSampler:
    """Samples blocks whose last hidden states are there.

    Args:
        layers: for the head.
        slots: tokens, masks and parameters, read and changed.
    """

    def __init__(self, layers: FusedLayers, slots: CanvasSlots):
        self._layers = layers
        self._slots = slots
        config = layers.decoder.config
        self._mask, self._shift = config.mask_token_id, int(config.shift_logits)

    def sample(
        self, hidden: Tensor, batch: AttentionBatch, first: Tensor, rows: int, block: int, draw: bool,
        shapes: bool = False,
    ) -> None:  # fmt: skip
        """Commit masks of every request's current block, by quota, threshold or factor.

        Args:
            hidden: [rows, hidden], laid out by batch.query_starts.
            first: int32 [requests], position of each request's first row.
            rows: the head's rows; no more masks than these are open in all blocks together.
            block: positions of the longest of these blocks.
            draw: whether any request has a temperature.
            shapes: whether any has `SamplingParams.shapes`.
        """
        state = self._slots.state
        width = min(state.width, max(_USUAL_WIDTH, 1 << (block - 1).bit_length()))  # each is a kernel of its own
        masked = masked_rows(state, batch, first, rows, self._shift, width)
        parts = [self._confidence(hidden, part, draw, shapes) for part in _parts(masked)]
        best = parts[0] if len(parts) == 1 else Confidence(*map(torch.cat, zip(*parts, strict=True)))
        commit(state, batch, masked, best, self._layers.decoder.config.vocab_size)

    def _confidence(self, hidden: Tensor, masked: MaskedRows, draw: bool, shapes: bool) -> Confidence:
        """Of tokens at the masked rows; their logits are freed at the end."""
        state = self._slots.state
        logits = self._layers.logits(hidden.index_select(0, masked.rows))
        cut = cutoffs(logits, state, masked, impossible_token=self._mask) if shapes else None
        return block_confidence(logits, state, masked, impossible_token=self._mask, draw=draw or shapes, cut=cut)

    def scores(self, hidden: Tensor, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> list[float]:
        """Natural log-probabilities of tokens [n] by the logits of `rows` [n] of hidden; the mask is impossible."""
        token = torch.from_numpy(tokens.copy()).to(hidden.device)
        return self.logits(hidden, rows).log_softmax(-1).gather(1, token[:, None])[:, 0].tolist()

    def logits(self, hidden: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """fp32 logits [n, vocab] of `rows` [n] of hidden; the mask is impossible."""
        at = torch.from_numpy(rows.copy()).to(hidden.device)
        logits = self._layers.logits(hidden.index_select(0, at)).float()
        logits[:, self._mask] = -torch.inf
        return logits


def _parts(masked: MaskedRows) -> list[MaskedRows]:
    """At most `MOST_HEAD_ROWS` rows each."""
    capacity = len(masked.rows)
    if capacity <= MOST_HEAD_ROWS:
        return [masked]
    slices = [slice(start, start + MOST_HEAD_ROWS) for start in range(0, capacity, MOST_HEAD_ROWS)]
    return [
        MaskedRows(
            masked.rows[part], masked.slots[part], masked.positions[part], masked.places, masked.total - part.start
        )
        for part in slices
    ]
