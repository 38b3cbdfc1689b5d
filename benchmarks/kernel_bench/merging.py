"""Merge of attention in parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernel_bench.variant import BF16, DEVICE, HEAD_DIM, Call, Variant


def merging() -> Iterator[Variant]:
    from shoal.kernels.attention.merge_triton import merge_states_triton

    for tokens, parts in ((32, 8), (1024, 2)):
        data = [torch.randn(parts, tokens, 32, HEAD_DIM, device=DEVICE) for _ in range(8)]
        lses = torch.randn(parts, tokens, 32, device=DEVICE)
        out, lse = torch.empty(tokens, 32, HEAD_DIM, device=DEVICE, dtype=BF16), torch.empty(tokens, 32, device=DEVICE)
        calls: list[Call] = [partial(merge_states_triton, each, lses, out, lse) for each in data]
        yield Variant("merge", f"{tokens} x 32, {parts} parts", "", calls, float(data[0].nbytes + out.nbytes))
