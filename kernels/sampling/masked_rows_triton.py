"""The masked rows of a block step in Triton: one program, a prefix sum over the positions of all blocks in turn."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.batch import AttentionBatch
from .canvas_state import CanvasState
from .masked_rows import MaskedRows

_MOST_LANES = 8192


@triton.jit(do_not_specialize=["num_requests", "capacity"])
def _masked_rows_kernel(
    masked_ptr, block_starts_ptr, block_stops_ptr, stopped_ptr,
    batch_slots_ptr, query_starts_ptr, key_lengths_ptr, first_positions_ptr,
    rows_ptr, slots_ptr, positions_ptr, places_ptr, total_ptr,
    num_requests, length, capacity, shift,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_REQUESTS: tl.constexpr, BLOCK_CAPACITY: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK_REQUESTS * BLOCK_WIDTH)
    column = lanes % BLOCK_WIDTH
    total = 0
    for first_request in range(0, num_requests, BLOCK_REQUESTS):
        request = first_request + lanes // BLOCK_WIDTH
        real = request < num_requests
        slot = tl.load(batch_slots_ptr + request, mask=real, other=0)
        keys = tl.load(key_lengths_ptr + request, mask=real, other=0)
        stopped = tl.load(stopped_ptr + slot, mask=real, other=1)
        start = tl.load(block_starts_ptr + slot, mask=real, other=0)
        stop = tl.load(block_stops_ptr + slot, mask=real, other=0)
        position = start + column
        inside = real & (keys > 0) & (stopped == 0) & (column < WIDTH) & (position < stop)
        is_mask = tl.load(masked_ptr + slot.to(tl.int64) * length + position, mask=inside, other=0) != 0
        counts = is_mask.to(tl.int32)
        place = total + tl.cumsum(counts, 0) - 1
        fits = is_mask & (place < capacity)
        first = tl.load(first_positions_ptr + request, mask=real, other=0)
        row = tl.load(query_starts_ptr + request, mask=real, other=0) + position - first - shift
        tl.store(places_ptr + request * WIDTH + column, tl.where(fits, place, -1), mask=real & (column < WIDTH))
        tl.store(rows_ptr + place, row.to(tl.int64), mask=fits)
        tl.store(slots_ptr + place, slot, mask=fits)
        tl.store(positions_ptr + place, position, mask=fits)
        total += tl.sum(counts, 0)
    tl.store(total_ptr, total)
    for first_place in range(0, capacity, BLOCK_CAPACITY):
        rest = first_place + tl.arange(0, BLOCK_CAPACITY)
        unused = (rest >= total) & (rest < capacity)
        tl.store(rows_ptr + rest, tl.zeros([BLOCK_CAPACITY], tl.int64), mask=unused)
        tl.store(slots_ptr + rest, tl.full([BLOCK_CAPACITY], -1, tl.int32), mask=unused)
        tl.store(positions_ptr + rest, tl.full([BLOCK_CAPACITY], -1, tl.int32), mask=unused)


def masked_rows_triton(
    state: CanvasState, batch: AttentionBatch, first_positions: Tensor, capacity: int, shift: int = 0,
    width: int | None = None,
) -> MaskedRows:  # fmt: skip
    """`masked_rows`; reads nothing on the host."""
    requests, device = batch.num_requests, state.tokens.device
    if first_positions.dtype != torch.int32 or first_positions.shape != (requests,):
        raise ValueError(f"first_positions is {first_positions.dtype} {tuple(first_positions.shape)}")
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it must be at least 1")
    rows = torch.empty(capacity, dtype=torch.int64, device=device)
    slots, positions = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    width = width or state.width
    places = torch.empty((requests, width), dtype=torch.int32, device=device)
    total = torch.empty(1, dtype=torch.int32, device=device)
    block_width = triton.next_power_of_2(width)
    block_requests = min(triton.next_power_of_2(requests), max(1, _MOST_LANES // block_width))
    _masked_rows_kernel[(1,)](
        state.masked, state.block_starts, state.block_stops, state.stopped,
        batch.slots, batch.query_starts, batch.key_lengths, first_positions,
        rows, slots, positions, places, total,
        requests, state.masked.shape[1], capacity, shift,
        WIDTH=width, BLOCK_WIDTH=block_width, BLOCK_REQUESTS=block_requests,
        BLOCK_CAPACITY=min(triton.next_power_of_2(capacity), _MOST_LANES),
        num_warps=min(32, max(4, block_width * block_requests // 256)),
    )  # fmt: skip
    return MaskedRows(rows, slots, positions, places, total)
