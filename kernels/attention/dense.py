"""Ragged bidirectional attention over paged KVs, and the write of fresh KVs to their pages (torch reference).

Every query of a request sees all of the request's key positions: there is no causal mask. Requests of one call may
have any lengths; nothing is padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def write_kv_reference(layer_pages: Tensor, k: Tensor, v: Tensor, pages: Tensor, offsets: Tensor) -> None:
    """Write the keys and values of tokens to their places in the pool.

    Args:
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim], one layer's part of every page (a view).
        k, v: [tokens, kv_heads, head_dim].
        pages, offsets: int64 [tokens]: page id and position within the page of each token.
    """
    layer_pages[pages, 0, offsets] = k
    layer_pages[pages, 1, offsets] = v


def paged_attention_reference(
    q: Tensor, layer_pages: Tensor, page_tables: Sequence[Tensor], query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:  # fmt: skip
    """softmax(q k^T / sqrt(head_dim)) v for each request, over all its keys.

    Args:
        q: [tokens, heads, head_dim], the requests' queries one after another.
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim].
        page_tables: for each request its page ids, int64 [>= ceil(key_length / page_size)].
        query_lengths, key_lengths: tokens of q and keys of each request.

    Returns [tokens, heads, head_dim]. A request's result does not depend on the others in the call.
    """
    kv = [gather_kv_reference(layer_pages, t, keys) for t, keys in zip(page_tables, key_lengths, strict=True)]
    return ragged_attention_reference(q, kv, query_lengths)


def gather_kv_reference(layer_pages: Tensor, page_table: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Copies of a request's first `keys` keys and values, each [keys, kv_heads, head_dim], out of its pages."""
    # One copy each: index_select of a strided view is contiguous, so flatten copies nothing.
    rows = layer_pages.view(torch.uint8) if layer_pages.itemsize == 1 else layer_pages  # torch copies no rows of fp8
    k, v = (rows[:, i].index_select(0, page_table).flatten(0, 1)[:keys].view(layer_pages.dtype) for i in (0, 1))
    return k, v


def ragged_attention_reference(
    q: Tensor, keys_values: Sequence[tuple[Tensor, Tensor]], query_lengths: Sequence[int]
) -> Tensor:
    """As `paged_attention_reference`, with each request's keys and values in one piece: [keys, kv_heads, head_dim]."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    start = 0
    for (k, v), queries in zip(keys_values, query_lengths, strict=True):
        if not queries:
            continue
        part = q[start : start + queries].transpose(0, 1)[None]
        result = F.scaled_dot_product_attention(
            part, k.transpose(0, 1)[None], v.transpose(0, 1)[None], enable_gqa=q.shape[1] != k.shape[1]
        )
        out[start : start + queries] = result[0].transpose(0, 1)
        start += queries
    return out
