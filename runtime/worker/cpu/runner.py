"""Runs forwards of the decoder over ragged batches, with KVs in pages and prefixes that join at their depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....kernels.attention.dense import paged_attention_reference, ragged_attention_reference, write_kv_reference
from ...model.decoder import Decoder
from ...request.forward import ForwardItem, Pages
from ..pools import BoundaryPool, KVPool
from .dense_kv import DenseKV


@dataclass(slots=True)
class Entry:
    """One request in a forward: its item, its tokens (int64 [prompt + canvas]) and page table (int64).

    `wanted` (int64 [n]) are the positions whose last hidden states are read.
    """

    item: ForwardItem
    tokens: Tensor
    page_table: Tensor
    wanted: npt.NDArray[np.int64]


class _Layout:
    """Place of each request's active tokens [low, stop) in the flat batch, and their pages."""

    def __init__(self, entries: Sequence[Entry], lows: Sequence[int], page_size: int, device: torch.device):
        self.entries = entries
        self.lows = list(lows)
        self.lengths = [entry.item.stop - low for entry, low in zip(entries, lows, strict=True)]
        self.bases = [0]
        for length in self.lengths:
            self.bases.append(self.bases[-1] + length)
        spans = [torch.arange(low, entry.item.stop, device=device) for entry, low in zip(entries, lows, strict=True)]
        self.positions = torch.cat(spans)
        self.offsets = self.positions % page_size
        self._page_numbers = [span // page_size for span in spans]
        self._tables = [-(-entry.item.keys // page_size) for entry in entries]
        self._band = -1

    def wanted(self) -> Tensor:
        """Rows of the positions that entries want, in order."""
        rows = [e.wanted + base - low for e, base, low in zip(self.entries, self.bases, self.lows, strict=False)]
        return torch.from_numpy(np.concatenate(rows)).to(self.positions.device)

    def enter(self, band: int) -> tuple[Tensor, list[Tensor]]:
        """Page id of every active token in `band`, and every request's page table there."""
        if band != self._band:
            rows = [entry.page_table[band] for entry in self.entries]
            self._pages = torch.cat([row[at] for row, at in zip(rows, self._page_numbers, strict=True)])
            self._rows = [row[:count] for row, count in zip(rows, self._tables, strict=True)]
            self._band = band
        return self._pages, self._rows


def _ids(pages: Pages, device: torch.device) -> Tensor:
    """Page ids as an index tensor; a copy, since the scheduler's arrays may be read-only."""
    return torch.from_numpy(pages.astype(np.int64)).to(device)


class ModelRunner:
    """Executes forwards over the decoder and the two pools; on a CPU keeps running requests' KVs in one piece too."""

    def __init__(self, decoder: Decoder, kv: KVPool, boundary: BoundaryPool):
        self.decoder = decoder
        self.kv = kv
        self.boundary = boundary
        self._dense = DenseKV() if decoder.device.type == "cpu" else None

    def forget(self, rid: str) -> None:
        """A request has ended."""
        if self._dense is not None:
            self._dense.forget(rid)

    @torch.inference_mode()
    def forward(self, entries: Sequence[Entry]) -> Tensor:
        """Run all layers for every entry; returns the last hidden states of the wanted positions, [n, hidden].

        Keys and values of the active tokens are written to their pages in every layer, captures to boundary pages, and
        KV pages are copied last. The last layer computes nothing else for tokens that no entry wants.
        """
        page_size = self.kv.page_size
        layout = _Layout(entries, [e.item.start for e in entries], page_size, self.decoder.device)
        hidden = self.decoder.embed(torch.cat([e.tokens[e.item.start : e.item.stop] for e in entries]))
        rotary = self.decoder.rotary(layout.positions)
        joins = {e.item.depth for e in entries if e.item.depth}
        captures = {depth for e in entries for depth, _, _ in e.item.captures}
        last = self.decoder.num_layers - 1
        for index in range(self.decoder.num_layers):
            if index in joins:
                hidden, layout = self._join(hidden, layout, index)
                rotary = self.decoder.rotary(layout.positions)
            if index in captures:
                self._capture(hidden, layout, index)
            rows = layout.wanted() if index == last else None
            queries = [len(entry.wanted) for entry in entries] if index == last else layout.lengths

            def attend(
                layer: int, q: Tensor, k: Tensor, v: Tensor, at: _Layout = layout, queries: list[int] = queries
            ) -> Tensor:
                return self._attend(at, layer, q, k, v, queries)

            hidden = self.decoder.layer(index, hidden, layout.positions, attend, rotary, rows)
        for entry in entries:
            if entry.item.copies is not None:
                source, target = _ids(entry.item.copies, hidden.device)
                self.kv.copy(source, target)
        return hidden

    def _attend(self, at: _Layout, layer: int, q: Tensor, k: Tensor, v: Tensor, queries: list[int]) -> Tensor:
        """Write fresh keys and values to their pages; attention of each request's queries over all of its keys."""
        band, pages_of_layer = self.kv.layer(layer)
        pages, tables = at.enter(band)
        write_kv_reference(pages_of_layer, k, v, pages, at.offsets)
        if self._dense is None:
            keys = [entry.item.keys for entry in at.entries]
            return paged_attention_reference(q, pages_of_layer, tables, queries, keys)
        keys_values = []
        for number, entry in enumerate(at.entries):
            own = slice(at.bases[number], at.bases[number + 1])
            item, low = entry.item, at.lows[number]
            keys_values.append(
                self._dense.update(item.rid, layer, low, k[own], v[own], pages_of_layer, tables[number], item.keys)
            )
        return ragged_attention_reference(q, keys_values, queries)

    def _join(self, hidden: Tensor, layout: _Layout, depth: int) -> tuple[Tensor, _Layout]:
        """Put the prefix tokens of the entries that join here before their other tokens."""
        parts, lows = [], []
        for number, entry in enumerate(layout.entries):
            item, low = entry.item, layout.lows[number]
            if item.depth == depth and item.resume is not None:
                pages = _ids(item.resume, hidden.device)
                parts.append(self.boundary.read(pages, item.start - item.join))
                low = item.join
            parts.append(hidden[layout.bases[number] : layout.bases[number + 1]])
            lows.append(low)
        return torch.cat(parts), _Layout(layout.entries, lows, self.kv.page_size, hidden.device)

    def _capture(self, hidden: Tensor, layout: _Layout, depth: int) -> None:
        """Write the states that enter layer `depth` to the boundary pages that items name."""
        for number, entry in enumerate(layout.entries):
            for at, first, ids in entry.item.captures:
                if at == depth:
                    row = layout.bases[number] + first - layout.lows[number]
                    pages = _ids(ids, hidden.device)
                    self.boundary.write(pages, hidden[row : row + len(ids) * self.kv.page_size])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] of last hidden states [n, hidden]; the mask token is impossible."""
        logits = self.decoder.logits(hidden)
        logits[:, self.decoder.config.mask_token_id] = -torch.inf
        return logits
