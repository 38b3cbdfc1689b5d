"""How far cached KVs have moved from fresh ones (torch reference)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Drift(NamedTuple):
    """Per layer of a band, keys and values apart, each fp32 [layers, 2].

    cosine: mean over positions and KV heads of the cosine similarity of a head's vectors.
    error: |cached - fresh| / |fresh|, Euclidean norms over all positions, heads and dimensions.
    """

    cosine: Tensor
    error: Tensor


def drift_reference(pages: Tensor, cached: Tensor, fresh: Tensor, tokens: int) -> Drift:
    """Compare the KVs of `tokens` positions in two lists of pages of one band.

    Args:
        pages: [num_pages, layers_per_band, 2, page_size, kv_heads, head_dim], any float dtype; summed in fp32.
        cached, fresh: int32 [>= ceil(tokens / page_size)], page ids.
        tokens: positions to compare, at least one.
    """
    page_size = pages.shape[3]
    count = -(-tokens // page_size)
    a, b = (
        pages.index_select(0, ids[:count].long()).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)[:, :, :tokens].float()
        for ids in (cached, fresh)
    )
    norms = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    cosine = ((a * b).sum(-1) / norms.clamp(min=1e-20)).mean((2, 3))
    error = ((a - b).square().sum((2, 3, 4)) / b.square().sum((2, 3, 4)).clamp(min=1e-20)).sqrt()
    return Drift(cosine, error)
