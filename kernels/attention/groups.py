"""Which requests of a batch begin with the same pages, as the shared-prefix attention kernel reads it.

Planned on the host from the page tables (NumPy), once whenever the requests of a batch change; kept on the device in
tensors of fixed capacity, so that a CUDA graph can be replayed with another plan.

One level of sharing: a request is in one group of a band or in none. Among nested prefixes (all share 1,000 tokens,
half of them 2,000) the grouping that spares the most key reads is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .tiling import SM_90_SMS, num_sms

IntArray = npt.NDArray[np.int32]

ITEM_FIELDS = 8
MAX_PARTS = 8
BLOCK_ROWS = 128
MIN_PART_KEYS = 256
PART_UNIT = 64


@dataclass(frozen=True, slots=True)
class SharedGroups:
    """Groups of a batch, on the device; all int32 and contiguous.

    Attributes:
        first_keys: [bands, requests], keys of each request that its group reads for it; 0 without a group.
        num_parts: [bands, requests], into how many parts its group's keys are cut; 0 without a group.
        rows: [bands, tokens], rows of q in the order of the groups.
        items: [bands, capacity, ITEM_FIELDS], units of work: first entry in rows and number of rows of the group, tile
            of the group, slot whose page table is used, first key and end of the keys, part. Unused ones are zero.
    """

    first_keys: Tensor
    num_parts: Tensor
    rows: Tensor
    items: Tensor

    @staticmethod
    def empty(
        bands: int, requests: int, tokens: int, heads: int, kv_heads: int, device: torch.device | str,
        sms: int | None = None,
    ) -> SharedGroups:  # fmt: skip
        """No groups, with room for any plan of this many requests and tokens. `sms`: the device's by default."""
        sms = num_sms(torch.device(device)) if sms is None else sms
        capacity = item_capacity(requests, tokens, heads // kv_heads, kv_heads, sms)
        shapes = ((bands, requests), (bands, requests), (bands, tokens), (bands, capacity, ITEM_FIELDS))
        return SharedGroups(*(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes))

    def load(self, plan: SharedPlan) -> None:
        """Take over a plan for at most as many requests and tokens; requests beyond the plan's are without a group."""
        for name in ("first_keys", "num_parts", "rows", "items"):
            to, array = getattr(self, name), getattr(plan, name)
            if any(have < want for have, want in zip(to.shape, array.shape, strict=True)):
                raise ValueError(f"{name} of the plan is {array.shape}; there is room for {tuple(to.shape)}")
            whole = np.zeros(to.shape, np.int32)
            whole[tuple(slice(0, n) for n in array.shape)] = array
            to.copy_(torch.from_numpy(whole), non_blocking=True)


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """`SharedGroups` on the host, with as many items as are needed. `groups`: (band, requests, shared keys) each."""

    first_keys: IntArray
    num_parts: IntArray
    rows: IntArray
    items: IntArray
    groups: tuple[tuple[int, tuple[int, ...], int], ...]


def item_capacity(requests: int, tokens: int, group: int, kv_heads: int, sms: int) -> int:
    """The most items that a plan needs. `group` is heads / kv_heads."""
    return max(tokens * group // BLOCK_ROWS + requests // 2, -(-2 * sms // kv_heads), 1)


def plan_shared_groups(
    page_tables: IntArray, slots: Sequence[int], query_starts: Sequence[int], key_lengths: Sequence[int],
    page_size: int, heads: int, kv_heads: int, *, min_sharers: int = 4, min_keys: int = 256, sms: int = SM_90_SMS,
) -> SharedPlan:  # fmt: skip
    """Group the requests of a batch, band by band.

    Args:
        page_tables: [slots, bands, max_pages]; two requests share the pages that are equal from the first on, within
            the whole pages of their keys. Pages that a forward is about to write must not be equal.
        slots, query_starts, key_lengths: as in `AttentionBatch`.
        min_sharers, min_keys: smaller groups, and groups that share fewer keys, are not worth while.
        sms: SMs to fill, with two programs each.
    """
    bands, requests = page_tables.shape[1], len(slots)
    starts = np.asarray(query_starts, np.int64)
    first_keys, num_parts = np.zeros((2, bands, requests), np.int32)
    rows = np.zeros((bands, int(starts[-1])), np.int32)
    items: list[list[list[int]]] = []
    groups = []
    for band in range(bands):
        tables = [
            page_tables[slot, band, : keys // page_size] if starts[r + 1] > starts[r] else page_tables[slot, band, :0]
            for r, (slot, keys) in enumerate(zip(slots, key_lengths, strict=True))
        ]
        found = _group(tables, min_sharers, -(-min_keys // page_size))
        tiles = [
            -(-sum(int(starts[r + 1] - starts[r]) for r in members) * (heads // kv_heads) // BLOCK_ROWS)
            for members, _ in found
        ]
        wanted = max(1, 2 * sms // max(1, sum(tiles) * kv_heads))
        begin, band_items = 0, []
        for (members, pages), count in zip(found, tiles, strict=True):
            keys = pages * page_size
            own = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in members])
            rows[band, begin : begin + len(own)] = own
            parts = max(1, min(wanted, MAX_PARTS, keys // MIN_PART_KEYS))
            unit = max(page_size, PART_UNIT)
            size = -(-keys // (parts * unit)) * unit
            parts = -(-keys // size)
            for part in range(parts):
                span = [part * size, min(keys, (part + 1) * size)]
                band_items += [[begin, len(own), tile, slots[members[0]], *span, part, 0] for tile in range(count)]
            first_keys[band, members], num_parts[band, members] = keys, parts
            begin += len(own)
            groups.append((band, tuple(members), keys))
        items.append(band_items)
    packed = np.zeros((bands, max(1, *(len(band) for band in items)), ITEM_FIELDS), np.int32)
    for band, band_items in enumerate(items):
        if band_items:
            packed[band, : len(band_items)] = band_items
    return SharedPlan(first_keys, num_parts, rows, packed, tuple(groups))


def _group(tables: list[IntArray], min_sharers: int, min_pages: int) -> list[tuple[list[int], int]]:
    """Disjoint groups (members, pages that they share) that spare the most reads of pages."""
    order = sorted(range(len(tables)), key=lambda r: tables[r].astype(">u4").tobytes())
    common = [_common(tables[a], tables[b]) for a, b in pairwise(order)]

    def best(low: int, high: int) -> tuple[int, list[tuple[list[int], int]]]:
        """Pages spared by the best grouping of order[low:high], and the grouping."""
        if high - low < min_sharers:
            return 0, []
        shared = min(common[low : high - 1])
        groups: list[tuple[list[int], int]] = []
        spared, begin = 0, low
        for at in range(low, high):
            if at == high - 1 or common[at] == shared:
                if (begin, at + 1) != (low, high):
                    more, found = best(begin, at + 1)
                    spared, groups = spared + more, groups + found
                begin = at + 1
        together = (high - low - 1) * shared
        if shared >= min_pages and together >= spared:
            return together, [(sorted(order[low:high]), shared)]
        return spared, groups

    return best(0, len(order))[1]


def _common(a: IntArray, b: IntArray) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
