"""Logits of masked positions, and which of them are committed, without a look at the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....kernels.attention.batch import AttentionBatch
from ....kernels.sampling.block_confidence import block_confidence
from ....kernels.sampling.commit import commit
from ....kernels.sampling.masked_rows import masked_rows
from .layers import FusedLayers
from .slots import CanvasSlots


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

    def sample(self, hidden: Tensor, batch: AttentionBatch, first: Tensor, rows: int, draw: bool) -> None:
        """Commit masks of every request's current block, by quota, threshold or factor.

        Args:
            hidden: [rows, hidden], laid out by batch.query_starts.
            first: int32 [requests], position of each request's first row.
            rows: the head's rows; no more masks than these are open in all blocks together.
            draw: whether any request has a temperature.
        """
        state = self._slots.state
        masked = masked_rows(state, batch, first, rows, self._shift)
        logits = self._layers.logits(hidden.index_select(0, masked.rows))
        best = block_confidence(logits, state, masked, impossible_token=self._mask, draw=draw)
        commit(state, batch, masked, best, logits.shape[1])

    def scores(self, hidden: Tensor, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> list[float]:
        """Natural log-probabilities of tokens [n] by the logits of `rows` [n] of hidden; the mask is impossible."""
        at, token = (torch.from_numpy(x.copy()).to(hidden.device) for x in (rows, tokens))
        logits = self._layers.logits(hidden.index_select(0, at)).float()
        logits[:, self._mask] = -torch.inf
        return logits.log_softmax(-1).gather(1, token[:, None])[:, 0].tolist()
