"""Merge of attention in parts, and drift of cached KVs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernel_bench.variant import BF16, DEVICE, HEAD_DIM, Call, Variant, random


def merging() -> Iterator[Variant]:
    from shoal.kernels.attention.merge_triton import merge_states_triton
    from shoal.kernels.drift_triton import drift_triton

    for tokens, parts in ((32, 8), (1024, 2)):
        data = [torch.randn(parts, tokens, 32, HEAD_DIM, device=DEVICE) for _ in range(8)]
        lses = torch.randn(parts, tokens, 32, device=DEVICE)
        out, lse = torch.empty(tokens, 32, HEAD_DIM, device=DEVICE, dtype=BF16), torch.empty(tokens, 32, device=DEVICE)
        calls: list[Call] = [partial(merge_states_triton, each, lses, out, lse) for each in data]
        yield Variant("merge", f"{tokens} x 32, {parts} parts", "", calls, float(data[0].nbytes + out.nbytes))
    pages = random(512, 4, 2, 16, 32, HEAD_DIM)
    ids = torch.randperm(512, device=DEVICE).to(torch.int32).view(2, 256)
    calls = [partial(drift_triton, pages, ids[0], ids[1], 4096)]
    yield Variant("drift", "4096 tokens, 4 layers", "", calls, float(pages.nbytes))
