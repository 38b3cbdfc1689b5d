"""Running requests' tokens, masks and page tables in device memory, one slot a request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .errors import EngineError


class CanvasSlots:
    """State that forwards read and commits change, without a copy to the host.

    Attributes:
        tokens: int64 [slots + 1, max_tokens], prompt and canvas of each request.
        masked: uint8 [slots + 1, max_tokens], 1 where a mask waits for its token. A mask token that a prompt spells out
            is an ordinary token: only this says what is masked.
        page_tables: int32 [slots + 1, bands, max_pages].

    The last row belongs to no request: padding rows of a batch point there, and nothing in it is masked.
    """

    def __init__(self, num_slots: int, max_tokens: int, bands: int, page_size: int, device: torch.device):
        self.max_tokens = max_tokens
        self.page_size = page_size
        max_pages = -(-max_tokens // page_size)
        self.tokens = torch.zeros((num_slots + 1, max_tokens), dtype=torch.int64, device=device)
        self.masked = torch.zeros((num_slots + 1, max_tokens), dtype=torch.uint8, device=device)
        self.page_tables = torch.zeros((num_slots + 1, bands, max_pages), dtype=torch.int32, device=device)
        self.padding = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots without a request."""
        return len(self._free)

    def take(
        self, tokens: npt.NDArray[np.int64], masked: npt.NDArray[np.bool_], page_table: npt.NDArray[np.int32]
    ) -> int:
        """Put a request into a free slot: tokens and masked [prompt + canvas], page_table [bands, pages].

        Raises EngineError when none is free or the request is longer than a slot: the scheduler admits no such thing.
        """
        if not self._free:
            raise EngineError("no canvas slot is free", field="max_running_requests", limit=self.padding)
        if len(tokens) > self.max_tokens:
            raise EngineError(
                f"a request has {len(tokens)} tokens; a canvas slot holds {self.max_tokens}",
                field="max_new_tokens", value=len(tokens), limit=self.max_tokens,
            )  # fmt: skip
        slot = self._free.pop()
        self.tokens[slot, : len(tokens)] = torch.from_numpy(tokens).to(self.tokens.device)
        self.masked[slot, : len(masked)] = torch.from_numpy(masked.astype(np.uint8)).to(self.masked.device)
        table = torch.from_numpy(np.ascontiguousarray(page_table, np.int32)).to(self.page_tables.device)
        self.page_tables[slot, :, : table.shape[1]] = table
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot. What it held stays until the next request overwrites it; nobody looks."""
        self._free.append(slot)
