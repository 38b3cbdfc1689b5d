"""Forwards on a GPU: refreshes launched one by one, block steps as a body that a CUDA graph can replay."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.attention.groups import SharedGroups
from ....kernels.attention.tiling import num_sms
from ....kernels.layers.embed import embed
from ...model.decoder import Decoder
from ..pools import BoundaryPool, KVPool
from .fp8_layers import Fp8Layers
from .fp8_linear import Fp8Linear
from .layers import FusedLayers
from .layout import Layout
from .refresh_plan import RefreshPlan
from .slots import CanvasSlots

_MAX_SPLITS = 8


class CudaRunner:
    """Runs layers over slots' tokens. Also runs on a CPU, with the reference kernels: that is how it is tested.

    Args:
        decoder: weights.
        kv, boundary: the pools.
        slots: tokens and page tables of running requests.
    """

    def __init__(self, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, slots: CanvasSlots):
        self.decoder = decoder
        self.kv = kv
        self.boundary = boundary
        self.slots = slots
        in_fp8 = isinstance(decoder.layers[0].qkv, Fp8Linear)
        self.layers = (Fp8Layers if in_fp8 else FusedLayers)(decoder, kv, slots.max_tokens)

    def embed(self, at: Layout) -> Tensor:
        """Embeddings [rows, hidden] of the tokens that stand in the rows' positions now."""
        tokens = self.slots.state.tokens
        return self._in_room(embed(self.decoder.embedding, tokens, at.batch.slots, at.requests, at.positions))

    def _in_room(self, hidden: Tensor) -> Tensor:
        """hidden where ranks add it up fastest, if there are any."""
        ranks = self.decoder.ranks
        room = None if ranks is None else ranks.room(hidden.shape[0])
        return hidden if room is None else room.copy_(hidden)

    @torch.inference_mode()
    def refresh(self, plan: RefreshPlan) -> Tensor:
        """Run a planned forward; last hidden states [rows of plan.last, hidden].

        Keys, values and captures are written on the way, KV pages copied at the end. Nothing waits for the device.
        """
        at = plan.layouts[0]
        hidden = self.embed(at)
        final = self.decoder.num_layers - 1
        for index in range(self.decoder.num_layers):
            if index in plan.joins:
                join = plan.joins[index]
                joined = torch.empty((join.num_rows, hidden.shape[1]), dtype=hidden.dtype, device=hidden.device)
                joined.index_copy_(0, join.kept, hidden)
                joined.index_copy_(0, join.joined, self.boundary.rows(join.states))
                hidden, at = self._in_room(joined), plan.layouts[index]
            if index in plan.captures:
                capture = plan.captures[index]
                self.boundary.write(capture.pages, hidden.index_select(0, capture.rows))
            if index < final:
                hidden = self.layers.run(index, hidden, at, num_splits=self.splits(at.batch.num_requests, at.num_rows))
        hidden = self.layers.run_last(final, hidden, at, plan.needed, plan.last)
        if plan.copies is not None:
            self.kv.copy(*plan.copies)
        return hidden

    def splits(self, requests: int, rows: int) -> int:
        """The most key splits, a power of two, that leave at most one program per SM; `rows` queries in all.

        A program's tiles in flight take half of an SM's shared memory, so two programs rarely share an SM.
        """
        config = self.decoder.config
        rows_each = -(-rows * (config.num_heads // config.num_kv_heads) // requests)
        tile = 64 if rows_each <= 512 else 128  # as `choose_tiling` cuts them on sm_90
        programs = requests * -(-rows_each // tile) * config.num_kv_heads
        wanted = max(1, min(_MAX_SPLITS, num_sms(self.decoder.device) // programs))
        return 1 << (wanted.bit_length() - 1)  # few values: each is a kernel of its own

    @torch.inference_mode()
    def step(self, at: Layout, num_splits: int, shared: SharedGroups | None = None) -> Tensor:
        """Run all layers over a batch of blocks; last hidden states [rows, hidden]."""
        hidden = self.embed(at)
        for index in range(self.decoder.num_layers):
            hidden = self.layers.run(index, hidden, at, num_splits=num_splits, shared=shared)
        return hidden
