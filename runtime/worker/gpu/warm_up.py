"""Chooses refreshes that launch every attention kernel a refresh can need; a GPU's worker runs them at its start."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from ....kernels.attention.tiling import AttentionTiling, choose_tiling, request_lanes, shared_memory
from .runner import CudaRunner

_ROWS = (*range(32, 1025, 32), 1536, 2048, 3072, 4096)
_OTHERS_ROWS = (256, 1024)
"""RoPE uses other tiles above 512 rows."""
_ROWS_OF_EXPERT = (8, 16, 64, 65)
"""Experts' products use other tiles for more rows an expert."""
_LAST_ROWS = (2, 4, 8, 16, 32, 64, 128)
"""Whose logits are read: a block's, or those of the scored tokens."""


class RefreshSize(NamedTuple):
    """Requests; rows of each, and those of them that remain in the last layer; how many keys before them are cached."""

    requests: int
    rows: int
    last: int
    cached: int


class AttentionForm(NamedTuple):
    """Parameters of the batch that an attention kernel is compiled for: launches that agree in them run one kernel."""

    tiling: AttentionTiling
    splits: int
    lanes: int
    fresh: bool


def forms_of(runner: CudaRunner, size: RefreshSize) -> set[AttentionForm]:
    """The forms of attention in a refresh; it reads its keys where the projection left them if none are cached."""
    config = runner.decoder.config
    wide = runner.decoder.dtype == torch.float32

    def form(rows: int, splits: int, fresh: bool) -> AttentionForm:
        tiling = choose_tiling(
            size.requests * rows, size.requests, config.num_heads // config.num_kv_heads, runner.kv.page_size,
            config.head_dim, wide, fresh, shared_memory(runner.decoder.device),
        )  # fmt: skip
        return AttentionForm(tiling, splits, request_lanes(size.requests), fresh)

    splits = runner.splits(size.requests, size.requests * size.rows)
    return {form(size.rows, splits, not size.cached), form(size.last, 1, False)}


def warm_up_sizes(
    runner: CudaRunner, block: int, most_requests: int, most_rows: int, most_tokens: int
) -> list[RefreshSize]:
    """Sizes of refreshes that together take every form that one of at least a block's rows a request can take.

    Among them are, for any number of requests that sampling tells apart, one of little more than a block, and for any
    number of rows that other kernels tell apart, one request.

    Args:
        block: positions of the blocks that requests will have.
        most_requests, most_rows, most_tokens: in a forward; rows are those of one request, which may be more than
            most_tokens when it is alone.
    """
    numbers = sorted({2**n for n in range(most_requests.bit_length())} | {most_requests})
    config = runner.decoder.config
    experts: list[int] = []
    if config.num_experts:
        experts = [-(-rows * config.num_experts // config.experts_per_token) for rows in _ROWS_OF_EXPERT]
    fixed = [(requests, block + 2) for requests in numbers] + [(1, rows) for rows in (*_OTHERS_ROWS, *experts)]
    sizes = [
        RefreshSize(requests, min(rows, most_rows), block, cached) for requests, rows in fixed for cached in (0, 1)
    ]
    seen = set().union(*(forms_of(runner, size) for size in sizes))
    rows = sorted({min(rows, most_rows) for rows in (block + 2, *_ROWS) if rows > block})
    candidates = itertools.product(range(1, most_requests + 1), rows, (block, *_LAST_ROWS), (0, 1))
    fitting = [
        RefreshSize(requests, rows, last, cached)
        for requests, rows, last, cached in candidates
        if last + 1 < rows and (requests == 1 or requests * rows <= most_tokens)
    ]
    for size in sorted(fitting, key=lambda size: size.requests * size.rows):
        forms = forms_of(runner, size)
        if not forms <= seen:
            sizes.append(size)
            seen |= forms
    return sizes
