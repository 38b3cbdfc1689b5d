"""Plans a forward over suffixes and prefixes for the device: rows, joins, captures.

Below the lowest depth at which a prefix joins, the batch holds each request's own tokens; at each such depth the
joining prefix tokens enter it. In the last layer only the rows whose logits are read remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...request.forward import ForwardItem
from .arrays import Array, to_device
from .layout import Layout, Spans, layout, spans


@dataclass(frozen=True, slots=True)
class Join:
    """Prefix rows that enter the batch: new row numbers of the old rows and of the entering ones.

    kept, joined: int64 row numbers in the larger batch; states: int64 rows of the flat boundary pool.
    """

    kept: Tensor
    joined: Tensor
    states: Tensor
    num_rows: int


@dataclass(frozen=True, slots=True)
class Capture:
    """Rows (int64 [n * page_size]) whose hidden states go to boundary pages (int64 [n])."""

    rows: Tensor
    pages: Tensor


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """A forward, ready to run.

    layouts: by the first layer that they hold for; layer 0 always has one. joins and captures: by the layer that they
    come before. needed: rows of the last layer's input that `last` lays out, the current block of each request or
    as far as its targets reach. last_starts, last_lows: each request's first row in `last`, and that row's position;
    last_first: the latter on the device. copies: KV pages to copy when all is done, from (int64 [n]) and to (int64
    [n]); None: none.
    """

    slots: Tensor
    layouts: dict[int, Layout]
    joins: dict[int, Join]
    captures: dict[int, Capture]
    needed: Tensor
    last: Layout
    last_first: Tensor
    last_starts: list[int]
    last_lows: list[int]
    copies: tuple[Tensor, Tensor] | None = None


def plan_refresh(
    items: Sequence[ForwardItem], slots: Sequence[int], page_tables: Tensor, page_size: int, shift: int
) -> RefreshPlan:
    """Lay out a forward of `items`, whose canvases are in `slots`.

    Args:
        page_tables: int32 [slots, bands, max_pages], on the device where all arrays go.
        shift: 1 when the logits of a position come from the row before it.
    """
    arrays: dict[str, Array] = {"slots": np.array(slots, np.int32)}
    stops, keys = [item.stop for item in items], [item.keys for item in items]
    at = spans([item.start for item in items], stops, keys)
    levels = {0: at}
    arrays |= at.arrays("0")
    for depth in sorted({item.depth for item in items if item.resume is not None}):
        joining = np.array([item.resume is not None and item.depth == depth for item in items])
        lows = np.where(joining, [item.join for item in items], at.lows).astype(np.int32)
        above = Spans(lows, at.stops, at.keys)
        arrays |= above.arrays(str(depth)) | _join_arrays(depth, items, joining, at, above, page_size)
        levels[depth] = at = above
    for depth in {depth for item in items for depth, _, _ in item.captures}:
        below = levels[max(level for level in levels if level <= depth)]
        arrays |= _capture_arrays(depth, items, below, page_size)
    copies = [item.copies for item in items if item.copies is not None]
    if copies:
        arrays["copies.from"], arrays["copies.to"] = np.concatenate(copies, axis=1)
    wanted = [_wanted(item, shift) for item in items]
    last = spans([low for low, _ in wanted], [stop for _, stop in wanted], keys)
    arrays |= last.arrays("last") | {"last.first": last.lows}
    offsets = np.repeat(at.starts[:-1] - at.lows, last.stops - last.lows)
    arrays["needed"] = (arrays["last.positions"] + offsets).astype(np.int32)
    views = to_device(arrays, page_tables.device)

    def long(name: str) -> Tensor:
        return views[name].to(torch.int64)

    joins = {
        depth: Join(long(f"{depth}.kept"), long(f"{depth}.joined"), long(f"{depth}.states"), int(level.starts[-1]))
        for depth, level in levels.items()
        if depth
    }
    captures = {
        int(name.split(".")[0]): Capture(long(name), long(name.replace("rows", "pages")))
        for name in arrays
        if name.endswith(".capture_rows")
    }
    return RefreshPlan(
        views["slots"],
        {depth: layout(views, str(depth), page_tables, views["slots"], level.whole) for depth, level in levels.items()},
        joins,
        captures,
        long("needed"),
        layout(views, "last", page_tables, views["slots"]),
        views["last.first"],
        last.starts.tolist()[:-1],
        last.lows.tolist(),
        (long("copies.from"), long("copies.to")) if copies else None,
    )


def _wanted(item: ForwardItem, shift: int) -> tuple[int, int]:
    """Positions [from, to) whose last hidden states are read."""
    if item.targets is None or not len(item.targets):
        return item.block_start - shift, item.block_stop - shift
    return int(item.targets[:, 0].min()) - shift, int(item.targets[:, 0].max()) + 1 - shift


def _rows(at: Spans, which: npt.NDArray[np.bool_], lows: Sequence[int], stops: Sequence[int]) -> npt.NDArray[np.int32]:
    """Row numbers of positions lows[r] .. stops[r] - 1 of the requests in `which`."""
    parts = [
        np.arange(lows[r], stops[r], dtype=np.int32) - at.lows[r] + at.starts[r] for r in np.flatnonzero(which).tolist()
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _join_arrays(
    depth: int, items: Sequence[ForwardItem], joining: npt.NDArray[np.bool_], below: Spans, above: Spans, page_size: int
) -> dict[str, Array]:
    everyone = np.ones(len(items), np.bool_)
    starts = [item.start for item in items]
    kept = _rows(above, everyone, below.lows.tolist(), below.stops.tolist())
    joined = _rows(above, joining, above.lows.tolist(), starts)
    states = []
    for r in np.flatnonzero(joining).tolist():
        item = items[r]
        assert item.resume is not None
        offsets = np.arange(item.start - item.join, dtype=np.int32)
        states.append(item.resume[offsets // page_size] * page_size + offsets % page_size)
    return {f"{depth}.kept": kept, f"{depth}.joined": joined, f"{depth}.states": np.concatenate(states)}


def _capture_arrays(depth: int, items: Sequence[ForwardItem], at: Spans, page_size: int) -> dict[str, Array]:
    rows, pages = [], []
    for r, item in enumerate(items):
        for level, first, ids in item.captures:
            if level == depth:
                begin = int(at.starts[r] + first - at.lows[r])
                rows.append(np.arange(begin, begin + len(ids) * page_size, dtype=np.int32))
                pages.append(ids.astype(np.int32))
    return {f"{depth}.capture_rows": np.concatenate(rows), f"{depth}.capture_pages": np.concatenate(pages)}
