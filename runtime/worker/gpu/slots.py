"""Running requests' canvases, masks, decoding state and page tables in device memory, one slot a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....kernels.sampling.canvas_state import CanvasState, acceptance_bounds
from ....kernels.sampling.strategies import STRATEGIES
from ...errors import EngineError
from ...request.forward import Pages
from ...request.sampling_params import DEFAULT_THRESHOLD
from .slot_request import SlotRequest, last_ids, rules_of_request, shaping_of_request

UNSERVED = ("refresh_entropy",)
"""Sampling parameters that a GPU does not serve: see `Facts.unserved`."""
MAX_STOP_IDS = 32
"""Tokens that can end a text on a GPU, the model's own included."""


class EnteredBlock(NamedTuple):
    """The block [start, stop) of the request in `slot`.

    quotas: masks that each forward commits; empty: confidence decides. origin_steps: as in `CanvasState`.
    """

    slot: int
    start: int
    stop: int
    quotas: tuple[int, ...] = ()
    origin_steps: int = 0


class CanvasSlots:
    """State that forwards read and commits change, without a copy to the host.

    Args:
        num_slots: requests at a time.
        max_tokens: prompt and canvas of the longest request.
        max_block: positions of the longest block.
        bands, page_size: of the page tables.
        vocabulary: tokens that logits have.
        eos: EOS as config.json has it.

    Attributes:
        state: canvases, masks and decoding parameters, [slots + 1, ...]. A mask token that a prompt spells out is an
            ordinary token: only `state.masked` says what is masked.
        page_tables: int32 [slots + 1, bands, max_pages]; host_page_tables: the same on the host.

    The last row belongs to no request: padding of a batch points there, and nothing in it is masked.
    """

    def __init__(
        self, num_slots: int, max_tokens: int, max_block: int, bands: int, page_size: int, device: torch.device,
        vocabulary: int, eos: int,
    ):  # fmt: skip
        self.max_tokens = max_tokens
        self.page_size = page_size
        self.padding = num_slots
        self.state = CanvasState.empty(num_slots + 1, max_tokens, max_block, MAX_STOP_IDS, device, vocabulary)
        shape = (num_slots + 1, bands, -(-max_tokens // page_size))
        self.page_tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self.host_page_tables = np.zeros(shape, np.int32)
        self._device, self._eos = device, eos
        self._free = list(range(num_slots - 1, -1, -1))
        self._grown: set[int] = set()

    @property
    def num_free(self) -> int:
        """Slots without a request."""
        return len(self._free)

    def take(self, request: SlotRequest) -> int:
        """Put a request into a free slot.

        Raises EngineError if none is free or the request does not fit a slot; intake prevents both.
        """
        if not self._free:
            raise EngineError("no canvas slot is free", field="max_running_requests", limit=self.padding)
        length, stop_ids = len(request.tokens), request.stop_ids
        if length > self.max_tokens:
            raise EngineError(
                f"a request has {length} tokens; a canvas slot holds {self.max_tokens}",
                field="max_new_tokens", value=length, limit=self.max_tokens,
            )  # fmt: skip
        if len(stop_ids) > MAX_STOP_IDS:
            raise EngineError(
                f"stop_token_ids and the model's own are {len(stop_ids)} tokens; a GPU takes {MAX_STOP_IDS}",
                field="stop_token_ids", value=len(stop_ids), limit=MAX_STOP_IDS,
            )  # fmt: skip
        slot = self._free[-1]  # taken at the end: what fails on the way leaves it free
        state, sampling = self.state, request.sampling
        state.tokens[slot, :length] = torch.from_numpy(request.tokens).to(self._device)
        state.masked[slot, :length] = torch.from_numpy(request.masked.astype(np.uint8)).to(self._device)
        self.host_page_tables[slot, :, : request.page_table.shape[1]] = request.page_table
        self.page_tables[slot] = torch.from_numpy(self.host_page_tables[slot]).to(self._device)
        factor, threshold = sampling.factor, sampling.threshold
        if factor is None and threshold is None:
            threshold = DEFAULT_THRESHOLD
        state.bounds[slot] = acceptance_bounds(threshold, factor, state.width).to(self._device)
        state.stop_ids[slot] = self._ids(stop_ids)
        state.last_ids[slot] = self._ids(last_ids(sampling, request.end_ids))
        state.shaping[slot] = torch.tensor(shaping_of_request(sampling, request.prompt_length)).to(self._device)
        if sampling.changes_logits:
            counts, biases = rules_of_request(request, state.counts.shape[1], self._eos)
            state.counts[slot] = torch.from_numpy(counts).to(self._device)
            state.biases[slot] = torch.from_numpy(biases).to(self._device)
        strategy = 0 if sampling.strategy == "origin" else STRATEGIES.index(sampling.strategy)
        values = (
            (state.block_starts, 0), (state.block_stops, 0), (state.block_step, 0), (state.nfe, 0), (state.stopped, 0),
            (state.quotas, 0), (state.origin_steps, 0), (state.origin_ends, sampling.eps),
            (state.takes_last, int(factor is not None)), (state.strategies, strategy),
            (state.mask_temperatures, sampling.alg_temp),
            (state.temperatures, sampling.temperature if sampling.draws else 0), (state.seeds, request.seed),
        )  # fmt: skip
        for tensor, value in values:
            tensor[slot].fill_(value)
        return self._free.pop()

    def _ids(self, ids: Iterable[int]) -> Tensor:
        padded = torch.full((MAX_STOP_IDS,), -1, dtype=torch.int32)
        found = torch.tensor(sorted(ids), dtype=torch.int32)
        padded[: len(found)] = found
        return padded.to(self._device)

    def grow(self, slot: int, held: int, pages: Pages) -> None:
        """Put pages int32 [bands, n] behind the first `held` columns of a slot's page table, for `upload_tables`."""
        self.host_page_tables[slot, :, held : held + pages.shape[1]] = pages
        self._grown.add(slot)

    def upload_tables(self) -> None:
        """Copy the page tables that have grown to the device, all at once, in stream order."""
        if self._grown:
            slots = sorted(self._grown)
            at = torch.tensor(slots, device=self._device)
            self.page_tables[at] = torch.from_numpy(self.host_page_tables[slots]).to(self._device)
            self._grown.clear()

    def give_back(self, slot: int) -> None:
        """Free a slot. Its contents stay, unread, until the next request overwrites them."""
        self._free.append(slot)

    def enter_blocks(self, entered: Sequence[EnteredBlock]) -> None:
        """Make each the current block of its request; its steps count from 0."""
        if not entered:
            return
        width = self.state.width
        table = np.zeros((len(entered), 4 + width), np.int32)
        for row, block in zip(table, entered, strict=True):
            row[:4] = block.slot, block.start, block.stop, block.origin_steps
            row[4 : 4 + len(block.quotas)] = block.quotas
            row[4 + len(block.quotas) :] = 1 if block.quotas else 0
        there = torch.from_numpy(table).to(self._device)
        at, state = there[:, 0].long(), self.state
        state.block_starts[at] = there[:, 1]
        state.block_stops[at] = there[:, 2]
        state.origin_steps[at] = there[:, 3]
        state.quotas[at] = there[:, 4:]
        state.block_step[at] = 0

    def _places(self, slots: Tensor, width: int) -> Tensor:
        """Where each current block lies in the flat view of a tensor [slots, max_tokens]: int64 [requests * width]."""
        at = slots.long()
        starts = self.state.block_starts.index_select(0, at)[:, None]
        places = starts + torch.arange(width, device=slots.device)[None]
        return (at[:, None] * self.max_tokens + places.clamp(max=self.max_tokens - 1)).view(-1)

    def read_marks(self, slots: Tensor, width: int) -> Tensor:
        """float64 [2, requests, width]: confidences and passes of each current block's committed masks."""
        flat = self._places(slots, width)
        marks = (self.state.confidences, self.state.passes)
        return torch.stack([one.view(-1).index_select(0, flat).view(-1, width).double() for one in marks])

    def read(self, slots: Tensor, width: int) -> Tensor:
        """int64 [requests, width + 1]: tokens of each current block, -1 for masks, and `CanvasState.nfe`."""
        state, at = self.state, slots.long()
        flat = self._places(slots, width)
        tokens = state.tokens.view(-1).index_select(0, flat).view(-1, width)
        masked = state.masked.view(-1).index_select(0, flat).view(-1, width)
        count = state.nfe.index_select(0, at).long()
        return torch.cat((torch.where(masked > 0, -1, tokens), count[:, None]), 1)
