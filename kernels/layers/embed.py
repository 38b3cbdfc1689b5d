"""Embeddings of the tokens that stand at a batch's positions now (torch reference)."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import kernel


@kernel("embed_triton.embed_triton")
def embed(table: Tensor, tokens: Tensor, slots: Tensor, requests: Tensor, positions: Tensor) -> Tensor:
    """Rows of an embedding table, a new [rows, hidden] of its dtype.

    Args:
        table: [vocabulary, hidden].
        tokens: integers [slots, length], contiguous: the token at each position of each slot.
        slots: int32 [requests], slot of each request.
        requests, positions: int32 [rows], of each row. Padding has position -1 and gets the token at position 0.
    """
    at = slots.index_select(0, requests).long() * tokens.shape[1] + positions.clamp(min=0)
    return table.index_select(0, tokens.view(-1).index_select(0, at))
