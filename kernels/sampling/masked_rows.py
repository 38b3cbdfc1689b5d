"""The rows of a block step that the LM head reads: those of masked positions (torch reference)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.batch import AttentionBatch
from ..dispatch import kernel
from .canvas_state import CanvasState


class MaskedRows(NamedTuple):
    """Masked positions of a batch's blocks, dense, in the order of requests and positions.

    rows: int64 [capacity], row of the hidden states that predicts the position; 0 from `total` on.
    slots: int32 [capacity], slot of the request; -1 from `total` on.
    positions: int32 [capacity], position in the sequence; -1 from `total` on.
    places: int32 [requests, width], where in these lists the n-th position of each block is; -1: not a mask, or no
        room.
    total: int32 [1], masks there are, also beyond the capacity; those beyond it are not in the lists.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    places: Tensor
    total: Tensor


@kernel("masked_rows_triton.masked_rows_triton")
def masked_rows(
    state: CanvasState, batch: AttentionBatch, first_positions: Tensor, capacity: int, shift: int = 0,
    width: int | None = None,
) -> MaskedRows:  # fmt: skip
    """Find the masked positions of the current block of every request of the batch.

    Requests that stopped, and padding (key length 0), have none.

    Args:
        first_positions: int32 [requests], position of each request's first query.
        capacity: room for masks.
        shift: 1 where position i is read from the hidden state of i - 1, else 0.
        width: of `places`, at least the longest of these blocks; by default that of the state.
    """
    device = state.tokens.device
    places = torch.full((batch.num_requests, width or state.width), -1, dtype=torch.int32, device=device)
    found: list[tuple[int, int, int]] = []
    for number, slot in enumerate(batch.slots.tolist()):
        if int(batch.key_lengths[number]) == 0 or int(state.stopped[slot]):
            continue
        start, stop = int(state.block_starts[slot]), int(state.block_stops[slot])
        base = int(batch.query_starts[number]) - int(first_positions[number]) - shift
        for position in range(start, stop):
            if int(state.masked[slot, position]):
                if len(found) < capacity:
                    places[number, position - start] = len(found)
                found.append((base + position, slot, position))
    rows, slots, positions = torch.tensor([0, -1, -1]).repeat(capacity, 1).unbind(1)
    if found:
        for to, values in zip((rows, slots, positions), torch.tensor(found[:capacity]).unbind(1), strict=True):
            to[: len(values)] = values
    total = torch.tensor([len(found)], dtype=torch.int32, device=device)
    return MaskedRows(
        rows.to(device), slots.to(device, torch.int32), positions.to(device, torch.int32), places, total
    )  # fmt: skip
