"""Ragged bidirectional attention over the paged KVs of a batch that is described on the device (torch reference).

The meaning is `paged_attention_reference`'s; the arguments are what a CUDA graph can replay. For tests, and for the
CPU when it is asked to take the GPU's path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dispatch import kernel
from .batch import AttentionBatch
from .dense import gather_kv_reference
from .groups import SharedGroups


@kernel("gpu.attention_gpu")
def attention(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, *, num_splits: int = 1,
    fresh_kv: tuple[Tensor, Tensor] | None = None, fresh_only: bool = False, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q k^T / sqrt(head_dim)) v of each request over all its keys, in fp32.

    Args:
        q: [tokens, heads, head_dim], the requests' queries one after another.
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim].
        band: which band of batch.page_tables names the pages.
        batch: the requests. Read on the host here, unlike in the Triton kernel.
        num_splits: parts that the Triton kernels cut each request's keys into, to fill a GPU; ignored here.
        fresh_kv: k and v [tokens, kv_heads, head_dim] of the queries' own positions, when these are the last keys
            of every request: then a request's last (number of its queries) keys are read there and not from pages.
        fresh_only: no request has other keys than those of `fresh_kv`, so no page is read. Ignored here.
        out: [tokens, heads, head_dim] of q's dtype to write to.

    Returns out (a new tensor by default) and the log-sum-exp of the scaled scores (fp32 [tokens, heads], natural
    logarithm). A request without keys gets zeros and -inf; rows of no request are left as they are.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    starts = batch.query_starts.tolist()
    for number, (slot, keys) in enumerate(zip(batch.slots.tolist(), batch.key_lengths.tolist(), strict=True)):
        rows = slice(starts[number], starts[number + 1])
        fresh = min(keys, rows.stop - rows.start) if fresh_kv is not None else 0
        k, v = _gather(layer_pages, batch.page_tables[slot, band], keys - fresh)
        if fresh_kv is not None:
            own = slice(rows.start, rows.start + fresh)
            k, v = torch.cat([k, fresh_kv[0][own].float()]), torch.cat([v, fresh_kv[1][own].float()])
        out[rows], lse[rows] = attend_reference(q[rows], k, v)
    return out, lse


@kernel("shared_triton.shared_attention_triton")
def shared_attention(
    q: Tensor, layer_pages: Tensor, band: int, batch: AttentionBatch, groups: SharedGroups, *, num_splits: int = 1,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention`, in which the Triton kernels read the keys that a group of requests shares once.

    Args:
        q, layer_pages, band, batch, out: as for `attention`.
        groups: planned for this batch; ignored here. A group's keys are the first of each of its requests.
        num_splits: parts of each request's own keys; ignored here.
    """
    return attention.reference(q, layer_pages, band, batch, out=out)


def attend_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Dense attention of q [queries, heads, head_dim] over k, v [keys, kv_heads, head_dim] in fp32.

    Returns [queries, heads, head_dim] (fp32) and the log-sum-exp [queries, heads]; zeros and -inf without keys.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->qhk", q.float(), k) / math.sqrt(q.shape[-1])
    if not k.shape[0]:
        return torch.zeros(q.shape, device=q.device), torch.full(q.shape[:2], -torch.inf, device=q.device)
    return torch.einsum("qhk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def _gather(layer_pages: Tensor, page_table: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """fp32 copies of a request's first `keys` keys and values, each [keys, kv_heads, head_dim]."""
    pages = page_table[: -(-keys // layer_pages.shape[2])].long()
    k, v = gather_kv_reference(layer_pages, pages, keys)
    return k.float(), v.float()
