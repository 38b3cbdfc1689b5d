"""Running requests' canvases, masks, decoding state and page tables in device memory, one slot a request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....kernels.sampling.canvas_state import CanvasState, acceptance_bounds
from ....kernels.sampling.strategies import STRATEGIES
from ...errors import EngineError
from ...request.sampling_params import DEFAULT_THRESHOLD, SamplingParams

UNSERVED = (
    "strategy=origin", "schedule=linear", "ranking=sampled", "alg_temp", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "eos_penalty",
    "logits_eos_inf", "confidence_eos_eot_inf",
)  # fmt: skip
"""Sampling parameters that the kernels do not have: see `Facts.unserved`."""
MAX_STOP_IDS = 32
"""Tokens that can end a text on a GPU, the model's own included."""


class CanvasSlots:
    """State that forwards read and commits change, without a copy to the host.

    Args:
        num_slots: requests at a time.
        max_tokens: prompt and canvas of the longest request.
        max_block: positions of the longest block.
        bands, page_size: of the page tables.

    Attributes:
        state: canvases, masks and decoding parameters, [slots + 1, ...]. A mask token that a prompt spells out is an
            ordinary token: only `state.masked` says what is masked.
        page_tables: int32 [slots + 1, bands, max_pages]; host_page_tables: the same on the host.

    The last row belongs to no request: padding of a batch points there, and nothing in it is masked.
    """

    def __init__(
        self, num_slots: int, max_tokens: int, max_block: int, bands: int, page_size: int, device: torch.device
    ):
        self.max_tokens = max_tokens
        self.page_size = page_size
        self.padding = num_slots
        self.state = CanvasState.empty(num_slots + 1, max_tokens, max_block, MAX_STOP_IDS, device)
        shape = (num_slots + 1, bands, -(-max_tokens // page_size))
        self.page_tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self.host_page_tables = np.zeros(shape, np.int32)
        self._device = device
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots without a request."""
        return len(self._free)

    def take(
        self, tokens: npt.NDArray[np.int64], masked: npt.NDArray[np.bool_], page_table: npt.NDArray[np.int32],
        sampling: SamplingParams, stop_ids: frozenset[int], seed: int,
    ) -> int:  # fmt: skip
        """Put a request into a free slot: tokens and masked [prompt + canvas], page_table [bands, pages].

        Raises EngineError if none is free or the request does not fit a slot; intake prevents both.
        """
        if not self._free:
            raise EngineError("no canvas slot is free", field="max_running_requests", limit=self.padding)
        if len(tokens) > self.max_tokens:
            raise EngineError(
                f"a request has {len(tokens)} tokens; a canvas slot holds {self.max_tokens}",
                field="max_new_tokens", value=len(tokens), limit=self.max_tokens,
            )  # fmt: skip
        if len(stop_ids) > MAX_STOP_IDS:
            raise EngineError(
                f"stop_token_ids and the model's own are {len(stop_ids)} tokens; a GPU takes {MAX_STOP_IDS}",
                field="stop_token_ids", value=len(stop_ids), limit=MAX_STOP_IDS,
            )  # fmt: skip
        slot = self._free[-1]  # taken at the end: what fails on the way leaves it free
        state, length = self.state, len(tokens)
        state.tokens[slot, :length] = torch.from_numpy(tokens).to(self._device)
        state.masked[slot, :length] = torch.from_numpy(masked.astype(np.uint8)).to(self._device)
        self.host_page_tables[slot, :, : page_table.shape[1]] = page_table
        self.page_tables[slot] = torch.from_numpy(self.host_page_tables[slot]).to(self._device)
        factor, threshold = sampling.factor, sampling.threshold
        if factor is None and threshold is None:
            threshold = DEFAULT_THRESHOLD
        state.bounds[slot] = acceptance_bounds(threshold, factor, state.width).to(self._device)
        ids = torch.full((MAX_STOP_IDS,), -1, dtype=torch.int32)
        ids[: len(stop_ids)] = torch.tensor(sorted(stop_ids), dtype=torch.int32)
        state.stop_ids[slot] = ids.to(self._device)
        values = (
            (state.block_starts, 0), (state.block_stops, 0), (state.block_masks, 0), (state.block_step, 0),
            (state.nfe, 0), (state.stopped, 0), (state.steps_per_block, 0),
            (state.takes_last, int(factor is not None)),
            (state.strategies, STRATEGIES.index(sampling.strategy)), (state.temperatures, sampling.temperature),
            (state.seeds, seed),
        )  # fmt: skip
        for tensor, value in values:
            tensor[slot].fill_(value)
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Free a slot. Its contents stay, unread, until the next request overwrites them."""
        self._free.append(slot)

    def enter_blocks(self, entered: list[tuple[int, int, int, int, int]]) -> None:
        """Make (slot, start, stop, masks, quota of steps or 0) each the current block of its request; its steps count
        from 0."""
        if not entered:
            return
        slots, starts, stops, masks, steps = torch.tensor(entered, dtype=torch.int32).t().contiguous().to(self._device)
        at, state = slots.long(), self.state
        state.block_starts[at] = starts
        state.block_stops[at] = stops
        state.block_masks[at] = masks
        state.steps_per_block[at] = steps
        state.block_step[at] = 0

    def read(self, slots: Tensor, width: int) -> Tensor:
        """int64 [requests, width + 1]: tokens of each current block, -1 for masks, and `CanvasState.nfe`."""
        state, at = self.state, slots.long()
        places = state.block_starts.index_select(0, at)[:, None] + torch.arange(width, device=slots.device)[None]
        flat = (at[:, None] * self.max_tokens + places.clamp(max=self.max_tokens - 1)).view(-1)
        tokens = state.tokens.view(-1).index_select(0, flat).view(-1, width)
        masked = state.masked.view(-1).index_select(0, flat).view(-1, width)
        count = state.nfe.index_select(0, at).long()
        return torch.cat((torch.where(masked > 0, -1, tokens), count[:, None]), 1)
