"""The tensors behind page ids: KV pages (token positions x one band) and boundary pages (hidden states)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.ranks import Ranks

_COPIED_AT_ONCE = 32
"""Pages per copy; bounds a copy's memory: 128 MiB for pages of 4 MiB."""


class KVPool:
    """KV pages, `data` [pages, layers_per_band, 2, page_size, kv_heads, head_dim].

    A page holds keys (index 0) and values (1) of `page_size` token positions in the layers of one band. All pages are
    alike; the page table that names a page decides its band. The contents of an unwritten page are undefined.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        layers_per_band: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (num_pages, layers_per_band, 2, page_size, config.num_kv_heads, config.head_dim)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.page_size = page_size
        self.layers_per_band = layers_per_band

    def layer(self, index: int) -> tuple[int, Tensor]:
        """The band of layer `index`, and a view [pages, 2, page_size, kv_heads, head_dim] of its place in a page."""
        return index // self.layers_per_band, self.data[:, index % self.layers_per_band]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy pages `source` to pages `target` (int64 [n] each; no page is in both), a few at a time."""
        data = self.data.view(torch.uint8) if self.data.itemsize == 1 else self.data  # torch copies no rows of fp8
        for few, to in zip(source.split(_COPIED_AT_ONCE), target.split(_COPIED_AT_ONCE), strict=True):
            data.index_copy_(0, to, data.index_select(0, few))


class BoundaryPool:
    """Boundary pages, `data` [pages, page_size, hidden]: hidden states of prompt tokens as they enter a band.

    With `ranks`, each of them holds its share of every state, [pages, page_size, hidden / ranks].
    """

    def __init__(
        self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device,
        ranks: Ranks | None = None,
    ):  # fmt: skip
        width = config.hidden_size // (1 if ranks is None else ranks.size)
        self.data = torch.empty((num_pages, page_size, width), dtype=dtype, device=device)
        self.page_size = page_size
        self._ranks = ranks

    def read(self, pages: Tensor, tokens: int) -> Tensor:
        """Hidden states [tokens, hidden] of the first `tokens` positions held by `pages` (int64)."""
        return self._whole(self.data.index_select(0, pages).flatten(0, 1)[:tokens])

    def rows(self, rows: Tensor) -> Tensor:
        """Hidden states [n, hidden] of `rows` (int64 [n]): page * page_size + offset."""
        return self._whole(self.data.flatten(0, 1).index_select(0, rows))

    def write(self, pages: Tensor, states: Tensor) -> None:
        """Fill `pages` (int64, [n]) with states [n * page_size, hidden]."""
        if self._ranks is not None:
            states = states.chunk(self._ranks.size, dim=1)[self._ranks.rank]
        self.data[pages] = states.reshape(-1, self.page_size, states.shape[-1])

    def _whole(self, states: Tensor) -> Tensor:
        return states if self._ranks is None else self._ranks.gather(states, 1)
