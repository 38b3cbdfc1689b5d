"""RoPE of fresh queries and keys and the write of fresh KVs to their pages (torch reference).

Positions, requests and page tables are tensors on the device, as a CUDA graph needs them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.batch import AttentionBatch
from ..dispatch import kernel
from .fp8 import FP8, LARGEST, Scales
from .head_norm import HeadNorm
from .rope import apply_rope
from .row_norm import RowNorm


@kernel("kv_write_triton.rope_write_kv_triton")
def rope_write_kv(
    q: Tensor, k: Tensor, v: Tensor, cos_table: Tensor, sin_table: Tensor, positions: Tensor, rows: Tensor,
    batch: AttentionBatch, band: int, layer_pages: Tensor, *, q_out: Tensor | None = None, k_out: Tensor | None = None,
    norm: RowNorm | None = None, bias: Tensor | None = None, head_norm: HeadNorm | None = None,
    scales: Scales | None = None,
) -> Tensor:  # fmt: skip
    """Rotate q and k by the tokens' positions; write k, rotated, and v to the pages of the tokens' requests.

    Args:
        q: [tokens, heads, head_dim], not rotated. Like k and v: any strides but a contiguous last dimension.
        k, v: [tokens, kv_heads, head_dim], k not rotated.
        cos_table, sin_table: fp32 [positions, head_dim / 2], as `rope_table` makes them.
        positions: int32 [tokens], position of each token in its request; -1 marks padding: nothing is written for it.
        rows: int32 [tokens], which request of the batch each token belongs to; ignored for padding.
        batch, band: the page of position p of request r is
            batch.page_tables[batch.slots[r], band, p // page_size].
        layer_pages: [num_pages, 2, page_size, kv_heads, head_dim], written, of any float dtype; in fp8 (e4m3) numbers
            beyond its largest become that. No two tokens share a place.
        q_out: where the rotated q goes; q itself means in place; a new tensor by default. Rows of padding keep what
            they hold.
        k_out: where the rotated k goes beside the pages (k itself: in place); nowhere by default.
        norm: q, k and v were computed from hidden states that were not normalised; they are scaled first, in fp32.
        bias: [heads + 2 kv_heads, head_dim], of q, k and v in this order, added after the scaling.
        scales: of q, k and v side by side, [tokens, (heads + 2 kv_heads) head_dim], applied before all else, in fp32.
        head_norm: norms of q and k per head, in fp32, after scaling and bias and before the rotation.

    Returns the rotated q.
    """
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format) if q_out is None else q_out
    if norm is not None or bias is not None or scales is not None:
        q, k, v = _projected(q, k, v, norm, bias, scales)
    if head_norm is not None:
        head_norm.check(q.shape[2])
        q, k = head_norm.apply(q, k)
    at = torch.nonzero(positions >= 0)[:, 0]
    where = positions[at].long()
    page_size = layer_pages.shape[2]
    pages = batch.page_tables[batch.slots[rows[at].long()].long(), band, where // page_size].long()
    cos, sin = cos_table[where], sin_table[where]
    rotated = apply_rope(k[at], cos, sin)
    layer_pages[pages, 0, where % page_size] = _as_stored(rotated, layer_pages.dtype)
    layer_pages[pages, 1, where % page_size] = _as_stored(v[at], layer_pages.dtype)
    q_out[at] = apply_rope(q[at], cos, sin).to(q_out.dtype)
    if k_out is not None:
        k_out[at] = rotated.to(k_out.dtype)
    return q_out


def _as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the pages' dtype; in fp8 the largest number stands for all larger ones."""
    return x.clamp(-LARGEST, LARGEST).to(dtype) if dtype == FP8 else x.to(dtype)


def _projected(
    q: Tensor, k: Tensor, v: Tensor, norm: RowNorm | None, bias: Tensor | None, scales: Scales | None
) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 q, k and v after the scales, the factor of the norm and the bias."""
    wide = torch.cat([q, k, v], dim=1).float()
    if scales is not None:
        wide = scales.apply(wide.flatten(1)).view(wide.shape)
    if norm is not None:
        norm.check(q.shape[0])
        wide *= norm.factor()[:, :, None]
    if bias is not None:
        wide += bias.view(1, *wide.shape[1:])
    heads, kv_heads = q.shape[1], k.shape[1]
    return wide[:, :heads], wide[:, heads : heads + kv_heads], wide[:, heads + kv_heads :]
