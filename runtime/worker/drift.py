"""Drift of cached keys and values from fresh ones: an uncached pass over one sequence, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.attention.dense import gather_kv_reference, ragged_attention_reference
from ..model.decoder import Decoder
from .pools import KVPool

Visit = Callable[[int, Tensor, Tensor], None]
"""(layer, k, v): the fresh keys (rotated) and values of a layer, each [tokens, kv_heads, head_dim]."""


@torch.inference_mode()
def uncached_pass(
    decoder: Decoder, tokens: Tensor, visit: Visit, rows: Tensor | None = None, num_layers: int | None = None
) -> Tensor:
    """Last hidden states of one sequence of token ids [tokens], computed without any cache.

    `visit` gets every layer's keys and values and keeps what it needs; this function holds one layer at a time.
    Returns [tokens, hidden], or with `rows` (int64 [n]) only theirs, [n, hidden]. With `num_layers` it stops after that
    many layers.
    """
    positions = torch.arange(len(tokens), device=tokens.device)
    rotary = decoder.rotary(positions)
    hidden = decoder.embed(tokens)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visit(layer, k, v)
        return ragged_attention_reference(q, [(k, v)], [len(q)])

    num_layers = decoder.num_layers if num_layers is None else num_layers
    last = num_layers - 1
    for index in range(num_layers):
        hidden = decoder.layer(index, hidden, positions, attend, rotary, rows if index == last else None)
    return hidden


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine similarity of each token's keys (or values) over all heads: [tokens, kv_heads, head_dim] -> fp32 [tokens].

    cos = a.b / (|a| |b|); 1 where both are zero.
    """
    a, b = one.flatten(1).float(), other.flatten(1).float()
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > 0, (a * b).sum(1) / norms.clamp(min=1e-30), 1.0)


def divergence(fresh: Tensor, cached: Tensor) -> Tensor:
    """KL(p || q) = sum_v p(v) log(p(v) / q(v)) in nats, p = softmax(fresh), q = softmax(cached).

    Logits [n, vocab] twice -> fp32 [n]. A token that is impossible (-inf) without the cache adds nothing. By Pinsker's
    inequality no token's probability differs by more than sqrt(KL / 2).
    """
    log_p, log_q = (logits.float().log_softmax(-1) for logits in (fresh, cached))
    possible = log_p > -torch.inf
    terms = torch.where(possible, log_p.exp() * (log_p - torch.where(possible, log_q, 0.0)), 0.0)
    return terms.sum(-1).clamp(min=0)


def relative_error(cached: Tensor, fresh: Tensor, run: int) -> Tensor:
    """|cached - fresh| / |fresh| of runs of `run` tokens (Frobenius norms over tokens, heads and dimensions).

    [tokens, kv_heads, head_dim] twice, tokens a multiple of `run` -> fp32 [tokens / run].
    """
    difference = (cached.float() - fresh.float()).flatten(1).square().sum(1).view(-1, run).sum(1)
    size = fresh.float().flatten(1).square().sum(1).view(-1, run).sum(1)
    return (difference / size.clamp(min=1e-30)).sqrt()


def cached_layer(pool: KVPool, page_table: Tensor, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Copies of the first `tokens` cached keys and values in a layer; page_table int64 [bands, pages]."""
    band, pages = pool.layer(layer)
    count = -(-tokens // pool.page_size)
    return gather_kv_reference(pages, page_table[band, :count], tokens)
